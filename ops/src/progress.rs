//! Progress on stderr: a bar where the length is known, else a spinner. Nothing is drawn if stderr is not a terminal.

use indicatif::{ProgressBar, ProgressStyle, style::TemplateError};

/// A bar of `length` steps.
///
/// # Errors
/// An invalid template.
pub fn bar(what: &'static str, length: u64) -> Result<ProgressBar, TemplateError> {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {per_sec} {eta}")?;
    Ok(ProgressBar::new(length).with_style(style).with_message(what))
}

/// A spinner with the time that has passed.
///
/// # Errors
/// An invalid template.
pub fn spinner(what: &'static str) -> Result<ProgressBar, TemplateError> {
    let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}")?;
    Ok(ProgressBar::new_spinner().with_style(style).with_message(what))
}
