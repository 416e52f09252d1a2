DROP TRIGGER the_erased_have_no_events_aside ON set_aside;
DROP TRIGGER the_erased_have_no_events ON outbox;
DROP TRIGGER erasures_are_recorded ON customers;
DROP TRIGGER customers_are_erased_once_settled ON customers;
DROP TRIGGER messages_record_themselves ON activity;
DROP TRIGGER messages_are_recorded ON order_messages;
DROP FUNCTION kyhan_events_of_the_erased(), kyhan_erasures_are_recorded(), kyhan_erasure_is_allowed(), kyhan_messages_altered(), kyhan_messages_record_themselves(),
    kyhan_messages_recorded();
