DROP TABLE transfers, accounts;
DROP FUNCTION kyhan_keep_balances(), kyhan_insert_only();
