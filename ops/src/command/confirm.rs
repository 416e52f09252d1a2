//! Asking before something is done that cannot be taken back. Where nobody can be asked nothing is done, unless `--yes` said so
//! beforehand.

use std::io::{IsTerminal, stderr, stdin};

use dialoguer::{Confirm, Input};

use super::WrongUse;

/// Whether the operator answers yes to a question of one line; `yes` answers beforehand.
///
/// # Errors
/// [`WrongUse`] where nobody sits at a terminal, and `yes` is not given; the terminal's.
pub fn confirmed(question: &str, yes: bool) -> anyhow::Result<bool> {
    if yes {
        return Ok(true);
    }
    somebody(question)?;
    // One stray key must not be an answer: it counts with Enter, and Enter alone means no.
    Ok(Confirm::new().with_prompt(question).default(false).wait_for_newline(true).interact()?)
}

/// Whether the operator types exactly what is expected, like the amount of money that is about to move: a question that nobody
/// answers without having read it. `yes` answers beforehand.
///
/// # Errors
/// [`WrongUse`] where nobody sits at a terminal, and `yes` is not given; the terminal's.
pub fn typed(question: &str, expected: &str, yes: bool) -> anyhow::Result<bool> {
    if yes {
        return Ok(true);
    }
    somebody(question)?;
    let prompt = format!("{question} Type {expected} to go on");
    let answer: String = Input::new().with_prompt(prompt).allow_empty(true).interact_text()?;
    Ok(answer.trim() == expected)
}

fn somebody(question: &str) -> Result<(), WrongUse> {
    if stdin().is_terminal() && stderr().is_terminal() {
        return Ok(());
    }
    Err(WrongUse(format!("{question} Nobody is at a terminal to answer; say --yes beforehand")))
}
