//! `ops policy apply`: another policy is put in force.

use std::{num::NonZeroU32, path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};
use clap::ValueHint;
use ops::{
    actor::Actor,
    preview::{self, Preview},
    rollout::{self, LEAD, Rollout},
    shown::{moment, one_line},
};
use sea_orm::DatabaseConnection;
use serde_json::json;
use shared::{
    broker::Broker,
    database::{
        self,
        active_policy::{self, Applied, Governed},
    },
    domain::{money::Dong, policy::Release},
    process::cli::say,
    settings::Settings,
};
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        confirm, governed,
        options::{Json, Why, Yes},
        progress,
    },
    RATE, policy_of,
    preview::shown,
};

#[derive(clap::Args)]
#[command(after_help = "\
FILE is a kyhan.toml, as for `ops policy preview`. Its policy is in force in this database from the moment of its commit on, whatever \
lies in the files of the workers and relays: they learn of it within seconds and begin anew by it, without a restart. The other settings \
of FILE are checked and not used.

What it makes due later, or never, is so at once. What it makes due at once is released evenly at --rate, each row at a moment of its \
own and never later than it was due before; what falls due in the days to come does so when it does. Their wake-ups are made anew. \
Nobody has to wait for the release, and it needs nobody: it is part of the policy.

Interrupted, the same command goes on. To take a policy back, apply the one before: what is not released by then is not. To release it \
more slowly, take it back, and apply it once more.

Every process has to run a version that knows of this: an older one goes by its file, whatever was applied.

Examples:
  ops policy apply kyhan-new.toml --why 'ten days are enough, says the board'
  ops policy apply kyhan-new.toml --why 'ten days are enough' --rate 5 --yes --json

Exit codes: 0 it is in force and every wake-up is made; 1 not so, which is said; 2 FILE cannot hold, or nobody could be asked.")]
pub struct Apply {
    /// A kyhan.toml with the other policy
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    #[command(flatten)]
    pub why: Why,
    /// How many of a kind are released a second
    #[arg(long, value_name = "SUBJECTS", default_value_t = RATE)]
    pub rate: NonZeroU32,
    #[command(flatten)]
    pub yes: Yes,
    #[command(flatten)]
    pub json: Json,
}

pub async fn apply(command: Apply, settings: &Settings, actor: &Actor, stop: &CancellationToken) -> anyhow::Result<ExitCode> {
    let new = policy_of(&command.file)?;
    let governed = governed(settings).await?;
    if new.says_the_same(&governed.settings.policy)
        && let Some(applied) = active_policy::read(&governed.db).await?
    {
        return again(&command, &governed, &applied, stop).await;
    }
    if governed.settings.policy.number().is_none() {
        eprintln!("ops: {FIRST}");
    }
    let preview = preview::preview(&governed.db, &governed.settings, &new).await?;
    if !command.json.json {
        say(&shown(&preview, command.rate));
    }
    if !agreed(&preview, command.yes.yes)? {
        bail!("nothing was changed");
    }
    // What was shown may have been read for long.
    let preview = preview::preview(&governed.db, &governed.settings, &new).await?;
    let settings = governed.settings.with_policy(new.clone());
    // Before the commit: a rung that cannot be had must not be waited for by a fleet that needs it.
    let broker = Broker::connect(&settings.amqp, "kyhan ops").await?;
    broker.declare(&settings.topology()).await?;
    database::rungs::remember(&governed.db, &settings.topology()).await?;
    let rollout = Rollout { policy: new, preview: &preview, rate: command.rate, lead: LEAD, why: &command.why.why };
    let applied = rollout::put_in_force(&governed, actor, rollout).await?;
    if !command.json.json {
        say(&format!("\npolicy {} is in force", applied.number));
        for (kind, release) in applied.policy.releases() {
            say(&format!("{kind}: released from {} to {}", moment(release.from), moment(release.until())));
        }
    }
    let scheduled = schedule(&governed.db, &broker, &settings, &applied, Some(&preview), stop).await?;
    broker.close().await;
    told(&command, &applied, scheduled)
}

/// What whoever applies the first policy has to know.
const FIRST: &str = "no policy was applied to this database yet: the fleet goes by its files, and what is said here is said of a fleet that goes by \
                     the settings of this process. Name another file of settings with --config where they differ";

/// It is in force already; perhaps whoever applied it was interrupted.
async fn again(command: &Apply, governed: &Governed, applied: &Applied, stop: &CancellationToken) -> anyhow::Result<ExitCode> {
    let since =
        format!("policy {} is in force since {}, applied by {}", applied.number, moment(applied.at), one_line(&applied.by));
    if applied.scheduled_at.is_some() {
        eprintln!("ops: {since}; every wake-up is made; nothing was changed");
        return told(command, applied, 0);
    }
    eprintln!("ops: {since}; going on with its wake-ups");
    let broker = Broker::connect(&governed.settings.amqp, "kyhan ops").await?;
    broker.declare(&governed.settings.topology()).await?;
    let scheduled = schedule(&governed.db, &broker, &governed.settings, applied, None, stop).await?;
    broker.close().await;
    told(command, applied, scheduled)
}

fn agreed(preview: &Preview, yes: bool) -> anyhow::Result<bool> {
    let at_once: i64 = preview.kinds.iter().map(|kind| kind.at_once).sum();
    let amount: i64 = preview.kinds.iter().filter_map(|kind| kind.at_once_amount).sum();
    if amount > 0 {
        let amount = Dong(amount);
        let question = format!("This makes {at_once} rows due at once, and takes up to {amount} from wallets, little by little.");
        return confirm::typed(&question, &amount.to_string(), yes);
    }
    confirm::confirmed(&format!("Put this policy in force across the fleet? It makes {at_once} rows due at once."), yes)
}

/// Makes the wake-ups; how many.
async fn schedule(
    db: &DatabaseConnection,
    broker: &Broker,
    settings: &Settings,
    applied: &Applied,
    preview: Option<&Preview>,
    stop: &CancellationToken,
) -> anyhow::Result<u64> {
    const WHAT: &str = "waiting until the fleet has the policy, then making wake-ups";
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
    let unmade =
        || format!("policy {} is in force, but not all wake-ups are made; apply the same file again to go on", applied.number);
    anyhow::ensure!(whole.with_context(unmade)?, unmade());
    Ok(made)
}

fn told(command: &Apply, applied: &Applied, scheduled: u64) -> anyhow::Result<ExitCode> {
    if command.json.json {
        let release = |(kind, release): (&str, &Release)| json!({ "kind": kind, "from": release.from, "until": release.until() });
        let releases: Vec<_> = applied.policy.releases().map(release).collect();
        let told = json!({ "number": applied.number, "releases": releases, "scheduled": scheduled });
        say(&serde_json::to_string_pretty(&told)?);
        return Ok(ExitCode::SUCCESS);
    }
    say(&format!("{scheduled} wake-ups were made of what is due earlier than it was"));
    say("lay `ops policy show` into the kyhan.toml of every process, so that the files say what holds");
    Ok(ExitCode::SUCCESS)
}
