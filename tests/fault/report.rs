//! The report: one line per scenario, in Markdown for people and in JSON for machines. It includes wrong lines and scenarios that could not
//! run.

use std::{fmt::Write as _, path::Path, time::Duration};

use anyhow::{Context, Result};
use serde_json::json;

use crate::harness::{Ended, Setting};

pub struct ScenarioResult {
    pub scenario: &'static str,
    pub verdict: ScenarioVerdict,
    pub took: Duration,
}

pub enum ScenarioVerdict {
    Counted(Ended),
    /// This machine lacks something that the scenario needs.
    NotRun(String),
    /// The scenario could not be run to its end.
    Broken(String),
}

impl ScenarioResult {
    /// The text after the scenario's name on the terminal.
    pub fn say(&self) -> String {
        match &self.verdict {
            ScenarioVerdict::Counted(Ended { counts, notes, remarks }) => {
                let mut said = format!(
                    "{}  expected {} once {} lost {}, twice {}, unexpected {}; latest {} ms",
                    if counts.is_right() { "ok   " } else { "WRONG" },
                    counts.expected,
                    counts.applied_once,
                    counts.lost,
                    counts.applied_twice,
                    counts.unexpected,
                    counts.lateness_ms_max
                );
                for note in notes.iter().chain(remarks) {
                    let _ = write!(said, "; {note}");
                }
                said
            }
            ScenarioVerdict::NotRun(why) => format!("NOT RUN  {why}"),
            ScenarioVerdict::Broken(why) => format!("BROKEN  {why}"),
        }
    }

    pub fn is_right(&self) -> bool {
        match &self.verdict {
            ScenarioVerdict::Counted(ended) => ended.counts.is_right(),
            ScenarioVerdict::NotRun(_) => true,
            ScenarioVerdict::Broken(_) => false,
        }
    }
}

/// Writes `report.json` into the folder, and the Markdown to `markdown`.
pub fn write(lines: &[ScenarioResult], setting: &Setting, head: &str, markdown: Option<&Path>) -> Result<()> {
    let counted = lines.iter().filter_map(|line| match &line.verdict {
        ScenarioVerdict::Counted(ended) => Some((line, &ended.counts)),
        _ => None,
    });
    let json: Vec<_> = counted
        .map(|(line, counts)| {
            json!({
                "scenario": line.scenario,
                "seed": setting.seed,
                "expected": counts.expected,
                "applied_once": counts.applied_once,
                "applied_twice": counts.applied_twice,
                "lost": counts.lost,
                "unexpected": counts.unexpected,
                "lateness_ms_max": counts.lateness_ms_max,
            })
        })
        .collect();
    let path = setting.folder.join("report.json");
    std::fs::write(&path, serde_json::to_string_pretty(&json)? + "\n").with_context(|| path.display().to_string())?;
    if let Some(path) = markdown {
        std::fs::write(path, self::markdown(lines, setting, head)?).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn markdown(lines: &[ScenarioResult], setting: &Setting, head: &str) -> Result<String> {
    let mut text = String::new();
    writeln!(text, "# Faults\n\n{head}\n")?;
    writeln!(
        text,
        "Seed {}, {} form, {} subjects a scenario. *Expected* counts effects: a receipt confirmed, a charge per component, a status put \
         back, a cart item purged. *Latest* is the longest time between an effect's due moment and its transaction, by PostgreSQL's \
         clock; it contains the outage.\n",
        setting.seed,
        setting.form("quick", "long"),
        setting.subjects
    )?;
    writeln!(text, "| scenario | expected | applied once | lost | twice | unexpected | latest | took | |")?;
    writeln!(text, "|---|--:|--:|--:|--:|--:|--:|--:|---|")?;
    for line in lines {
        let (name, took) = (line.scenario.replace('_', " "), line.took.as_secs());
        match &line.verdict {
            ScenarioVerdict::Counted(Ended { counts, notes, remarks }) => {
                let notes: Vec<&str> = notes.iter().chain(remarks).map(String::as_str).collect();
                writeln!(
                    text,
                    "| {name} | {} | {} | {} | {} | {} | {} ms | {took} s | {} |",
                    counts.expected,
                    counts.applied_once,
                    counts.lost,
                    counts.applied_twice,
                    counts.unexpected,
                    counts.lateness_ms_max,
                    notes.join("; ").replace('|', "\\|")
                )?;
            }
            ScenarioVerdict::NotRun(why) => writeln!(text, "| {name} | **NOT RUN** | | | | | | | {why} |")?,
            ScenarioVerdict::Broken(why) => {
                writeln!(text, "| {name} | **BROKEN** | | | | | | {took} s | {} |", why.replace(['|', '\n'], " "))?;
            }
        }
    }
    let wrong = lines.iter().filter(|line| !line.is_right()).count();
    let not_run = lines.iter().filter(|line| matches!(line.verdict, ScenarioVerdict::NotRun(_))).count();
    let verdict =
        if wrong == 0 { "Every line: lost 0, twice 0, unexpected 0.".into() } else { format!("**{wrong} lines are wrong.**") };
    writeln!(text, "\n{verdict}")?;
    if not_run > 0 {
        writeln!(text, "Not run here: {not_run}.")?;
    }
    Ok(text)
}
