//! `ops completions`: prints a shell completion script. It needs no server and no settings.

use std::process::ExitCode;

use clap_complete::Shell;
use shared::process::cli::say;

#[derive(clap::Args)]
#[command(after_help = "Examples:
  ops completions bash > /usr/share/bash-completion/completions/ops
  ops completions zsh > \"${fpath[1]}/_ops\"
  ops completions fish > ~/.config/fish/completions/ops.fish")]
pub struct CompletionsCommand {
    /// The shell
    pub shell: Shell,
}

pub fn completions(CompletionsCommand { shell }: CompletionsCommand, mut ops: clap::Command) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut ops, "ops", &mut script);
    say(&String::from_utf8_lossy(&script));
    ExitCode::SUCCESS
}
