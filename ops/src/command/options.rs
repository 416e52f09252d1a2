//! The options that several commands share, each with one definition, one check and one help text.

/// Longest reason in characters, so that it fits on one line.
const WHY_MAX: usize = 500;

#[derive(clap::Args)]
pub struct Why {
    /// The reason, recorded in activity. Do not name customers or sources of goods
    #[arg(long, visible_alias = "reason", value_name = "TEXT", value_parser = reason)]
    pub why: String,
}

#[derive(clap::Args)]
pub struct Yes {
    /// Do not ask for confirmation
    #[arg(long)]
    pub yes: bool,
}

#[derive(clap::Args)]
pub struct Json {
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

fn reason(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() || text.chars().any(char::is_control) || text.chars().count() > WHY_MAX {
        return Err(format!("must be 1 to {WHY_MAX} characters on one line"));
    }
    Ok(text.to_owned())
}
