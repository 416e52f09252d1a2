//! The one list of tasks. Worker, producer, ops and the conformance suite iterate over it; no other code matches on a kind.

use super::task::{Exampled, Shown};

/// Each kind is a file and one line below.
macro_rules! tasks {
    ($($file:ident :: $task:ident,)*) => {
        $(mod $file;)*

        /// Every kind.
        pub static ALL: &[&dyn Shown] = &[$(&$file::$task),*];

        /// Every kind, with the examples of the conformance suite.
        pub static EXAMPLED: &[&dyn Exampled] = &[$(&$file::$task),*];
    };
}

tasks! {
    confirm_receipt::ConfirmReceipt,
    purge_cart_item::PurgeCartItem,
    collect_arrears::CollectArrears,
    hide_order::HideOrder,
}

/// The task of this kind.
#[must_use]
pub fn find(kind: &str) -> Option<&'static dyn Shown> {
    ALL.iter().copied().find(|task| task.kind() == kind)
}

/// Every kind's name.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|task| task.kind())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kinds_on_the_wire_are_pinned() {
        let kinds: Vec<_> = super::kinds().collect();
        assert_eq!(kinds, ["confirm-receipt", "purge-cart-item", "collect-arrears", "hide-order"]);
    }
}
