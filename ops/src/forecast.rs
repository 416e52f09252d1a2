//! Forecast: for each kind, how many rows fall due on each coming day, and how much money they move, by the shared definition of *due*.
//! It reads the candidates of every kind in one snapshot and changes nothing.

use chrono::{DateTime, Days, NaiveDate, Utc};
use sea_orm::{AccessMode, DatabaseConnection, DatabaseTransaction, DbErr, FromQueryResult, IsolationLevel, TransactionTrait};
use serde::Serialize;
use shared::{
    database::{scalar, statement, transaction_began},
    domain::{due, money::sql_sum, policy::Policy, span::sql_day, task::Shown, tasks},
};

/// The forecast. The fields are those of `ops forecast --json`, so their names must not change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Forecast {
    /// The time of the snapshot.
    pub at: DateTime<Utc>,
    pub kinds: Vec<KindForecast>,
}

/// The forecast of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KindForecast {
    pub kind: &'static str,
    /// Due now, and not applied.
    pub overdue: Falling,
    /// The rest of today, and the days after it, in Asia/Ho_Chi_Minh.
    pub days: Vec<Day>,
    /// After the last of these days.
    pub later: Falling,
}

/// One day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Day {
    pub day: NaiveDate,
    #[serde(flatten)]
    pub falling: Falling,
}

/// The rows that fall due in one period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Falling {
    pub subjects: i64,
    /// The money at stake in đồng, by the current rows; `None`: the kind moves no money.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub amount: Option<i64>,
}

/// Counts the rows that fall due on `days` days, starting with today.
///
/// # Errors
/// Database errors.
pub async fn forecast(db: &DatabaseConnection, policy: &Policy, days: u16) -> Result<Forecast, DbErr> {
    let snapshot = db.begin_with_config(Some(IsolationLevel::RepeatableRead), Some(AccessMode::ReadOnly)).await?;
    let at = transaction_began(&snapshot).await?;
    let today = scalar(&snapshot, statement(&format!("SELECT {}", sql_day("now()")), [])).await?;
    let mut kinds = Vec::new();
    for task in tasks::ALL {
        kinds.push(kind(&snapshot, *task, policy, today, days).await?);
    }
    snapshot.rollback().await?;
    Ok(Forecast { at, kinds })
}

async fn kind(
    snapshot: &DatabaseTransaction,
    task: &dyn Shown,
    policy: &Policy,
    today: NaiveDate,
    days: u16,
) -> Result<KindForecast, DbErr> {
    /// The rows that fall due `on_day` days from today; -1: overdue.
    #[derive(FromQueryResult)]
    struct DueOnDay {
        on_day: i32,
        subjects: i64,
        amount: Option<i64>,
    }
    let none = Falling { subjects: 0, amount: task.stake().map(|_| 0) };
    let coming = (0..days).map(|at| Day { day: today + Days::new(at.into()), falling: none });
    let mut kind = KindForecast { kind: task.kind(), overdue: none, days: coming.collect(), later: none };
    let (stake, amount) = task.stake().map_or((String::new(), "NULL::bigint".to_owned()), |stake| {
        (format!("LEFT JOIN ({stake}) AS stake ON stake.id = falling.id"), sql_sum("stake.amount"))
    });
    let sql = format!(
        "SELECT falling.on_day, count(*) AS subjects, {amount} AS amount
           FROM (SELECT id, CASE WHEN due_at <= now() THEN -1 ELSE least({due_day} - {today}, $1) END AS on_day
                   FROM {due} AS due WHERE due_at IS NOT NULL) AS falling {stake}
          GROUP BY falling.on_day",
        due_day = sql_day("due_at"),
        today = sql_day("now()"),
        due = due::query(task, policy)
    );
    let rows = DueOnDay::find_by_statement(statement(&sql, [i32::from(days).into()])).all(snapshot).await?;
    for DueOnDay { on_day, subjects, amount } in rows {
        let falling = Falling { subjects, amount };
        match usize::try_from(on_day) {
            Err(_) => kind.overdue = falling,
            Ok(at) => match kind.days.get_mut(at) {
                Some(day) => day.falling = falling,
                None => kind.later = falling,
            },
        }
    }
    Ok(kind)
}
