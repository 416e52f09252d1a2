//! The list of scenarios, in the order of the report. A scenario is a claim, its settings and servers, and the fault.

use std::time::Duration;

use anyhow::Result;
use futures::future::BoxFuture;
use rand::{SeedableRng, rngs::StdRng};

use crate::{
    changes, cluster, disk,
    harness::{Ended, FaultHarness, ScenarioSettings, Setting},
    hostile, messages, network, nodes, oddities, patience, postgres, rabbitmq,
    report::{ScenarioResult, ScenarioVerdict},
    worker,
};

/// The body of a scenario: starts the fleet, makes the population, and disturbs both. All scenarios share the same end.
pub type ScenarioRun<'a> = BoxFuture<'a, Result<()>>;

pub struct Scenario {
    pub name: &'static str,
    pub disturbs: Disturbs,
    pub terms: fn() -> ScenarioSettings,
    /// Why the scenario cannot run on this machine, if so.
    pub lacks: fn() -> Option<String>,
    pub run: for<'a> fn(&'a FaultHarness, StdRng) -> ScenarioRun<'a>,
}

/// Which shared servers a scenario disturbs. No scenario that needs them may run at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbs {
    Nothing,
    Postgres,
    RabbitMq,
    /// Only its own RabbitMQ cluster; it shares PostgreSQL.
    ItsCluster,
}

impl Scenario {
    const fn new(name: &'static str, run: for<'a> fn(&'a FaultHarness, StdRng) -> ScenarioRun<'a>) -> Self {
        Self { name, disturbs: Disturbs::Nothing, terms: ScenarioSettings::default, lacks: || None, run }
    }

    const fn disturbs(self, disturbs: Disturbs) -> Self {
        Self { disturbs, ..self }
    }

    const fn unless(self, lacks: fn() -> Option<String>) -> Self {
        Self { lacks, ..self }
    }

    const fn on(self, terms: fn() -> ScenarioSettings) -> Self {
        Self { terms, ..self }
    }
}

pub const ALL: &[Scenario] = &[
    Scenario::new("nothing_is_disturbed", worker::left_alone),
    Scenario::new("workers_are_killed_ten_times", worker::killed_ten_times),
    Scenario::new("a_worker_is_killed_between_commit_and_ack", worker::killed_between_commit_and_ack).on(worker::one_consumer),
    Scenario::new("a_worker_is_killed_between_confirm_and_ack", worker::killed_between_confirm_and_ack).on(worker::one_consumer),
    Scenario::new("postgres_is_restarted", postgres::restarted).disturbs(Disturbs::Postgres),
    Scenario::new("postgres_is_stopped_for_a_while", postgres::stopped).disturbs(Disturbs::Postgres),
    Scenario::new("database_sessions_are_cut_mid_statement", postgres::cut_mid_statement),
    Scenario::new("other_clients_cause_deadlocks_and_lock_timeouts", postgres::locked_by_others).on(postgres::impatient),
    Scenario::new("the_databases_disk_is_full", postgres::disk_full)
        .on(postgres::small_disk)
        .unless(disk::lacks)
        .disturbs(Disturbs::Postgres),
    Scenario::new("rabbitmq_is_restarted", rabbitmq::restarted).disturbs(Disturbs::RabbitMq),
    Scenario::new("rabbitmq_is_killed", rabbitmq::killed).disturbs(Disturbs::RabbitMq),
    Scenario::new("rabbitmq_is_stopped_for_a_while", rabbitmq::stopped).disturbs(Disturbs::RabbitMq),
    Scenario::new("rabbitmq_is_wiped_and_rebuilt", rabbitmq::wiped_and_rebuilt)
        .on(rabbitmq::without_sweep)
        .disturbs(Disturbs::RabbitMq),
    Scenario::new("rabbitmq_is_short_of_memory_and_blocks_publishers", patience::blocks_publishers)
        .on(patience::impatient)
        .unless(patience::lacks)
        .disturbs(Disturbs::RabbitMq),
    Scenario::new("rabbitmq_loses_patience_with_consumers_that_hold", patience::loses_patience)
        .on(patience::long_hold)
        .unless(patience::lacks)
        .disturbs(Disturbs::Postgres),
    Scenario::new("a_clusters_leader_is_killed_in_a_burst", nodes::leader_killed_in_a_burst)
        .on(nodes::three)
        .unless(cluster::lacks)
        .disturbs(Disturbs::ItsCluster),
    Scenario::new("a_clusters_node_is_partitioned_away", nodes::node_partitioned_away)
        .on(nodes::three)
        .unless(cluster::lacks)
        .disturbs(Disturbs::ItsCluster),
    Scenario::new("the_network_to_rabbitmq_is_flaky", network::flaky_to_rabbitmq),
    Scenario::new("the_network_to_postgres_is_flaky", network::flaky_to_postgres),
    Scenario::new("every_message_comes_twice_and_out_of_order", messages::twice_and_out_of_order),
    Scenario::new("one_percent_is_garbage", messages::garbage_mixed_in),
    Scenario::new("a_publisher_is_hostile", hostile::publisher).on(hostile::patient),
    Scenario::new("some_rows_report_outages", oddities::rows_report_outages),
    Scenario::new("queues_are_limited_by_a_policy", oddities::queues_are_limited),
    Scenario::new("passwords_are_rotated", oddities::passwords_are_rotated),
    Scenario::new("workers_clocks_are_an_hour_wrong", messages::clocks_an_hour_wrong).unless(messages::lacks_faketime),
    Scenario::new("the_policy_is_lengthened_while_messages_wait", changes::policy_lengthened).on(changes::begins_middling),
    Scenario::new("the_policy_is_shortened_while_messages_wait", changes::policy_shortened).on(changes::begins_long),
    Scenario::new("the_whole_fleet_is_restarted_under_load", changes::rolling_restart),
    Scenario::new("all_tasks_at_once_beside_an_order_system", changes::order_system_at_work),
];

/// The timeout of a scenario, so that one that hangs does not block the others.
const LONGEST: Duration = Duration::from_secs(420);

impl Scenario {
    /// Runs the scenario on its own harness, which is always removed. Its random numbers depend only on the seed and its name.
    pub async fn run(&self, setting: &Setting, interrupted: &tokio_util::sync::CancellationToken) -> ScenarioResult {
        let began = tokio::time::Instant::now();
        let verdict = match (self.lacks)() {
            Some(why) => ScenarioVerdict::NotRun(why),
            None => match self.attempt(setting, interrupted).await {
                Ok(ended) => ScenarioVerdict::Counted(ended),
                Err(error) => ScenarioVerdict::Broken(format!("{error:#}")),
            },
        };
        ScenarioResult { scenario: self.name, verdict, took: began.elapsed() }
    }

    async fn attempt(&self, setting: &Setting, interrupted: &tokio_util::sync::CancellationToken) -> Result<Ended> {
        let rng = StdRng::seed_from_u64(setting.seed ^ hash(self.name));
        let terms = (self.terms)();
        let harness = tokio::select! {
            () = interrupted.cancelled() => anyhow::bail!("interrupted"),
            harness = FaultHarness::set(setting, self.name, &terms) => harness?,
        };
        let ended = tokio::select! {
            () = interrupted.cancelled() => Err(anyhow::anyhow!("interrupted")),
            () = tokio::time::sleep(LONGEST) => Err(anyhow::anyhow!("not over after {} s", LONGEST.as_secs())),
            ended = async {
                (self.run)(&harness, rng).await?;
                harness.finish().await
            } => ended,
        };
        let folder = harness.folder.clone();
        let cleared = harness.clear().await;
        let ended = ended?;
        cleared?;
        if ended.counts.is_right() {
            let _ = std::fs::remove_dir_all(folder);
        }
        Ok(ended)
    }
}

/// FNV-1a: the same on every machine and with every compiler.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
