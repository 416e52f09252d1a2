//! What a task is: its candidates, the moments from which it counts, and the statement that rechecks and writes at once; and, apart from
//! that, what operators are shown of it.

use super::{event::EventType, span::Span};

/// A kind of work, one file in `tasks/` each: what the fleet needs of it.
pub trait Task: Send + Sync {
    /// The name on the wire: part of queue names, messages and `kyhan.toml`. It never changes.
    fn kind(&self) -> &'static str;

    /// The table whose `id` is the task's subject.
    fn table(&self) -> &'static str;

    /// The events from whose moments the task counts.
    fn counts_from(&self) -> &'static [EventType];

    /// SQL for every row that the task could apply to: `id`, and per event of [`Task::counts_from`] the moment it counts
    /// from, as a column of the event's name (null where there is none). *Due* follows from it and the policy: see [`super::due`].
    fn candidates(&self) -> &'static str;

    /// The shortest span that a policy may give it, where something promises one.
    fn shortest(&self) -> Option<Span> {
        None
    }

    /// A column of the candidates, with an index of its own, that none of their moments precedes: by it the sweep passes over rows that
    /// cannot be due. `None` where there is none, or where the task counts from one such column anyhow.
    fn not_before(&self) -> Option<&'static str> {
        None
    }

    /// How many batches one worker applies at a time, however many consumers a lane has. `None`: as many as that. Where subjects share
    /// rows that the effect locks, as orders their customer's wallet, batches wait for each other, and more of them wait longer.
    fn batches_at_once(&self) -> Option<u16> {
        None
    }

    /// How the subjects' rows are locked: as the programs that change them would.
    fn lock(&self) -> &'static str {
        "FOR NO KEY UPDATE"
    }

    /// Statements (`$1`: ids) run after the subjects' rows are locked and before the effect, for what else must be locked.
    fn locks(&self) -> Vec<String> {
        Vec::new()
    }

    /// Common table expressions that write the effect and its record, to follow `asked` (`id`, `wakeup_id`: everything that is asked
    /// about) and `due` (`id`, `wakeup_id`, `due_at`: the candidates among it, rechecked). The last one is `outcome`, one row for
    /// each of `asked`: `id`, `applied`, and `due_at` (null: no candidate).
    fn effect(&self, terms: &Terms) -> String;
}

/// What operators are shown of a kind, and what `ops audit` checks.
pub trait Shown: Task {
    /// The column of the table by which people name a subject, unique in it; `None` where only its id does.
    fn known_by(&self) -> Option<&'static str> {
        None
    }

    /// In words, which rows are candidates: `ops explain` prints it for a row that is none.
    fn applies_to(&self) -> &'static str;

    /// SQL for the money that the effect would move, were it applied now: `id` and `amount` in đồng, one row for each candidate that
    /// costs somebody something, and perhaps for other rows. `None`: the effect moves no money.
    fn stake(&self) -> Option<&'static str> {
        None
    }

    /// SQL (`$1`: the subject's id) for what operators may see of a subject: one `jsonb`, or no row where there is no subject. It is
    /// an object of three objects: `values`, `moments` and `money`, in đồng. Who the customer is, the product and where it is bought
    /// are not in it (policy points 6 and 7).
    fn shown(&self) -> &'static str;

    /// Where its effects are recorded, one row each, so that what happens now can be counted.
    fn recorded(&self) -> Recorded;

    /// What `ops audit` counts to compare this kind's effects with their records, both ways.
    fn checks(&self) -> &'static [Check];
}

/// SQL by which the conformance suite makes, spoils and counts subjects of a kind. No production binary refers to it, so none carries it.
pub trait Exampled: Shown {
    fn examples(&self) -> Examples;
}

/// One comparison of effects and records. It counts only what can have no honest cause: an operator has to be able to rely on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// What is counted, in a few words; a stable name in `ops audit --json`.
    pub name: &'static str,
    /// One statement without parameters that only reads and returns one `bigint`: 0 when all is well.
    pub sql: &'static str,
}

/// Rows of a table whose `id` grows with each: the newest are found from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    pub table: &'static str,
    /// An SQL condition on its columns: which of its rows are this kind's.
    pub rows: &'static str,
}

/// What an effect is written from: see [`super::policy::Policy::terms`].
#[derive(Clone, Debug)]
pub struct Terms {
    /// How far below zero a charge may take a wallet, as the lowest balance in đồng; `None`: no floor.
    pub wallet_floor: Option<i64>,
    /// The events from which the policy makes something follow.
    pub wanted: Vec<EventType>,
    /// How long after each event's moment the policy lets this task fall due.
    pub spans: Vec<(EventType, Span)>,
}

impl Terms {
    /// SQL literal: whether an effect that causes `event` has to raise it.
    #[must_use]
    pub fn wants(&self, event: EventType) -> &'static str {
        if self.wanted.contains(&event) { "true" } else { "false" }
    }

    /// How long after the event's moment the task falls due, if ever.
    #[must_use]
    pub fn span(&self, event: EventType) -> Option<Span> {
        self.spans.iter().find(|(other, _)| *other == event).map(|(_, span)| *span)
    }
}

/// See [`Exampled::examples`]. Each is one statement with `$1`: the subject's id. The customer of all examples is
/// [`EXAMPLE_CUSTOMER`].
pub struct Examples {
    /// Makes a subject for which the effect is long due.
    pub due: &'static str,
    /// Changes it so that the effect must not happen any more.
    pub moot: &'static str,
    /// Counts the effect and each of its records: all 0 before, all 1 after.
    pub effects: &'static str,
}

/// The customer whom [`Examples`] belong to; it must exist.
pub const EXAMPLE_CUSTOMER: uuid::Uuid = uuid::Uuid::from_u128(0x0000_0000_0000_4000_8000_0000_0000_0001);

/// A statement that takes locks and returns nothing worth sending.
#[must_use]
pub(crate) fn locked(select: &str) -> String {
    format!("SELECT count(*) FROM ({select}) AS locked")
}
