//! Whose a row is about which a letter was stored: whatever makes wake-ups by itself leaves to operators what is theirs.

use crate::domain::task::Shown;

/// SQL: whether a row of the relation `due` (`id`, `due_at`) is the operators'. They have discarded a letter about this deadline; or one
/// is open, and to apply it takes money, of which they are to see how much before it moves. What takes none is tried again all the same,
/// so that a fault that has passed makes nobody late (docs/decisions/0019).
#[must_use]
pub fn sql_decided(task: &dyn Shown, due: &str) -> String {
    let open = if task.stake().is_some() { "letter.state = 'open' OR " } else { "" };
    format!(
        "EXISTS (SELECT FROM dead_letters AS letter
                  WHERE letter.subject_id = {due}.id AND letter.kind = '{kind}'
                    AND ({open}(letter.state = 'discarded' AND letter.decided_at >= {due}.due_at)))",
        kind = task.kind()
    )
}
