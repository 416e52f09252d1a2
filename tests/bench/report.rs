//! The report: one table on the terminal and as Markdown, all rounds as JSON, and the chart, all with the same figures.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde_json::Value;
use shared::process::cli::say;

use crate::{
    chart,
    figure::{Figure, shown},
    machine::Machine,
};

pub struct BenchReport {
    pub figures: Vec<Figure>,
    pub machine: Machine,
    pub took: Duration,
    pub quick: bool,
}

const HEADER: [&str; 7] = ["figure", "value", "ceiling", "ratio", "spread", "reach", "met"];

impl BenchReport {
    /// The names of the figures that miss their target.
    pub fn missed(&self) -> Vec<String> {
        let missed = |figure: &&Figure| figure.met() == Some(false);
        self.figures.iter().filter(missed).map(|figure| figure.name.clone()).collect()
    }

    pub fn print(&self) {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(HEADER);
        for figure in &self.figures {
            table.add_row(row(figure));
        }
        for column in 1..5 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        say(&table.to_string());
        say(&self.row());
    }

    pub fn write(&self, folder: &Path) -> Result<()> {
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::write(&path, text).with_context(|| path.display().to_string())
        };
        let figures: Vec<Value> = self.figures.iter().map(Figure::json).collect();
        write("report.json", serde_json::to_string_pretty(&figures)? + "\n")?;
        write("report.md", self.markdown())?;
        write("chart.svg", chart::draw(&self.figures)?)?;
        say(&format!("the same in {}: report.json, report.md, chart.svg", folder.display()));
        Ok(())
    }

    fn markdown(&self) -> String {
        let mut lines = vec![format!("| {} |", HEADER.join(" | ")), "| --- | ---: | ---: | ---: | ---: | --- | --- |".to_owned()];
        lines.extend(self.figures.iter().map(|figure| format!("| {} |", row(figure).join(" | "))));
        lines.extend([String::new(), self.row(), String::new(), self.machine.markdown()]);
        lines.join("\n")
    }

    /// An explanation of the table.
    fn row(&self) -> String {
        let minutes = self.took.as_secs_f64() / 60.0;
        let smoke = if self.quick { " A quick run: a smoke test of the bench, no measurement." } else { "" };
        format!(
            "Value and ceiling are medians of the rounds, the spread is the smallest and the largest value; measured in {minutes:.1} minutes.{smoke}"
        )
    }
}

fn row(figure: &Figure) -> [String; 7] {
    let (low, high) = figure.spread();
    [
        figure.name.clone(),
        format!("{} {}", shown(figure.value()), figure.unit).trim_end().to_owned(),
        figure.ceiling().map_or("–".to_owned(), shown),
        figure.ratio().map_or("–".to_owned(), |ratio| format!("{ratio:.2}")),
        format!("{} … {}", shown(low), shown(high)),
        figure.reach.map_or("–".to_owned(), |reach| reach.to_string()),
        figure.met().map_or("–", |met| if met { "✓" } else { "✗" }).to_owned(),
    ]
}
