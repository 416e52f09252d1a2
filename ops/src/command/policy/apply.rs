//! `ops policy apply`: makes another policy the active one.

use std::{num::NonZeroU32, path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};
use clap::ValueHint;
use ops::{
    actor::Operator,
    preview::{self, PolicyPreview},
    progress, proposal,
    rollout::{self, LEAD, Rollout},
    shown::{moment, one_line},
};
use sea_orm::{DatabaseConnection, TransactionTrait};
use serde_json::json;
use shared::{
    broker::Broker,
    database::{
        self,
        active_policy::{self, Applied, Governed},
    },
    domain::{
        money::Dong,
        policy::{Policy, Release},
    },
    process::cli::{remark, say},
    settings::Settings,
};
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        answer, confirm, governed,
        options::{Json, Why, Yes},
    },
    RATE, policy_of,
    preview::shown,
};

#[derive(clap::Args)]
#[command(after_help = "\
FILE is a kyhan.toml, as for `ops policy preview`. Its policy is active from its commit on, and the files of the workers and relays no \
longer decide it. Workers and relays adopt it within seconds, without a restart. Of its other settings, arrears.wallet_floor, dead_letters.approval_above and \
retention.mode are part of the policy; the rest is checked and not used. A policy that needs a second operator becomes a proposal: see \
`ops policy approve --help`.

Rows that become due later, or never, change at once. Rows that become due at once are released evenly at --rate, each at a time of its own \
and never later than it was due before. The command publishes new wake-ups for all rows that fall due earlier. The release is part of the \
policy, so nothing has to run for it to continue.

If the command is interrupted, run it again to continue. To take a policy back, apply the one before: rows that are not released yet get \
their old deadline again. To release more slowly, take it back and apply it again.

All processes must run a version that supports applied policies. An older one follows its file.

Examples:
  ops policy apply kyhan-new.toml --why 'the board decided on ten days'
  ops policy apply kyhan-new.toml --why 'the board decided on ten days' --rate 5 --yes --json

Exit codes: 0 the policy is active and every wake-up is published, or it is proposed; 1 failure; 2 usage error, invalid FILE, or neither a terminal nor \
--yes.")]
pub struct ApplyPolicyCommand {
    /// A kyhan.toml with the new policy
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    #[command(flatten)]
    pub why: Why,
    /// How many rows of a kind to release per second
    #[arg(long, value_name = "SUBJECTS", default_value_t = RATE)]
    pub rate: NonZeroU32,
    #[command(flatten)]
    pub yes: Yes,
    #[command(flatten)]
    pub json: Json,
}

pub async fn apply(
    command: ApplyPolicyCommand,
    settings: &Settings,
    actor: &Operator,
    stop: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    let new = policy_of(&command.file)?;
    let governed = governed(settings).await?;
    if new.is_equivalent(&governed.settings.policy)
        && let Some(applied) = active_policy::read(&governed.db).await?
    {
        return again(&command, &governed, &applied, stop).await;
    }
    let applying =
        Applying { rate: command.rate, why: &command.why.why, yes: command.yes.yes, json: command.json.json, proposal: None };
    carry_out(&governed, new, actor, &applying, stop).await
}

/// How a policy is applied.
pub(super) struct Applying<'a> {
    pub rate: NonZeroU32,
    pub why: &'a str,
    pub yes: bool,
    pub json: bool,
    /// The proposal that is approved by this.
    pub proposal: Option<i64>,
}

/// Shows what a policy would do, asks, and applies it; or proposes it, if a second operator has to approve it.
pub(super) async fn carry_out(
    governed: &Governed,
    new: Policy,
    actor: &Operator,
    applying: &Applying<'_>,
    stop: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    let &Applying { rate, why, yes, json, proposal } = applying;
    let preview = preview::preview(&governed.db, &governed.settings, &new).await?;
    if !json {
        say(&shown(&preview, rate));
    }
    if !agreed(&preview, yes)? {
        bail!("not confirmed; nothing was changed");
    }
    if proposal.is_none() && active_policy::needs_approval(&governed.db, &new).await? {
        let tx = governed.db.begin().await?;
        let number = proposal::make(&tx, &new, rate, actor, why).await?;
        tx.commit().await?;
        let text = format!("proposal {number} waits for another operator: ops policy approve {number}; nothing was changed yet");
        answer(json, &json!({ "proposal": number }), &text)?;
        return Ok(ExitCode::SUCCESS);
    }
    // Rows may have changed while the operator read the preview.
    let preview = preview::preview(&governed.db, &governed.settings, &new).await?;
    let settings = governed.settings.with_policy(new.clone());
    // Before the commit: if a rung cannot be declared, the fleet must not start to need it.
    let broker = Broker::connect(&settings.amqp, "kyhan ops").await?;
    broker.declare(&settings.topology()).await?;
    database::rungs::remember(&governed.db, &settings.topology()).await?;
    let rollout = Rollout { policy: new, preview: &preview, rate, lead: LEAD, why, proposal };
    let applied = rollout::activate(governed, actor, rollout).await?;
    if !json {
        say(&format!("\npolicy {} is active", applied.number));
        for (kind, release) in applied.policy.releases() {
            say(&format!("{kind}: released from {} to {}", moment(release.from), moment(release.until())));
        }
    }
    let scheduled = schedule(&governed.db, &broker, &settings, &applied, Some(&preview), stop).await?;
    broker.close().await;
    report(json, &applied, scheduled)
}

/// For a policy that is already active: publishes the wake-ups that an interrupted `apply` left out.
async fn again(
    command: &ApplyPolicyCommand,
    governed: &Governed,
    applied: &Applied,
    stop: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    let since = format!("policy {} is active since {}, applied by {}", applied.number, moment(applied.at), one_line(&applied.by));
    if applied.scheduled_at.is_some() {
        remark(&format!("ops: {since}; every wake-up is published; nothing was changed"));
        return report(command.json.json, applied, 0);
    }
    remark(&format!("ops: {since}; publishing the missing wake-ups"));
    let broker = Broker::connect(&governed.settings.amqp, "kyhan ops").await?;
    broker.declare(&governed.settings.topology()).await?;
    let scheduled = schedule(&governed.db, &broker, &governed.settings, applied, None, stop).await?;
    broker.close().await;
    report(command.json.json, applied, scheduled)
}

fn agreed(preview: &PolicyPreview, yes: bool) -> anyhow::Result<bool> {
    let at_once: i64 = preview.kinds.iter().map(|kind| kind.at_once).sum();
    let amount: i64 = preview.kinds.iter().filter_map(|kind| kind.at_once_amount).sum();
    if amount > 0 {
        let amount = Dong(amount);
        let question = format!("This makes {at_once} rows due at once, and gradually takes up to {amount} from wallets.");
        return confirm::typed(&question, &amount.to_string(), yes);
    }
    confirm::confirmed(&format!("Apply this policy to the whole fleet? It makes {at_once} rows due at once."), yes)
}

/// Publishes the wake-ups, and returns how many.
async fn schedule(
    db: &DatabaseConnection,
    broker: &Broker,
    settings: &Settings,
    applied: &Applied,
    preview: Option<&PolicyPreview>,
    stop: &CancellationToken,
) -> anyhow::Result<u64> {
    const WHAT: &str = "waiting until the fleet has adopted the policy, then publishing wake-ups";
    let bar = match preview {
        Some(preview) => {
            let earlier: i64 = preview.kinds.iter().map(|kind| kind.earlier + kind.appear).sum();
            progress::bar(WHAT, earlier.unsigned_abs())?
        }
        None => progress::spinner(WHAT)?,
    };
    bar.tick();
    let mut made = 0;
    let whole = rollout::schedule(db, broker, settings, applied, stop, |count| {
        made += count as u64;
        bar.set_position(made);
    });
    let whole = whole.await;
    bar.finish_and_clear();
    let unmade = || {
        format!("policy {} is active, but some wake-ups are missing; apply the same file again to publish them", applied.number)
    };
    anyhow::ensure!(whole.with_context(unmade)?, unmade());
    Ok(made)
}

fn report(as_json: bool, applied: &Applied, scheduled: u64) -> anyhow::Result<ExitCode> {
    if as_json {
        let release = |(kind, release): (&str, &Release)| json!({ "kind": kind, "from": release.from, "until": release.until() });
        let releases: Vec<_> = applied.policy.releases().map(release).collect();
        let document = json!({ "number": applied.number, "releases": releases, "scheduled": scheduled });
        say(&serde_json::to_string_pretty(&document)?);
        return Ok(ExitCode::SUCCESS);
    }
    say(&format!("{scheduled} wake-ups were published for rows that are due earlier than before"));
    say("put the output of `ops policy show` into the kyhan.toml of every process, so that the files agree");
    Ok(ExitCode::SUCCESS)
}
