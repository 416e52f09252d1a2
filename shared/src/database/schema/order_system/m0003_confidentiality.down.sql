DROP VIEW customers_masked, own_imports;
DROP FUNCTION kyhan_masked_email(text), kyhan_masked_phone(text), kyhan_masked_name(text);
DROP TABLE order_sources; -- and its policies
DROP FUNCTION kyhan_customer();
