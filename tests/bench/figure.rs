//! A figure: its values round by round, its ceiling in the same rounds, and the target by which it is judged. The report shows the median of
//! all rounds.

use std::fmt;

use serde_json::{Value, json};

/// The value of one round, and its ceiling if it has one.
#[derive(Clone, Copy, Debug)]
pub struct FigureRound {
    pub value: f64,
    pub ceiling: Option<f64>,
}

#[derive(Clone, Debug)]
pub struct Figure {
    pub name: String,
    pub unit: &'static str,
    pub rounds: Vec<FigureRound>,
    pub reach: Option<Reach>,
}

/// The target of a figure.
#[derive(Clone, Copy, Debug)]
pub enum Reach {
    /// At least this share of its ceiling.
    OfCeiling(f64),
    /// As much as its ceiling, which is another figure of the fleet and varies as much as the value: up to 3% less counts as equal.
    NoLess,
    /// At most this share of the named figure, which is shown as its ceiling.
    AtMostOf(f64, &'static str),
    /// At most its ceiling plus this many milliseconds.
    Beyond(f64),
    /// At most this value.
    AtMost(f64),
    /// At least `share` of its ceiling, and more than `rate` on a machine whose bare loop of single messages reaches `machine`; on this
    /// machine it reached `bare`.
    Bulk { share: f64, rate: f64, machine: f64, bare: f64 },
}

/// The share of the ceiling that counts as equal to it.
const NO_DIFFERENCE: f64 = 0.97;

impl Figure {
    /// A figure without ceiling or target.
    pub fn plain(name: impl Into<String>, unit: &'static str, values: impl IntoIterator<Item = f64>) -> Self {
        let rounds = values.into_iter().map(|value| FigureRound { value, ceiling: None }).collect();
        Self { name: name.into(), unit, rounds, reach: None }
    }

    /// A figure with its ceiling.
    pub fn beside(
        name: impl Into<String>,
        unit: &'static str,
        values: &[f64],
        ceilings: &[f64],
        reach: impl Into<Option<Reach>>,
    ) -> Self {
        let rounds = values.iter().zip(ceilings).map(|(value, ceiling)| FigureRound { value: *value, ceiling: Some(*ceiling) });
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

    /// The median value divided by the median ceiling.
    pub fn ratio(&self) -> Option<f64> {
        self.ceiling().filter(|ceiling| *ceiling > 0.0).map(|ceiling| self.value() / ceiling)
    }

    /// The smallest and the largest value.
    pub fn spread(&self) -> (f64, f64) {
        let values = || self.rounds.iter().map(|round| round.value);
        (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max))
    }

    /// Whether the target is met; `None` without one.
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
            self.rounds.iter().map(|FigureRound { value, ceiling }| json!({ "value": value, "ceiling": ceiling })).collect();
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

/// The median: the middle value, or the mean of the middle two.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    quantile(values, 0.5)
}

/// Interpolates between two values, as PostgreSQL's `percentile_cont` does.
pub fn quantile(values: impl IntoIterator<Item = f64>, part: f64) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1) else { return f64::NAN };
    let place = part * number(last);
    let below = (0..=last).rev().find(|at| number(*at) <= place).unwrap_or(0);
    let above = (below + 1).min(last);
    values[below] + (values[above] - values[below]) * (place - number(below))
}

/// Converts a count for calculations.
#[expect(clippy::cast_precision_loss, reason = "counts of what is measured stay far below 2^52")]
pub const fn number(count: usize) -> f64 {
    count as f64
}

/// Formats a number for people: three significant digits, with thousands separators.
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
