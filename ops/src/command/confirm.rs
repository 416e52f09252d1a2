//! Questions before something that cannot be undone. Without a terminal the command refuses, unless `--yes` is given.

use std::io::{IsTerminal, stderr, stdin};

use dialoguer::{Confirm, Input};
use shared::process::visible::visible;

use super::UsageError;

/// Whether the operator answers a question of one line with yes. `yes` skips the question.
///
/// # Errors
/// [`UsageError`] without a terminal and without `yes`; errors of the terminal.
pub fn confirmed(question: &str, yes: bool) -> anyhow::Result<bool> {
    if yes {
        return Ok(true);
    }
    require_terminal(question)?;
    // A stray key must not count as an answer: the answer needs Enter, and Enter alone means no.
    Ok(Confirm::new().with_prompt(visible(question)).default(false).wait_for_newline(true).interact()?)
}

/// Whether the operator types exactly the expected text, such as the amount of money that is about to move. It cannot be answered
/// without reading the question. `yes` skips the question.
///
/// # Errors
/// [`UsageError`] without a terminal and without `yes`; errors of the terminal.
pub fn typed(question: &str, expected: &str, yes: bool) -> anyhow::Result<bool> {
    if yes {
        return Ok(true);
    }
    require_terminal(question)?;
    let prompt = format!("{question} Type {expected} to continue");
    let answer: String = Input::new().with_prompt(visible(&prompt)).allow_empty(true).interact_text()?;
    Ok(answer.trim() == expected)
}

fn require_terminal(question: &str) -> Result<(), UsageError> {
    if stdin().is_terminal() && stderr().is_terminal() {
        return Ok(());
    }
    Err(UsageError(format!("{question} There is no terminal to ask at; pass --yes to confirm")))
}
