DROP TRIGGER transfers_of_the_fleet ON transfers;
DROP TRIGGER history_of_the_fleet ON order_status_history;
DROP TRIGGER orders_of_the_fleet ON orders;
DROP TRIGGER cart_items_of_the_fleet ON cart_items;
DROP TRIGGER cart_items_stay_as_they_are ON cart_items;
DROP TRIGGER outstanding_of_the_fleet ON arrears_outstanding;
DROP TRIGGER outstanding_of_the_fleet_again ON arrears_outstanding;
DROP FUNCTION kyhan_fleet_collects_arrears(), kyhan_fleet_writes_history(), kyhan_fleet_keeps_to_its_tasks(), kyhan_fleet_leaves_outstanding();
