//! Judges the lines that a node logged: a WARN or ERROR that a test did not expect fails it.

/// What always fails a test, whatever it allows.
const NEVER: [&str; 2] = ["panicked at", "stack overflow"];

/// How a line of either format shows its level.
const ALARMS: [&str; 4] = ["\"level\":\"WARN\"", "\"level\":\"ERROR\"", " WARN ", "ERROR "];

/// The lines that nobody expected.
pub(crate) fn unexpected<'a>(log: &'a str, allowed: &[String]) -> Vec<&'a str> {
    log.lines()
        .filter(|line| {
            let alarm = ALARMS.iter().any(|a| line.contains(a)) && !allowed.iter().any(|a| line.contains(a.as_str()));
            alarm || NEVER.iter().any(|n| line.contains(n))
        })
        .collect()
}

/// The end of a log, for a failed test's output.
pub(crate) fn tail(log: &str, lines_max: usize) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(lines_max)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_unexpected_unless_it_is_allowed() {
        let log = "{\"level\":\"INFO\"}\n{\"level\":\"WARN\",\"message\":\"peer down\"}\n2026 ERROR x: y";
        assert_eq!(unexpected(log, &[]).len(), 2);
        assert_eq!(unexpected(log, &["peer down".to_owned()]), ["2026 ERROR x: y"]);
    }

    #[test]
    fn a_panic_is_never_allowed() {
        let log = "thread 'main' panicked at x";
        assert_eq!(unexpected(log, &["panicked".to_owned()]), [log]);
    }
}
