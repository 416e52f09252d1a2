//! `ops policy approve`: makes a proposed policy the active one, on behalf of a second operator; `ops policy proposals` lists them.

use std::process::ExitCode;

use anyhow::{bail, ensure};
use ops::{
    actor::Operator,
    proposal::{self, Proposal},
    shown::{moment, one_line},
};
use serde_json::json;
use shared::{process::cli::say, settings::Settings};
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        governed,
        options::{Json, Yes},
        table, with_schema,
    },
    apply::{Applying, carry_out},
};

#[derive(clap::Args)]
#[command(after_help = "\
A policy needs a second operator if it changes the safeguards (arrears.wallet_floor, dead_letters.approval_above, retention.mode), or when \
arrears are collected while orders are short of more than approval_above in all. `ops policy apply` then stores it as a proposal. The \
operator who approves it does so with a login of their own, sees what it would do now, and applies it.

Exit codes: 0 the policy is active and every wake-up is published; 1 refused or failed; 2 usage error, or neither a terminal nor --yes.")]
pub struct ApprovePolicy {
    /// The proposal's number
    pub proposal: i64,
    #[command(flatten)]
    pub yes: Yes,
    #[command(flatten)]
    pub json: Json,
}

pub async fn approve(
    command: ApprovePolicy,
    settings: &Settings,
    actor: &Operator,
    stop: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    let governed = governed(settings).await?;
    let Some(proposed) = proposal::find(&governed.db, command.proposal).await? else {
        bail!("there is no proposal {}; see `ops policy proposals`", command.proposal)
    };
    if let Some(number) = proposed.applied_as {
        bail!("proposal {} was applied as policy {number}", proposed.id);
    }
    ensure!(
        proposed.base == governed.settings.policy.number(),
        "another policy became active since proposal {} was made; apply its file again",
        proposed.id
    );
    if !command.json.json {
        let Proposal { id, made_by, made_login, made_at, why, .. } = &proposed;
        let at = moment(*made_at);
        let (by, login) = (one_line(made_by), one_line(made_login));
        say(&format!("proposal {id}, made by {by} ({login}) at {at}: {}", one_line(why)));
        if let Some(safeguards) = proposed.policy.safeguards() {
            say(&safeguards.to_string());
        }
    }
    let applying = Applying {
        rate: proposed.rate,
        why: &proposed.why,
        yes: command.yes.yes,
        json: command.json.json,
        proposal: Some(proposed.id),
    };
    carry_out(&governed, proposed.policy.clone(), actor, &applying, stop).await
}

#[derive(clap::Args)]
pub struct Proposals {
    #[command(flatten)]
    pub json: Json,
}

pub async fn proposals(command: Proposals, settings: &Settings) -> anyhow::Result<ExitCode> {
    let open = proposal::open(&with_schema(settings).await?).await?;
    if command.json.json {
        let each = |it: &Proposal| json!({ "id": it.id, "made_at": it.made_at, "made_by": it.made_by, "made_login": it.made_login, "why": it.why });
        say(&serde_json::to_string_pretty(&open.iter().map(each).collect::<Vec<_>>())?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = table(["id", "made at", "by", "login", "why"]);
    for it in open {
        table.add_row([
            it.id.to_string(),
            moment(it.made_at),
            one_line(&it.made_by),
            one_line(&it.made_login),
            one_line(&it.why),
        ]);
    }
    say(&table.to_string());
    Ok(ExitCode::SUCCESS)
}
