//! The report: per situation the expectation, the result and the lateness, as text and as JSON.

use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use sea_orm::{ConnectionTrait, DatabaseConnection};
use serde_json::json;
use shared::{database::statement, process::cli::say};

use crate::situations::{CheckedRows, DemoSituation, SITUATIONS};

pub struct DemoReport {
    lines: Vec<SituationResult>,
    /// Over all rows, in milliseconds.
    lateness: Lateness,
    ledger_sum: i64,
    accounts_differing: i64,
    dead_letters: i64,
}

struct SituationResult {
    situation: &'static DemoSituation,
    found: CheckedRows,
    lateness: Lateness,
}

/// Lateness in milliseconds; `None` if nothing was to be done.
#[derive(Clone, Copy)]
struct Lateness {
    p50: Option<f64>,
    p99: Option<f64>,
    max: Option<f64>,
}

impl DemoReport {
    pub async fn make(db: &DatabaseConnection, dead_letters: i64) -> Result<Self> {
        let mut lines = Vec::new();
        for situation in SITUATIONS {
            let found = situation.check(db).await?;
            let lateness = lateness(db, &situation.lateness_sql()).await?;
            lines.push(SituationResult { situation, found, lateness });
        }
        let all = SITUATIONS.iter().map(DemoSituation::lateness_sql).collect::<Vec<_>>().join(" UNION ALL ");
        let sum = "SELECT coalesce(sum(balance), 0)::bigint AS n FROM accounts";
        Ok(Self {
            lateness: lateness(db, &all).await?,
            ledger_sum: number(db, sum).await?,
            accounts_differing: number(db, DIFFERING).await?,
            dead_letters,
            lines,
        })
    }

    /// Whether every row is right.
    pub fn is_right(&self) -> bool {
        self.ledger_sum == 0
            && self.accounts_differing == 0
            && self.dead_letters == 0
            && self.lines.iter().all(|line| line.found.right == line.found.all)
    }

    pub fn print(&self, restarts: u32) {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(["situation", "rows", "should have happened", "did happen", "late p50", "late p99"]);
        for SituationResult { situation, found, lateness } in &self.lines {
            let did = match found.all - found.right {
                0 => format!("✓ all {}", found.right),
                wrong => format!("✗ {} did, {wrong} did not: {}", found.right, found.wrong.join(", ")),
            };
            let count = found.all.to_string();
            table.add_row([situation.name, &count, situation.expected, &did, &shown(lateness.p50), &shown(lateness.p99)]);
        }
        for column in [1, 4, 5] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        say(&table.to_string());
        let rows: i64 = self.lines.iter().map(|line| line.found.all).sum();
        say(&format!(
            "{rows} rows, {} wrong · ledger sums to {} ₫, {} accounts differ from their transfers · {} dead letters · late p50 {}, p99 {}, max {}",
            self.lines.iter().map(|line| line.found.all - line.found.right).sum::<i64>(),
            self.ledger_sum,
            self.accounts_differing,
            self.dead_letters,
            shown(self.lateness.p50),
            shown(self.lateness.p99),
            shown(self.lateness.max),
        ));
        if restarts > 0 {
            say(&format!("{restarts} processes died on the way and were started again"));
        }
    }

    pub fn write(&self, folder: &Path) -> Result<()> {
        let situations: Vec<_> = self
            .lines
            .iter()
            .map(|SituationResult { situation, found, .. }| {
                json!({ "name": situation.name, "expected": found.all, "actual": found.right, "wrong": found.all - found.right })
            })
            .collect();
        let Lateness { p50, p99, max } = self.lateness;
        let report = json!({
            "situations": situations,
            "lateness_ms": { "p50": p50, "p99": p99, "max": max },
            "ledger": { "sum": self.ledger_sum, "accounts_differing": self.accounts_differing },
            "dead_letters": self.dead_letters,
        });
        let path = folder.join("report.json");
        std::fs::write(&path, serde_json::to_string_pretty(&report)?).with_context(|| path.display().to_string())?;
        say(&format!("the same in {}", path.display()));
        Ok(())
    }
}

const DIFFERING: &str = "
    SELECT count(*) AS n FROM accounts LEFT JOIN (
        SELECT account, sum(delta) AS sum FROM (
            SELECT credit_account AS account, amount AS delta FROM transfers
            UNION ALL SELECT debit_account, -amount FROM transfers) AS moved
         GROUP BY account) AS moved ON moved.account = accounts.id
     WHERE balance <> coalesce(sum, 0)";

async fn lateness(db: &DatabaseConnection, rows: &str) -> Result<Lateness> {
    let sql = format!(
        "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY late) AS p50, percentile_cont(0.99) WITHIN GROUP (ORDER BY late) AS p99,
                max(late) AS max FROM ({rows}) AS rows"
    );
    let row = db.query_one_raw(statement(&sql, [])).await?.context("no row")?;
    Ok(Lateness { p50: row.try_get("", "p50")?, p99: row.try_get("", "p99")?, max: row.try_get("", "max")? })
}

async fn number(db: &DatabaseConnection, sql: &str) -> Result<i64> {
    let row = db.query_one_raw(statement(sql, [])).await?.context("no row")?;
    Ok(row.try_get("", "n")?)
}

fn shown(late_ms: Option<f64>) -> String {
    late_ms.map_or("-".into(), |late| format!("{late:.0} ms"))
}
