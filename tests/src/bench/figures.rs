//! A section of the report: figures of all kinds, each with what it is to be.

use serde_json::{Value, json};

/// What a figure is to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Target {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

impl Target {
    /// Whether the value is what it is to be.
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }

    /// As it stands in a table.
    pub(super) fn text(self) -> String {
        match self {
            Self::AtLeast(least) => format!(">= {least}"),
            Self::AtMost(most) => format!("<= {most}"),
        }
    }
}

/// One thing that has been measured, in each run once.
#[derive(Clone, Debug)]
pub(super) struct Figure {
    device: &'static str,
    case: String,
    what: &'static str,
    unit: &'static str,
    target: Option<Target>,
    /// The value of each run, and between what a tenth and nine tenths of its rounds lie; a figure without rounds repeats itself.
    runs: Vec<[f64; 3]>,
}

impl Figure {
    /// A figure that was taken once.
    pub(super) fn new(
        device: &'static str,
        case: impl Into<String>,
        what: &'static str,
        unit: &'static str,
        value: f64,
    ) -> Self {
        Self { device, case: case.into(), what, unit, target: None, runs: vec![[value; 3]] }
    }

    /// The median of some rounds.
    pub(super) fn of(
        device: &'static str,
        case: impl Into<String>,
        what: &'static str,
        unit: &'static str,
        rounds: &[f64],
    ) -> Self {
        let run = [0.5, 0.1, 0.9].map(|at| quantile(rounds, at));
        Self { runs: vec![run], ..Self::new(device, case, what, unit, 0.0) }
    }

    /// The same, with what it is to be.
    pub(super) fn target(self, target: Target) -> Self {
        Self { target: Some(target), ..self }
    }

    /// The medians over the runs: the value, and between what its rounds lie.
    fn values(&self) -> [f64; 3] {
        [0, 1, 2].map(|at| quantile(&self.runs.iter().map(|run| run[at]).collect::<Vec<_>>(), 0.5))
    }

    fn is_same(&self, other: &Self) -> bool {
        (self.device, &self.case, self.what) == (other.device, &other.case, other.what)
    }

    fn cells(&self) -> Vec<String> {
        let [value, low, high] = self.values();
        let [target, verdict] = told(self.target, value);
        vec![
            self.case.clone(),
            self.device.to_owned(),
            self.what.to_owned(),
            number(value),
            number(low),
            number(high),
            self.unit.to_owned(),
            target,
            verdict,
        ]
    }

    /// For the table of all targets.
    fn aim(&self) -> Option<Vec<String>> {
        let [value, _, _] = self.values();
        let what = format!("{}: {}", self.case, self.what);
        let measured = format!("{} {}", number(value), self.unit);
        self.target.map(|_| [what, measured].into_iter().chain(told(self.target, value)).collect())
    }

    fn json(&self) -> Value {
        let [value, low, high] = self.values();
        json!({
            "device": self.device, "case": self.case, "what": self.what, "unit": self.unit,
            "value": value, "value_10": low, "value_90": high, "runs": self.runs.len(),
            "target": self.target.map(Target::text), "met": self.target.map(|target| target.is_met(value)),
        })
    }
}

/// What belongs together.
#[derive(Clone, Debug)]
pub(super) struct Section {
    /// Its name in the JSON.
    pub(super) name: &'static str,
    /// What stands above its table.
    pub(super) title: &'static str,
    pub(super) figures: Vec<Figure>,
}

impl Section {
    /// What the columns of [`Self::cells`] are.
    pub(super) const HEADER: [&'static str; 9] =
        ["CASE", "DEVICE", "WHAT", "VALUE", "10 %", "90 %", "UNIT", "TARGET", ""];

    /// Takes another run's figures in.
    pub(super) fn merge(&mut self, other: Self) {
        for figure in other.figures {
            match self.figures.iter_mut().find(|mine| mine.is_same(&figure)) {
                Some(mine) => {
                    mine.runs.extend(figure.runs);
                    // A run may tell that on this machine nothing is to be had.
                    mine.target = mine.target.and(figure.target);
                }
                None => self.figures.push(figure),
            }
        }
    }

    pub(super) fn cells(&self) -> impl Iterator<Item = Vec<String>> {
        self.figures.iter().map(Figure::cells)
    }

    /// Those figures that are to be something, for the table of all targets.
    pub(super) fn aims(&self) -> impl Iterator<Item = Vec<String>> {
        self.figures.iter().filter_map(Figure::aim)
    }

    pub(super) fn json(&self) -> Vec<Value> {
        self.figures.iter().map(Figure::json).collect()
    }
}

/// A target and whether a value meets it, as they stand in tables.
pub(super) fn told(target: Option<Target>, value: f64) -> [String; 2] {
    let Some(target) = target else { return Default::default() };
    [target.text(), if target.is_met(value) { "met" } else { "missed" }.to_owned()]
}

/// As many digits as tell something.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    if size >= 100.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else if size >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.4}")
    }
}

/// A quantile of some values, between two of them if need be; not a number if there are none.
pub(super) fn quantile(values: &[f64], quantile: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(clippy::cast_precision_loss, reason = "some thousands of values")]
    let at = quantile * sorted.len().saturating_sub(1) as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index, rounded down")]
    let below = at.floor() as usize;
    let Some(&low) = sorted.get(below) else { return f64::NAN };
    let high = sorted.get(below + 1).copied().unwrap_or(low);
    low + (high - low) * at.fract()
}

/// A count, for arithmetic with what is measured.
#[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_sorted_values() {
        let values = [5.0, 1.0, 3.0, 2.0, 4.0];
        for (at, expected) in [(0.0, 1.0), (0.5, 3.0), (1.0, 5.0)] {
            assert!((quantile(&values, at) - expected).abs() < 1e-9, "{at}");
        }
        assert!((quantile(&[1.0, 2.0], 0.5) - 1.5).abs() < 1e-9, "neither of the two");
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn runs_are_told_by_their_median() {
        let run = |value| Section {
            name: "drops",
            title: "",
            figures: vec![
                Figure::new("eipnat", "one", "share", "", value).target(Target::AtLeast(0.85)),
                Figure::new("eipnat", "many", "share", "", value / 2.0),
            ],
        };
        let mut all = run(0.9);
        all.merge(run(0.7));
        all.merge(run(0.8));
        let json = all.json();
        assert_eq!(json.len(), 2);
        assert_eq!(json[0]["value"], 0.8);
        assert_eq!(json[0]["met"], false);
        assert_eq!(json[1]["value"], 0.4);
        assert_eq!(json[1]["met"], Value::Null);
    }

    #[test]
    fn targets_are_met_at_their_limit() {
        assert!(Target::AtLeast(0.5).is_met(0.5) && !Target::AtLeast(0.5).is_met(0.4));
        assert!(Target::AtMost(0.5).is_met(0.5) && !Target::AtMost(0.5).is_met(0.6));
        assert!(!Target::AtLeast(0.5).is_met(f64::NAN));
    }
}
