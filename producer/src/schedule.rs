//! Schedule: computes packed wake-ups with stable ids from events and the policy. A pure function: the same events at the same time give
//! the same wake-ups.

use chrono::{DateTime, Utc};
use shared::{
    domain::{
        event::{Event, EventType},
        policy::Policy,
    },
    message::{
        outgoing::Outgoing,
        pack::{self, Packed, WaitingSubject},
        topology::Topology,
        wakeup::TraceContext,
    },
};
use uuid::Uuid;

/// The wake-ups that some events need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WakeupPlan {
    pub wakeups: Vec<Packed>,
    /// Events with a deadline beyond the end of the calendar; they have no wake-ups.
    pub beyond: Vec<Event>,
}

impl WakeupPlan {
    /// The wake-ups as messages.
    #[must_use]
    pub fn messages(&self, topology: &Topology) -> Vec<Outgoing> {
        self.wakeups.iter().map(|packed| Outgoing::of(packed, topology)).collect()
    }
}

/// The wake-ups that `events` need, seen from the time `now`. An event without a policy line needs none.
#[must_use]
pub fn plan(
    events: &[Event],
    now: DateTime<Utc>,
    policy: &Policy,
    topology: &Topology,
    pack_max: usize,
    trace: &TraceContext,
) -> WakeupPlan {
    let mut waiting = Vec::with_capacity(events.len() * 2);
    let mut beyond = Vec::new();
    for event in events {
        let before = waiting.len();
        for line in policy.lines_on(event.event_type) {
            let Some(due_at) = line.after.after(event.occurred_at) else {
                waiting.truncate(before);
                beyond.push(*event);
                break;
            };
            waiting.push(WaitingSubject { kind: line.task, subject: event.subject, due_at, wait: due_at - now, attempt: 0 });
        }
    }
    WakeupPlan { wakeups: pack::pack(waiting, topology.ladder(), topology.shards(), pack_max, trace), beyond }
}

/// An event that happens now, with a new id.
#[must_use]
pub fn event(event_type: EventType, subject: Uuid) -> Event {
    Event { id: Uuid::new_v4(), event_type, subject, occurred_at: now() }
}

/// The clock of this process.
#[expect(clippy::disallowed_methods, reason = "a caller without a database: this clock only wakes, the recheck decides")]
pub(crate) fn now() -> DateTime<Utc> {
    std::time::SystemTime::now().into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use shared::domain::policy::PolicyLine;

    use super::*;

    fn line(on: EventType, task: &'static str, after: &str) -> PolicyLine {
        PolicyLine { on, task, after: after.parse().unwrap() }
    }

    fn policy() -> Policy {
        Policy::new(vec![
            line(EventType::OrderShipped, "confirm-receipt", "14d"),
            line(EventType::OrderShipped, "collect-arrears", "24h"),
        ])
        .unwrap()
    }

    fn shipped(count: u128, occurred_at: DateTime<Utc>) -> Vec<Event> {
        (0..count)
            .map(|n| Event {
                id: Uuid::from_u128(n),
                event_type: EventType::OrderShipped,
                subject: Uuid::from_u128(n),
                occurred_at,
            })
            .collect()
    }

    fn planned(events: &[Event], now: DateTime<Utc>) -> WakeupPlan {
        let topology = Topology::new("kyhan", 1, &[Duration::from_secs(1)], &policy());
        plan(events, now, &policy(), &topology, 128, &TraceContext::default())
    }

    #[test]
    fn a_shipped_order_waits_two_weeks_for_its_receipt_and_a_day_for_its_arrears() {
        let now: DateTime<Utc> = "2026-11-24T00:00:00Z".parse().unwrap();
        let plan = planned(&shipped(1, now), now);
        let due: Vec<_> = plan.wakeups.iter().map(|p| (p.wakeup.kind, p.wakeup.due_at.to_rfc3339())).collect();
        assert_eq!(
            due,
            [("collect-arrears", "2026-11-25T00:00:00+00:00".into()), ("confirm-receipt", "2026-12-08T00:00:00+00:00".into())]
        );
    }

    #[test]
    fn a_thousand_orders_of_one_sale_day_are_a_handful_of_messages() {
        let now = "2026-11-24T00:00:00Z".parse().unwrap();
        assert_eq!(planned(&shipped(1000, now), now).wakeups.len(), 2 * 8);
    }

    #[test]
    fn an_event_without_a_line_needs_nothing_and_one_beyond_the_calendar_is_named() {
        let now: DateTime<Utc> = "2026-11-24T00:00:00Z".parse().unwrap();
        let mut events = shipped(2, now);
        events[0].event_type = EventType::OrderReceived;
        events[1].occurred_at = DateTime::<Utc>::MAX_UTC;
        let plan = planned(&events, now);
        assert_eq!((plan.wakeups, plan.beyond), (vec![], vec![events[1]]));
    }
}
