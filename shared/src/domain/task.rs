//! A task: its candidates, the moments from which it counts, and the statement that rechecks and writes at once. A separate
//! trait covers what operators see of it.

use super::{event::EventType, span::Span};

/// A kind of work, one file each in `tasks/`. This trait is what the fleet needs of it.
pub trait Task: Send + Sync {
    /// The name on the wire: part of queue names, messages and `kyhan.toml`. It never changes.
    fn kind(&self) -> &'static str;

    /// The table whose `id` is the task's subject.
    fn table(&self) -> &'static str;

    /// The events from whose moments the task counts.
    fn counts_from(&self) -> &'static [EventType];

    /// SQL for every row to which the task could apply: `id`, and for each event of [`Task::counts_from`] the moment from
    /// which it counts, as a column named after the event (null if there is none). *Due* follows from it and the policy: see
    /// [`super::due`].
    fn candidates(&self) -> &'static str;

    /// The shortest span that a policy may set, if a minimum is promised.
    fn shortest(&self) -> Option<Span> {
        None
    }

    /// A column of the candidates, with an index of its own, that none of their moments precedes: the sweep uses it to skip
    /// rows that cannot be due. `None` if there is none, or if the task already counts from one such column alone.
    fn not_before(&self) -> Option<&'static str> {
        None
    }

    /// How many batches one worker applies at a time, regardless of how many consumers a lane has. `None`: one per consumer.
    /// If subjects share rows that the effect locks, as orders share their customer's wallet, batches wait for each other,
    /// and more of them wait longer.
    fn batches_at_once(&self) -> Option<u16> {
        None
    }

    /// How the subjects' rows are locked: with the lock that programs which change them take.
    fn lock(&self) -> &'static str {
        "FOR NO KEY UPDATE"
    }

    /// Statements (`$1`: ids) that create or lock further rows. They run after the subjects' rows are locked and before the effect. One
    /// that locks ends its locking clause with `skip`, which is empty or `SKIP LOCKED`, and returns a row: `busy`, the ids of the
    /// subjects for which it did not get every lock, or null.
    fn locks(&self, skip: &str) -> Vec<String> {
        let _ = skip;
        Vec::new()
    }

    /// Common table expressions that write the effect and its record. They follow `asked` (`id`, `wakeup_id`: all subjects to
    /// recheck) and `due` (`id`, `wakeup_id`, `due_at`: the candidates among them, rechecked). The last one is `outcome`, one
    /// row for each of `asked`: `id`, `applied`, and `due_at` (null: not a candidate).
    fn effect(&self, terms: &EffectTerms) -> String;
}

/// What operators see of a kind, and what `ops audit` checks.
pub trait Shown: Task {
    /// The column, unique in the table, by which people name a subject; `None` if they use its id.
    fn known_by(&self) -> Option<&'static str> {
        None
    }

    /// In words, which rows are candidates: `ops explain` prints it for a row that is not one.
    fn applies_to(&self) -> &'static str;

    /// SQL for the money that the effect would move if it were applied now: `id` and `amount` in đồng, one row for each
    /// candidate that would cost its customer money, and perhaps for other rows. `None`: the effect moves no money.
    fn stake(&self) -> Option<&'static str> {
        None
    }

    /// SQL (`$1`: the subject's id) for what operators may see of a subject: one `jsonb`, or no row if the subject does not
    /// exist. It is an object of three objects: `values`, `moments`, and `money` in đồng. It excludes the customer, the
    /// product, and where the product is bought (policy points 6 and 7).
    fn shown(&self) -> &'static str;

    /// Where its effects are recorded, one row each, so that they can be counted.
    fn recorded(&self) -> RecordedRows;

    /// The counts with which `ops audit` compares this kind's effects and their records, in both directions.
    fn checks(&self) -> &'static [Check];
}

/// SQL with which the conformance suite creates, invalidates and counts subjects of a kind. No production binary refers to
/// it, so none contains it.
pub trait Exampled: Shown {
    fn examples(&self) -> Examples;
}

/// One comparison of effects and records. It counts only rows without a legitimate cause, so that operators can rely on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// What is counted, in a few words; a stable name in `ops audit --json`.
    pub name: &'static str,
    /// One read-only statement without parameters that returns one `bigint`: 0 if all is well.
    pub sql: &'static str,
}

/// Rows of a table with an ascending `id`, so that the newest are found from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordedRows {
    pub table: &'static str,
    /// An SQL condition on its columns that selects this kind's rows.
    pub rows: &'static str,
}

/// The values of a policy that an effect's SQL depends on: see [`super::policy::Policy::terms`].
#[derive(Clone, Debug)]
pub struct EffectTerms {
    /// The lowest balance in đồng to which a charge may take a wallet; `None`: no floor.
    pub wallet_floor: Option<i64>,
    /// The events that wake any task under the policy.
    pub wanted: Vec<EventType>,
    /// How long after each event's moment the task falls due under the policy.
    pub spans: Vec<(EventType, Span)>,
}

impl EffectTerms {
    /// SQL literal: whether an effect that causes `event` has to raise it.
    #[must_use]
    pub fn wants(&self, event: EventType) -> &'static str {
        if self.wanted.contains(&event) { "true" } else { "false" }
    }

    /// How long after the event's moment the task falls due; `None`: never.
    #[must_use]
    pub fn span(&self, event: EventType) -> Option<Span> {
        self.spans.iter().find(|(other, _)| *other == event).map(|(_, span)| *span)
    }
}

/// See [`Exampled::examples`]. Each is one statement with `$1`: the subject's id. All examples belong to
/// [`EXAMPLE_CUSTOMER`].
pub struct Examples {
    /// Creates a subject whose effect is long overdue.
    pub due: &'static str,
    /// Changes it so that the effect must no longer happen.
    pub moot: &'static str,
    /// Counts the effect and each of its records: all 0 before, all 1 after.
    pub effects: &'static str,
}

/// The customer of all [`Examples`]; it must exist.
pub const EXAMPLE_CUSTOMER: uuid::Uuid = uuid::Uuid::from_u128(0x0000_0000_0000_4000_8000_0000_0000_0001);
