-- What takes time and locks out only writers comes first, see the way up. Orphans in the history would be refused here.
CREATE INDEX orders_delivering_since_idx ON orders (delivering_since) WHERE status = 'delivering';
CREATE INDEX orders_wrongly_out_of_stock_idx ON orders (out_of_stock_since)
    WHERE status = 'out_of_stock' AND parcel_recorded_at IS NOT NULL;
ALTER TABLE order_status_history
    ADD CONSTRAINT order_status_history_order_id_fkey FOREIGN KEY (order_id) REFERENCES orders (id);
ALTER TABLE orders RESET (fillfactor);
DROP TRIGGER orders_truncated_with_history ON orders;
DROP TRIGGER orders_keep_their_ids ON orders;
DROP TRIGGER orders_without_history ON orders;
DROP TRIGGER history_keeps_its_order ON order_status_history;
DROP TRIGGER history_has_its_order ON order_status_history;
DROP FUNCTION kyhan_order_has_no_history(), kyhan_history_has_its_order();
DROP INDEX orders_shipped_idx;
