//! A figure: what was measured round by round, its ceiling in the same rounds, and the reach by which it is judged. What is told
//! of it is the median of its rounds; none of them is thrown away.

use std::fmt;

use serde_json::{Value, json};

/// One round's value, and its ceiling where it has one.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    pub value: f64,
    pub ceiling: Option<f64>,
}

#[derive(Clone, Debug)]
pub struct Figure {
    pub name: String,
    pub unit: &'static str,
    pub rounds: Vec<Round>,
    pub reach: Option<Reach>,
}

/// What a figure has to reach.
#[derive(Clone, Copy, Debug)]
pub enum Reach {
    /// So much of its ceiling.
    OfCeiling(f64),
    /// As much as its ceiling, which is a figure of the fleet's own and spreads as the value does: 3% less is no difference.
    NoLess,
    /// No more than this part of what is named, which stands as its ceiling.
    AtMostOf(f64, &'static str),
    /// No more than its ceiling and so many milliseconds.
    Beyond(f64),
    /// No more than this.
    AtMost(f64),
    /// So much of its ceiling, and over `rate` on a machine whose bare loop of single messages gets to `machine`; here it got to `bare`.
    Bulk { share: f64, rate: f64, machine: f64, bare: f64 },
}

/// What a spread that is no difference may cost.
const NO_DIFFERENCE: f64 = 0.97;

impl Figure {
    /// A figure without ceiling or reach.
    pub fn plain(name: impl Into<String>, unit: &'static str, values: impl IntoIterator<Item = f64>) -> Self {
        let rounds = values.into_iter().map(|value| Round { value, ceiling: None }).collect();
        Self { name: name.into(), unit, rounds, reach: None }
    }

    /// A figure beside its ceiling.
    pub fn beside(
        name: impl Into<String>,
        unit: &'static str,
        values: &[f64],
        ceilings: &[f64],
        reach: impl Into<Option<Reach>>,
    ) -> Self {
        let rounds = values.iter().zip(ceilings).map(|(value, ceiling)| Round { value: *value, ceiling: Some(*ceiling) });
        Self { name: name.into(), unit, rounds: rounds.collect(), reach: reach.into() }
    }

    pub fn judged(self, reach: Reach) -> Self {
        Self { reach: Some(reach), ..self }
    }

    pub fn value(&self) -> f64 {
        median(self.rounds.iter().map(|round| round.value))
    }

    pub fn ceiling(&self) -> Option<f64> {
        let ceilings: Vec<f64> = self.rounds.iter().filter_map(|round| round.ceiling).collect();
        (!ceilings.is_empty()).then(|| median(ceilings))
    }

    /// The median value as a part of the median ceiling.
    pub fn ratio(&self) -> Option<f64> {
        self.ceiling().filter(|ceiling| *ceiling > 0.0).map(|ceiling| self.value() / ceiling)
    }

    /// The smallest and the largest value.
    pub fn spread(&self) -> (f64, f64) {
        let values = || self.rounds.iter().map(|round| round.value);
        (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max))
    }

    /// Whether the reach is met; `None` without one.
    pub fn met(&self) -> Option<bool> {
        let (value, ratio) = (self.value(), self.ratio().unwrap_or(f64::NAN));
        self.reach.map(|reach| match reach {
            Reach::OfCeiling(share) => ratio >= share,
            Reach::NoLess => ratio >= NO_DIFFERENCE,
            Reach::AtMostOf(share, _) => ratio <= share,
            Reach::Beyond(more) => self.ceiling().is_some_and(|ceiling| value <= ceiling + more),
            Reach::AtMost(most) => value <= most,
            Reach::Bulk { share, rate, machine, bare } => ratio >= share && (bare < machine || value > rate),
        })
    }

    pub fn json(&self) -> Value {
        let rounds: Vec<Value> =
            self.rounds.iter().map(|Round { value, ceiling }| json!({ "value": value, "ceiling": ceiling })).collect();
        json!({
            "figure": self.name,
            "unit": self.unit,
            "value": self.value(),
            "ceiling": self.ceiling(),
            "ratio": self.ratio(),
            "reach": self.reach.map(|reach| reach.to_string()),
            "met": self.met(),
            "rounds": rounds,
        })
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OfCeiling(share) => write!(f, "≥ {share} × ceiling"),
            Self::NoLess => write!(f, "≥ 1 × one process's (met from {NO_DIFFERENCE}, as both spread)"),
            Self::AtMostOf(share, of) => write!(f, "≤ {share} × {of}"),
            Self::Beyond(more) => write!(f, "≤ ceiling + {more} ms"),
            Self::AtMost(most) => write!(f, "≤ {}", shown(*most)),
            Self::Bulk { share, rate, machine, bare } => write!(
                f,
                "≥ {share} × ceiling; > {} where single messages reach {} (here {})",
                shown(*rate),
                shown(*machine),
                shown(*bare)
            ),
        }
    }
}

/// The middle one, or the mean of the middle two.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    quantile(values, 0.5)
}

/// As PostgreSQL's `percentile_cont`: between two values, in proportion.
pub fn quantile(values: impl IntoIterator<Item = f64>, part: f64) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1) else { return f64::NAN };
    let place = part * number(last);
    let below = (0..=last).rev().find(|at| number(*at) <= place).unwrap_or(0);
    let above = (below + 1).min(last);
    values[below] + (values[above] - values[below]) * (place - number(below))
}

/// A count as a number to reckon with.
#[expect(clippy::cast_precision_loss, reason = "counts of what is measured stay far below 2^52")]
pub const fn number(count: usize) -> f64 {
    count as f64
}

/// A number as people read it: three digits that matter, thousands apart.
pub fn shown(value: f64) -> String {
    match value.abs() {
        size if size >= 1_000.0 => {
            let digits = format!("{value:.0}");
            let (sign, digits) = digits.strip_prefix('-').map_or(("", digits.as_str()), |digits| ("-", digits));
            let mut grouped = String::new();
            for (at, digit) in digits.chars().enumerate() {
                if at > 0 && (digits.len() - at).is_multiple_of(3) {
                    grouped.push(',');
                }
                grouped.push(digit);
            }
            format!("{sign}{grouped}")
        }
        size if size >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
