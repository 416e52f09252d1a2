//! Further policies for tests, as files, and rows that fall due under them.

use std::path::PathBuf;

use shared::domain::task::EXAMPLE_CUSTOMER;
use uuid::Uuid;

use crate::harness::Harness;

/// Receipts after a week, carts after a week, arrears after six hours: durations that already have rungs. The rules for hiding
/// orders do not change.
pub const SHORTER: &str = r#"
    [[policy]]
    on = "order.shipped"
    task = "confirm-receipt"
    after = "7d"
    [[policy]]
    on = ["order.shipped", "order.received", "order.out_of_stock", "order.fees_changed"]
    task = "collect-arrears"
    after = "6h"
    [[policy]]
    on = "cart.item_added"
    task = "purge-cart-item"
    after = "7d"
    [[policy]]
    on = "order.recorded"
    task = "hide-order"
    after = "6 months"
"#;

/// A temporary file, removed when dropped.
pub struct File(pub PathBuf);

impl File {
    pub fn new(text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("kyhan-policy-{}.toml", Uuid::new_v4()));
        std::fs::write(&path, text).expect("a file");
        Self(path)
    }

    pub fn path(&self) -> &str {
        self.0.to_str().expect("a path")
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Orders that have been on their way for 1 to `most` days, paid in full; half an hour away from any boundary.
pub async fn delivering(harness: &Harness, most: i32) {
    let sql = "INSERT INTO orders (id, code, customer_id, status, delivering_since)
               SELECT gen_random_uuid(), 'D-' || n, $1, 'delivering', now() - n * interval '1 day' + interval '30 minutes'
                 FROM generate_series(1, $2::int) AS n";
    harness.run(sql, [EXAMPLE_CUSTOMER.into(), most.into()]).await;
}

/// Orders received 1 to `most` hours ago. Each lacks as many thousands for goods as hours, and one thousand for service.
pub async fn short(harness: &Harness, most: i32) {
    let sql = "INSERT INTO orders (id, code, customer_id, status, received_at, goods_due, service_due)
               SELECT gen_random_uuid(), 'R-' || n, $1, 'received', now() - n * interval '1 hour' + interval '10 minutes', n * 1000, 1
                 FROM generate_series(1, $2::int) AS n";
    harness.run(sql, [EXAMPLE_CUSTOMER.into(), most.into()]).await;
}

pub async fn in_cart(harness: &Harness, most: i32) {
    let sql = "INSERT INTO cart_items (id, customer_id, product_ref, product_name, quantity, added_at)
               SELECT gen_random_uuid(), $1, 'ref', 'name', 1, now() - n * interval '1 day' + interval '30 minutes'
                 FROM generate_series(1, $2::int) AS n";
    harness.run(sql, [EXAMPLE_CUSTOMER.into(), most.into()]).await;
}
