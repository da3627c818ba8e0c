//! Durations and quantities as people write them in a spec: from text to numbers. Refuses what it
//! does not know; guesses nothing. Used by `validate` and by the comparison of children.

use std::time::Duration;

/// Suffixes of durations, the longer one first where one ends in the other, and their nanoseconds.
const DURATION_UNITS: [(&str, u64); 4] =
    [("ms", 1_000_000), ("s", 1_000_000_000), ("m", 60_000_000_000), ("h", 3_600_000_000_000)];

/// Suffixes of quantities and their factors in thousandths.
const QUANTITY_UNITS: [(&str, u128); 14] = [
    ("Ki", 1000 << 10),
    ("Mi", 1000 << 20),
    ("Gi", 1000 << 30),
    ("Ti", 1000 << 40),
    ("Pi", 1000 << 50),
    ("Ei", 1000 << 60),
    ("m", 1),
    ("k", 1_000_000),
    ("M", 1_000_000_000),
    ("G", 1_000_000_000_000),
    ("T", 1_000_000_000_000_000),
    ("P", 1_000_000_000_000_000_000),
    ("E", 1_000_000_000_000_000_000_000),
    ("", 1000),
];

/// Most digits of a number: none that makes sense is longer, and the arithmetic cannot overflow.
const DIGITS_MAX: usize = 15;

/// `100ms`, `1.5s`, `1h30m`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut nanos = 0_u64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let (suffix, unit) = DURATION_UNITS.iter().find(|(suffix, _)| tail.starts_with(suffix))?;
        let part = scaled(number, u128::from(*unit))?;
        nanos = nanos.checked_add(u64::try_from(part).ok()?)?;
        rest = &tail[suffix.len()..];
    }
    (!text.is_empty()).then(|| Duration::from_nanos(nanos))
}

/// Thousandths of a unit: `1` and `1000m` are the same.
pub(crate) fn quantity_milli(text: &str) -> Option<u128> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (_, factor) = QUANTITY_UNITS.iter().find(|(known, _)| *known == suffix)?;
    scaled(number, *factor)
}

/// Whole units, rounded down: bytes of a size.
pub(crate) fn quantity(text: &str) -> Option<u64> {
    u64::try_from(quantity_milli(text)? / 1000).ok()
}

/// `number` times `factor`, rounded down; the number is decimal, with digits on at least one side of the point.
fn scaled(number: &str, factor: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let legal = |digits: &str| digits.len() <= DIGITS_MAX && digits.bytes().all(|b| b.is_ascii_digit());
    if !legal(whole) || !legal(fraction) || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let value = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse::<u128>().ok() };
    let places = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    value(whole)?.checked_mul(factor)?.checked_add(value(fraction)?.checked_mul(factor)? / places)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, ms) in
            [("100ms", 100), ("1s", 1000), ("1.5s", 1500), ("1h", 3_600_000), ("1h30m", 5_400_000), ("0s", 0)]
        {
            assert_eq!(duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "1", "s", "1d", "-1s", "1 s", "1..5s", "99999999999999h", "1µs"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn quantities_are_read_as_kubernetes_does() {
        for (text, bytes) in
            [("1Gi", 1 << 30), ("1024Mi", 1 << 30), ("1.5Ki", 1536), ("1G", 1_000_000_000), ("512", 512), ("1500m", 1)]
        {
            assert_eq!(quantity(text), Some(bytes), "{text}");
        }
        for text in ["", "Gi", "1gi", "-1Gi", "1 Gi", "1GiB", "9999999999999999Ei"] {
            assert_eq!(quantity(text), None, "{text}");
        }
        assert_eq!(quantity_milli("1"), quantity_milli("1000m"));
    }
}
