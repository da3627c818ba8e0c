//! The table: what was measured, what was asked for, and whether it is met. What could not be measured
//! is never met.

use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Met,
    NotMet,
    NotMeasured,
    /// A number beside the others that nothing was asked of.
    Information,
}

impl Verdict {
    pub(crate) fn of(met: bool) -> Self {
        if met { Self::Met } else { Self::NotMet }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Met => "met",
            Self::NotMet => "NOT MET",
            Self::NotMeasured => "not measured",
            Self::Information => "",
        })
    }
}

#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<[String; 4]>,
    notes: Vec<String>,
}

impl Table {
    pub(crate) fn row(&mut self, what: &str, measured: String, target: String, verdict: Verdict) {
        eprintln!("  {what}: {measured} {target} {verdict}");
        self.rows.push([what.to_owned(), measured, target, verdict.to_string()]);
    }

    pub(crate) fn information(&mut self, what: &str, measured: String) {
        self.row(what, measured, String::new(), Verdict::Information);
    }

    pub(crate) fn not_measured(&mut self, what: &str, why: &str) {
        self.row(what, why.to_owned(), String::new(), Verdict::NotMeasured);
    }

    /// A line above the table: versions, machine, disk.
    pub(crate) fn note(&mut self, text: String) {
        self.notes.push(text);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for note in &self.notes {
            writeln!(f, "{note}")?;
        }
        let head = ["", "measured", "target", "verdict"].map(str::to_owned);
        let width = |column: usize| {
            self.rows.iter().chain([&head]).map(|row| row[column].chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..4).map(width).collect();
        let rule: [String; 4] = std::array::from_fn(|i| "-".repeat(widths[i]));
        for row in [&head, &rule].into_iter().chain(&self.rows) {
            writeln!(
                f,
                "| {:<a$} | {:<b$} | {:<c$} | {:<d$} |",
                row[0],
                row[1],
                row[2],
                row[3],
                a = widths[0],
                b = widths[1],
                c = widths[2],
                d = widths[3]
            )?;
        }
        Ok(())
    }
}
