//! Which rows with a stored letter are left to operators: code that publishes wake-ups by itself skips them.

use crate::domain::{outcome::Reason, task::Shown};

/// SQL: whether a row of the relation `due` (`id`, `due_at`) is left to operators. They have discarded a letter about this
/// deadline; or a letter is open and applying it moves money, whose amount they must see before it moves. A row that moves no
/// money is retried in spite of an open letter, so that a fault that has passed makes no row late (docs/decisions/0019).
///
/// Only a letter of a subject that failed counts, and one whose subject an operator corrected: what else a letter names is what
/// the message's sender wrote.
#[must_use]
pub fn sql_decided(task: &dyn Shown, due: &str) -> String {
    let open = if task.stake().is_some() { "letter.state = 'open' OR " } else { "" };
    let failed = Reason::FAILED.map(|reason| format!("'{}'", reason.name())).join(", ");
    format!(
        "EXISTS (SELECT FROM dead_letters AS letter
                  WHERE letter.subject_id = {due}.id AND letter.kind = '{kind}'
                    AND (letter.reason IN ({failed}) OR letter.repaired_from IS NOT NULL)
                    AND ({open}(letter.state = 'discarded' AND letter.decided_at >= {due}.due_at)))",
        kind = task.kind()
    )
}
