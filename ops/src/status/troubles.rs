//! What an operator has to do something about, in words. A pause is no trouble, and what waits because of it is none either; open dead
//! letters are one.

use chrono::TimeDelta;
use shared::{
    message::topology::{CANARY, Topology},
    settings::Settings,
};

use super::Status;
use crate::shown::moment;

/// For how long no wake-up of a policy may be made while some are to be; then whoever applied it was interrupted.
const UNSCHEDULED_MAX: TimeDelta = TimeDelta::minutes(10);
/// A relay takes events at once, and a burst of a million in less than that; for longer they wait only where no relay works.
const OUTBOX_WAIT_MAX_S: f64 = 60.0;

pub(super) fn troubles(status: &Status, settings: &Settings) -> Vec<String> {
    let topology = settings.topology();
    let mut troubles = Vec::new();
    missing(status, &mut troubles);
    unconsumed(status, &topology, &mut troubles);
    events(status, &mut troubles);
    let grace_s = settings.sweep.grace.as_secs_f64();
    rungs(status, &topology, grace_s, &mut troubles);
    for kind in status.kinds.iter().filter(|kind| !is_paused(status, kind.kind)) {
        if let Some(due_for_s) = kind.due_for_s.filter(|due_for_s| *due_for_s > grace_s) {
            troubles.push(format!("{}: something is due for {due_for_s:.0} s and not applied; see `ops audit`", kind.kind));
        }
    }
    if status.letters.open > 0 {
        troubles.push(format!("{} dead letters are open; see `ops dead list`", status.letters.open));
    }
    if let Some(policy) =
        status.policy.as_ref().filter(|policy| !policy.scheduled && status.at - policy.went_on_at > UNSCHEDULED_MAX)
    {
        troubles.push(format!(
            "policy {}: not all wake-ups are made of what it made due earlier; apply the same file again",
            policy.number
        ));
    }
    if let Some(audited) = status.audited.as_ref().filter(|audited| audited.off > 0) {
        troubles.push(format!("the audit of {} found {} checks off; run `ops audit` again", moment(audited.at), audited.off));
    }
    troubles
}

fn missing(status: &Status, troubles: &mut Vec<String>) {
    let queues = status.lanes.iter().map(|lane| (&lane.queue, lane.messages));
    let queues = queues.chain(status.rungs.iter().map(|rung| (&rung.queue, rung.messages)));
    let queues = queues.chain(status.kept.iter().map(|kept| (&kept.queue, kept.messages)));
    for (queue, _) in queues.filter(|(_, messages)| messages.is_none()) {
        troubles.push(format!("{queue} is missing; run `ops topology declare`, then `ops rebuild`"));
    }
}

/// Every worker consumes every lane, the quarantine and the dead letters, but no lane of a paused kind. An empty queue without a consumer is
/// wrong, too: what falls due next is not applied.
fn unconsumed(status: &Status, topology: &Topology, troubles: &mut Vec<String>) {
    let paused: Vec<String> = status.pauses.iter().flat_map(|pause| topology.lanes(&pause.kind)).collect();
    let lanes = status.lanes.iter().map(|lane| (&lane.queue, lane.messages, lane.consumers));
    let kept = status.kept.iter().map(|kept| (&kept.queue, kept.messages, kept.consumers));
    let consumed: Vec<_> = lanes.chain(kept).filter(|(queue, ..)| !paused.contains(queue)).collect();
    let without = || consumed.iter().filter(|(.., consumers)| *consumers == Some(0));
    let waiting: u64 = without().filter_map(|(_, messages, _)| *messages).map(u64::from).sum();
    if !consumed.is_empty() && without().count() == consumed.len() {
        troubles.push(format!("no worker consumes any lane, where {waiting} messages wait; is a worker running?"));
        return;
    }
    for (queue, messages, _) in without() {
        let messages = messages.unwrap_or_default();
        troubles.push(format!("no worker consumes {queue}, where {messages} messages wait; see the workers' logs and /readyz"));
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
    // Canaries that nobody has taken from their lane have left their rungs.
    let canaries: Vec<String> = topology.lanes(CANARY).collect();
    let kept = status.lanes.iter().find(|lane| canaries.contains(&lane.queue) && lane.messages > Some(0));
    match kept {
        Some(lane) if overdue().next().is_some() => {
            troubles.push(format!("{} holds canaries that no worker has noted; whether the rungs move is not known", lane.queue));
        }
        Some(_) => {}
        None => {
            troubles.extend(
                overdue().map(|rung| format!("{} does not move: its canary is overdue by {:.0} s", rung.queue, rung.overdue_s)),
            );
        }
    }
}

fn is_paused(status: &Status, kind: &str) -> bool {
    status.pauses.iter().any(|pause| pause.kind == kind)
}
