DROP TABLE deleted_orders, transfers, accounts;
DROP FUNCTION kyhan_accounts_keep_their_owner(), kyhan_transfers_name_their_order(), kyhan_insert_only(), kyhan_transfers_are_signed(),
    kyhan_keep_balances();
