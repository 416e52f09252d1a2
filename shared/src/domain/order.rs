//! What operators may see of an order, for every kind about orders: its status, moments and money. It excludes the customer,
//! the messages with the customer, and where the goods are bought (policy points 6 and 7).

/// See [`crate::domain::task::Shown::shown`].
pub(crate) const SHOWN: &str = "SELECT jsonb_build_object(
           'values', jsonb_build_object('code', code, 'status', status, 'on_hold', on_hold),
           'moments', jsonb_build_object(
               'delivering_since', delivering_since, 'received_at', received_at, 'out_of_stock_since', out_of_stock_since,
               'parcel_recorded_at', parcel_recorded_at, 'hidden_at', hidden_at),
           'money', jsonb_build_object('goods_due', goods_due, 'shipping_due', shipping_due, 'service_due', service_due)
               || (SELECT jsonb_object_agg(part.kind || '_paid', coalesce(accounts.balance, 0))
                     FROM (VALUES ('goods'), ('shipping'), ('service')) AS part (kind)
                          LEFT JOIN accounts ON accounts.order_id = orders.id AND accounts.kind = part.kind))
      FROM orders WHERE id = $1";
