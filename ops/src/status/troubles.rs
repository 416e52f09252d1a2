//! What is wrong, one sentence each with what to do next. Open dead letters are listed. Pauses are not, nor the work that waits for
//! them.

use std::time::Duration;

use chrono::TimeDelta;
use shared::{
    database::active_policy,
    message::topology::{CANARY, Topology},
    settings::Settings,
};

use super::Status;
use crate::shown::moment;

/// How long an applied policy may publish no wake-ups although some are missing. After that, `ops policy apply` was interrupted.
const UNSCHEDULED_MAX: TimeDelta = TimeDelta::minutes(10);
/// How many rounds of the leader may be missing, and how much longer one may take.
const ROUNDS_MISSED_MAX: u32 = 3;
const ROUND_SLACK: Duration = Duration::from_secs(30);
/// How long events may wait in the outbox. A relay takes a burst of a million in less time.
const OUTBOX_WAIT_MAX_S: f64 = 60.0;

pub(super) fn troubles(status: &Status, settings: &Settings) -> Vec<String> {
    let topology = settings.topology();
    let mut troubles = Vec::new();
    if status.policy.is_none() {
        troubles.push(active_policy::NONE.to_owned());
    }
    missing(status, &mut troubles);
    unconsumed(status, &topology, &mut troubles);
    events(status, &mut troubles);
    let grace_s = settings.sweep.grace.as_secs_f64();
    rungs(status, &topology, grace_s, &mut troubles);
    leader(status, settings, &mut troubles);
    for kind in status.kinds.iter().filter(|kind| !is_paused(status, kind.kind)) {
        if let Some(due_for_s) = kind.due_for_s.filter(|due_for_s| *due_for_s > grace_s) {
            troubles.push(format!("{}: rows have been due for {due_for_s:.0} s and are not applied; see `ops audit`", kind.kind));
        }
    }
    if status.letters.open > 0 {
        troubles.push(format!("{} dead letters are open; see `ops dead list`", status.letters.open));
    }
    if let Some(policy) =
        status.policy.as_ref().filter(|policy| !policy.scheduled && status.at - policy.went_on_at > UNSCHEDULED_MAX)
    {
        troubles.push(format!(
            "policy {}: some wake-ups of rows that are due earlier are missing; apply the same file again",
            policy.number
        ));
    }
    if let Some(audited) = status.audited.as_ref().filter(|audited| audited.off > 0) {
        troubles.push(format!("the audit of {} found {} checks off; run `ops audit` again", moment(audited.at), audited.off));
    }
    troubles
}

/// The leader runs a round every `sweep.every_ms`. Rounds are longer on a database that has much to catch up with.
fn leader(status: &Status, settings: &Settings, troubles: &mut Vec<String>) {
    let leader = &status.leader;
    if leader.silent_s <= (settings.sweep.every * ROUNDS_MISSED_MAX + ROUND_SLACK).as_secs_f64() {
        return;
    }
    let because = match (&leader.holder, leader.holder_pid) {
        (Some(login), Some(pid)) => format!(
            "the login {login} (server process {pid}) holds the leader's lock; unless it is a worker's, end it: \
             SELECT pg_terminate_backend({pid})"
        ),
        _ => "no session holds the leader's lock; is a worker running?".to_owned(),
    };
    troubles.push(format!(
        "no leader has ended a round for {:.0} s, so nothing is swept, probed, sealed or published: {because}",
        leader.silent_s
    ));
}

fn missing(status: &Status, troubles: &mut Vec<String>) {
    let queues = status.lanes.iter().map(|lane| (&lane.queue, lane.messages));
    let queues = queues.chain(status.rungs.iter().map(|rung| (&rung.queue, rung.messages)));
    let queues = queues.chain(status.kept.iter().map(|kept| (&kept.queue, kept.messages)));
    for (queue, _) in queues.filter(|(_, messages)| messages.is_none()) {
        troubles.push(format!("{queue} is missing; run `ops topology declare`, then `ops rebuild`"));
    }
}

/// Workers consume the quarantine, the dead letters and all lanes except those of paused kinds. An empty queue without a consumer is
/// also wrong, because what falls due next is not applied.
fn unconsumed(status: &Status, topology: &Topology, troubles: &mut Vec<String>) {
    let paused: Vec<String> = status.pauses.iter().flat_map(|pause| topology.lanes(&pause.kind)).collect();
    let lanes = status.lanes.iter().map(|lane| (&lane.queue, lane.messages, lane.consumers));
    let kept = status.kept.iter().map(|kept| (&kept.queue, kept.messages, kept.consumers));
    let consumed: Vec<_> = lanes.chain(kept).filter(|(queue, ..)| !paused.contains(queue)).collect();
    let without = || consumed.iter().filter(|(.., consumers)| *consumers == Some(0));
    let waiting: u64 = without().filter_map(|(_, messages, _)| *messages).map(u64::from).sum();
    if !consumed.is_empty() && without().count() == consumed.len() {
        troubles.push(format!("no worker consumes any lane ({waiting} messages wait); is a worker running?"));
        return;
    }
    for (queue, messages, _) in without() {
        let messages = messages.unwrap_or_default();
        troubles.push(format!("no worker consumes {queue} ({messages} messages wait); see the workers' logs and /readyz"));
    }
}

fn events(status: &Status, troubles: &mut Vec<String>) {
    let outbox = &status.outbox;
    if outbox.oldest_s > OUTBOX_WAIT_MAX_S {
        troubles.push(format!(
            "{} events wait in the outbox, the oldest for {:.0} s; is a relay running?",
            outbox.events, outbox.oldest_s
        ));
    }
    if status.set_aside > 0 {
        troubles.push(format!("{} events are set aside and not scheduled; see `ops set-aside list`", status.set_aside));
    }
}

fn rungs(status: &Status, topology: &Topology, grace_s: f64, troubles: &mut Vec<String>) {
    let overdue = || status.rungs.iter().filter(|rung| rung.overdue_s > grace_s);
    // Canaries that wait in their lane have left their rungs, so an overdue one may be there.
    let canaries: Vec<String> = topology.lanes(CANARY).collect();
    let kept = status.lanes.iter().find(|lane| canaries.contains(&lane.queue) && lane.messages > Some(0));
    match kept {
        Some(lane) if overdue().next().is_some() => {
            troubles
                .push(format!("{} holds canaries that no worker has taken, so it is unknown whether the rungs move", lane.queue));
        }
        Some(_) => {}
        None => {
            troubles.extend(
                overdue().map(|rung| format!("{} has stalled: its canary is overdue by {:.0} s", rung.queue, rung.overdue_s)),
            );
        }
    }
}

fn is_paused(status: &Status, kind: &str) -> bool {
    status.pauses.iter().any(|pause| pause.kind == kind)
}
