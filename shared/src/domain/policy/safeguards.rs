//! The safeguards of a policy: what decides about money and deletion, beside its lines. They are part of the policy that was applied to
//! the database, so that no process's own file decides them.

use crate::domain::span::Span;

/// See the settings of the same names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Safeguards {
    /// `arrears.wallet_floor`: the lowest balance in đồng to which a charge may take a wallet; `None`: no floor.
    pub wallet_floor: Option<i64>,
    /// `dead_letters.approval_above`: what moves more đồng than this needs a second operator; `None`: nothing does.
    pub approval_above: Option<i64>,
    /// `retention.delete_after` in `retention.mode` "delete"; `None`: nothing is deleted.
    pub delete_after: Option<Span>,
}

impl std::fmt::Display for Safeguards {
    /// As in a `kyhan.toml`, after the lines of the policy.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let amount = |amount: Option<i64>| amount.map_or("\"none\"".to_owned(), |amount| amount.to_string());
        writeln!(f, "[arrears]\nwallet_floor = {}\n", amount(self.wallet_floor))?;
        writeln!(f, "[dead_letters]\napproval_above = {}\n", amount(self.approval_above))?;
        match self.delete_after {
            None => writeln!(f, "[retention]\nmode = \"hide\""),
            Some(after) => writeln!(f, "[retention]\nmode = \"delete\"\ndelete_after = \"{after}\""),
        }
    }
}
