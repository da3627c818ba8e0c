//! What Python's `json.dumps(json.loads(text), sort_keys=True)` gives, byte for byte: the text that
//! the original computed its checksums over. No tree of values is built: each member is rendered as
//! it is read, and objects sort what was rendered. Knows nothing of entries; called by the import.

use std::collections::BTreeMap;
use std::ops::Range;

/// Deepest nesting read; CPython itself stops at about 1000 frames.
const DEPTH_MAX: usize = 900;

/// A Python string: code points, since a lone surrogate is one and sorts by its number.
pub(super) type PythonText = Vec<u32>;

/// The value of one member: as Python would write it again, and where it stood in the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) canonical: Vec<u8>,
    pub(super) source: Range<usize>,
}

/// The members of an object in Python's sorting order; of a repeated key the last one counts.
pub(super) type Members = BTreeMap<PythonText, Member>;

/// Why a text is not JSON to Python, and at which byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at}")]
pub(super) struct Malformed {
    pub(super) what: &'static str,
    pub(super) at: usize,
}

/// Reads a whole line that must be one object.
pub(super) fn parse_object(text: &[u8]) -> Result<Members, Malformed> {
    let mut parser = Parser { text, at: 0, depth: 0 };
    parser.skip_whitespace();
    if parser.peek() != Some(b'{') {
        return Err(parser.malformed("not an object"));
    }
    let members = parser.object()?;
    parser.skip_whitespace();
    if parser.at < text.len() { Err(parser.malformed("text after the object")) } else { Ok(members) }
}

/// Writes members as `json.dumps` does, leaving out the one named `without`.
pub(super) fn dump_without(members: &Members, without: &str) -> Vec<u8> {
    let without: PythonText = without.chars().map(u32::from).collect();
    let mut out = Vec::new();
    dump_members(members.iter().filter(|(name, _)| **name != without), &mut out);
    out
}

fn dump_members<'m>(members: impl Iterator<Item = (&'m PythonText, &'m Member)>, out: &mut Vec<u8>) {
    out.push(b'{');
    for (index, (name, member)) in members.enumerate() {
        if index > 0 {
            out.extend_from_slice(b", ");
        }
        dump_text(name, out);
        out.extend_from_slice(b": ");
        out.extend_from_slice(&member.canonical);
    }
    out.push(b'}');
}

/// `ensure_ascii=True`: everything but printable ASCII is escaped, in UTF-16 units.
fn dump_text(text: &[u32], out: &mut Vec<u8>) {
    out.push(b'"');
    for &code in text {
        match code {
            0x22 => out.extend_from_slice(b"\\\""),
            0x5c => out.extend_from_slice(b"\\\\"),
            0x0a => out.extend_from_slice(b"\\n"),
            0x0d => out.extend_from_slice(b"\\r"),
            0x09 => out.extend_from_slice(b"\\t"),
            0x0c => out.extend_from_slice(b"\\f"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x20..=0x7e => out.push(u8::try_from(code).expect("printable ASCII")),
            0..=0xffff => dump_unit(code, out),
            _ => {
                let above = code - 0x1_0000;
                dump_unit(0xd800 + (above >> 10), out);
                dump_unit(0xdc00 + (above & 0x3ff), out);
            }
        }
    }
    out.push(b'"');
}

fn dump_unit(unit: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("\\u{unit:04x}").as_bytes());
}

/// `repr(float)` of CPython: the shortest digits that read back as the same number, with an
/// exponent when it is under -4 or at least 16.
pub(super) fn float_repr(number: f64) -> String {
    if !number.is_finite() {
        let name = if number.is_nan() { "NaN" } else { "Infinity" };
        return if number.is_sign_negative() && !number.is_nan() { format!("-{name}") } else { name.to_owned() };
    }
    let scientific = shortest(number);
    let (mantissa, exponent) = scientific.split_once('e').expect("LowerExp writes an exponent");
    let exponent: i32 = exponent.parse().expect("LowerExp writes a decimal exponent");
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |m| ("-", m));
    if !(-4..16).contains(&exponent) {
        let direction = if exponent < 0 { '-' } else { '+' };
        return format!("{sign}{mantissa}e{direction}{:02}", exponent.unsigned_abs());
    }
    let digits = mantissa.replace('.', "");
    if exponent < 0 {
        let zeros = "0".repeat(usize::try_from(-exponent - 1).expect("negative exponent"));
        return format!("{sign}0.{zeros}{digits}");
    }
    let whole = usize::try_from(exponent + 1).expect("exponent is not negative");
    if digits.len() <= whole {
        return format!("{sign}{digits}{}.0", "0".repeat(whole - digits.len()));
    }
    format!("{sign}{}.{}", &digits[..whole], &digits[whole..])
}

/// The fewest digits that read back as `number`. Where two such numbers are equally near, CPython
/// takes the one with the even last digit, which Rust does only when the digits are asked for.
fn shortest(number: f64) -> String {
    let shortest = format!("{number:e}");
    let mantissa = shortest.split('e').next().expect("split yields at least one part");
    let fraction_digits = mantissa.split_once('.').map_or(0, |(_, fraction)| fraction.len());
    let nearest = format!("{number:.fraction_digits$e}");
    if nearest.parse() == Ok(number) { nearest } else { shortest }
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn malformed(&self, what: &'static str) -> Malformed {
        Malformed { what, at: self.at }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn eat(&mut self, token: &[u8]) -> bool {
        let found = self.text[self.at..].starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn skip_whitespace(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn enter(&mut self) -> Result<(), Malformed> {
        self.at += 1;
        self.depth += 1;
        if self.depth > DEPTH_MAX { Err(self.malformed("nested too deeply")) } else { Ok(()) }
    }

    /// After an item: true when another one follows.
    fn comma(&mut self, close: u8) -> Result<bool, Malformed> {
        self.skip_whitespace();
        let more = match self.peek() {
            Some(b',') => true,
            Some(byte) if byte == close => false,
            _ => return Err(self.malformed("no comma or closing bracket")),
        };
        self.at += 1;
        self.skip_whitespace();
        Ok(more)
    }

    fn object(&mut self) -> Result<Members, Malformed> {
        self.enter()?;
        let mut members = Members::new();
        self.skip_whitespace();
        let mut more = !self.eat(b"}");
        while more {
            let name = self.string()?;
            self.skip_whitespace();
            if !self.eat(b":") {
                return Err(self.malformed("no colon"));
            }
            self.skip_whitespace();
            let start = self.at;
            let mut canonical = Vec::new();
            self.value(&mut canonical)?;
            members.insert(name, Member { canonical, source: start..self.at });
            more = self.comma(b'}')?;
        }
        self.depth -= 1;
        Ok(members)
    }

    fn array(&mut self, out: &mut Vec<u8>) -> Result<(), Malformed> {
        self.enter()?;
        out.push(b'[');
        self.skip_whitespace();
        let mut more = !self.eat(b"]");
        while more {
            self.value(out)?;
            more = self.comma(b']')?;
            if more {
                out.extend_from_slice(b", ");
            }
        }
        out.push(b']');
        self.depth -= 1;
        Ok(())
    }

    fn value(&mut self, out: &mut Vec<u8>) -> Result<(), Malformed> {
        match self.peek() {
            Some(b'{') => dump_members(self.object()?.iter(), out),
            Some(b'[') => self.array(out)?,
            Some(b'"') => dump_text(&self.string()?, out),
            _ => return self.word(out),
        }
        Ok(())
    }

    fn word(&mut self, out: &mut Vec<u8>) -> Result<(), Malformed> {
        for word in ["null", "true", "false", "NaN", "Infinity", "-Infinity"] {
            if self.eat(word.as_bytes()) {
                out.extend_from_slice(word.as_bytes());
                return Ok(());
            }
        }
        self.number(out)
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while self.peek().is_some_and(|b| b.is_ascii_digit()) {
            self.at += 1;
        }
        self.at - start
    }

    fn number(&mut self, out: &mut Vec<u8>) -> Result<(), Malformed> {
        let start = self.at;
        self.eat(b"-");
        if !self.eat(b"0") && self.digits() == 0 {
            return Err(self.malformed("not a value"));
        }
        let is_integer = !self.fraction_or_exponent();
        let text = std::str::from_utf8(&self.text[start..self.at]).expect("a number is ASCII");
        match text {
            // Python's integers have no negative zero.
            "-0" => out.push(b'0'),
            _ if is_integer => out.extend_from_slice(text.as_bytes()),
            _ => out.extend_from_slice(float_repr(text.parse().expect("the grammar was checked")).as_bytes()),
        }
        Ok(())
    }

    /// Like Python's scanner, which leaves a dot or an `e` without digits to whoever reads on.
    fn fraction_or_exponent(&mut self) -> bool {
        let start = self.at;
        if self.eat(b".") && self.digits() == 0 {
            self.at = start;
        }
        let exponent = self.at;
        if self.eat(b"e") || self.eat(b"E") {
            let _sign = self.eat(b"+") || self.eat(b"-");
            if self.digits() == 0 {
                self.at = exponent;
            }
        }
        self.at > start
    }

    fn string(&mut self) -> Result<PythonText, Malformed> {
        if !self.eat(b"\"") {
            return Err(self.malformed("no string"));
        }
        let mut text = PythonText::new();
        loop {
            let start = self.at;
            while self.peek().is_some_and(|b| b != b'"' && b != b'\\' && b >= 0x20) {
                self.at += 1;
            }
            let plain = std::str::from_utf8(&self.text[start..self.at]);
            text.extend(plain.map_err(|_| self.malformed("not UTF-8"))?.chars().map(u32::from));
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => text.push(self.escape()?),
                _ => return Err(self.malformed("a string does not end")),
            }
        }
        self.at += 1;
        Ok(text)
    }

    fn escape(&mut self) -> Result<u32, Malformed> {
        self.at += 1;
        let code = match self.peek() {
            Some(byte @ (b'"' | b'\\' | b'/')) => u32::from(byte),
            Some(b'n') => 0x0a,
            Some(b'r') => 0x0d,
            Some(b't') => 0x09,
            Some(b'f') => 0x0c,
            Some(b'b') => 0x08,
            Some(b'u') => return self.unicode_escape(),
            _ => return Err(self.malformed("bad escape")),
        };
        self.at += 1;
        Ok(code)
    }

    /// At the `u`. Two escaped surrogates make one code point; a lone one stays what it is.
    fn unicode_escape(&mut self) -> Result<u32, Malformed> {
        let first = self.hex_unit()?;
        if (0xd800..0xdc00).contains(&first) && self.text[self.at..].starts_with(b"\\u") {
            let before = self.at;
            self.at += 1;
            let second = self.hex_unit()?;
            if (0xdc00..0xe000).contains(&second) {
                return Ok(0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00));
            }
            self.at = before;
        }
        Ok(first)
    }

    fn hex_unit(&mut self) -> Result<u32, Malformed> {
        self.at += 1;
        let digits = self.text.get(self.at..self.at + 4).filter(|d| d.iter().all(u8::is_ascii_hexdigit));
        let digits = digits.ok_or(self.malformed("bad \\u escape"))?;
        self.at += 4;
        let digits = std::str::from_utf8(digits).expect("hexadecimal digits are ASCII");
        Ok(u32::from_str_radix(digits, 16).expect("four hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dumped(text: &str) -> String {
        let members = parse_object(text.as_bytes()).expect(text);
        String::from_utf8(dump_without(&members, "crc")).expect("ASCII")
    }

    #[test]
    fn floats_are_written_as_cpython_writes_them() {
        let table: &[(f64, &str)] = &[
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (-1.5, "-1.5"),
            (0.1, "0.1"),
            (100.0, "100.0"),
            (0.0001, "0.0001"),
            (0.00012345, "0.00012345"),
            (0.00001, "1e-05"),
            (1e-7, "1e-07"),
            (1.5e-7, "1.5e-07"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (9_999_999_999_999_998.0, "9999999999999998.0"),
            (1.234_567_890_123_456_7e16, "1.2345678901234568e+16"),
            (123_456_789.123, "123456789.123"),
            (4.168_406_312_236_470_3e18, "4.1684063122364703e+18"),
            (2_754_885_070_883_250.5, "2754885070883250.5"),
            (1e22, "1e+22"),
            (1e23, "1e+23"),
            (1e100, "1e+100"),
            (1.797_693_134_862_315_7e308, "1.7976931348623157e+308"),
            (2.225_073_858_507_201_4e-308, "2.2250738585072014e-308"),
            (5e-324, "5e-324"),
            (2.0_f64.powi(-1022), "2.2250738585072014e-308"),
            (9.5367431640625e-7, "9.5367431640625e-07"),
            (1_745_027_224_405_857.0 / 8.0, "218128403050732.12"),
            (f64::INFINITY, "Infinity"),
            (f64::NEG_INFINITY, "-Infinity"),
            (f64::NAN, "NaN"),
        ];
        for (number, expected) in table {
            assert_eq!(float_repr(*number), *expected);
        }
    }

    #[test]
    fn members_are_sorted_and_spaced_as_python_does() {
        assert_eq!(dumped(r#"{"b":[1,{"z":1,"a":[]}],"a":{},"crc":5}"#), r#"{"a": {}, "b": [1, {"a": [], "z": 1}]}"#);
        assert_eq!(dumped(" { \"a\" : [ ] , \"A\" : [ 1 , 2 ] } \r"), r#"{"A": [1, 2], "a": []}"#);
    }

    #[test]
    fn of_a_repeated_member_the_last_counts() {
        assert_eq!(dumped(r#"{"a":1,"b":2,"a":3}"#), r#"{"a": 3, "b": 2}"#);
    }

    #[test]
    fn numbers_keep_their_kind() {
        let text = r#"{"a":[12345678901234567890123,-0,-0.0,1E2,1e400,1.10,-7,1e-5]}"#;
        assert_eq!(dumped(text), r#"{"a": [12345678901234567890123, 0, -0.0, 100.0, Infinity, 1.1, -7, 1e-05]}"#);
    }

    #[test]
    fn strings_are_escaped_to_ascii_and_sort_by_code_point() {
        assert_eq!(dumped(r#"{"a":"\u00FC\/\u007f\u0000"}"#), r#"{"a": "\u00fc/\u007f\u0000"}"#);
        assert_eq!(dumped("{\"a\":\"ü\u{1F600}\\ud83d\\ude00\"}"), r#"{"a": "\u00fc\ud83d\ude00\ud83d\ude00"}"#);
        // UTF-16 order would put the pair before U+FFFF.
        assert_eq!(dumped(r#"{"\ud83d\ude00":1,"\uffff":2}"#), r#"{"\uffff": 2, "\ud83d\ude00": 1}"#);
        assert_eq!(dumped(r#"{"a":"\ud83dx\ude00\ud83d\n"}"#), r#"{"a": "\ud83dx\ude00\ud83d\n"}"#);
    }

    #[test]
    fn what_python_refuses_is_refused() {
        let texts = ["", "[]", "{", "{\"a\"}", "{\"a\":}", "{\"a\":01}", "{\"a\":1.}", "{\"a\":.5}", "{\"a\":+1}"];
        let more = ["{\"a\":1,}", "{\"a\":\"\t\"}", "{\"a\":\"\\x\"}", "{\"a\":\"\\u12\"}", "{\"a\":1}x", "{a:1}"];
        for text in texts.iter().chain(&more) {
            assert!(parse_object(text.as_bytes()).is_err(), "{text}");
        }
        assert!(parse_object(b"{\"a\":\"\xff\"}").is_err());
        assert!(parse_object("{\"a\":".repeat(2000).as_bytes()).is_err());
    }

    #[test]
    fn a_member_knows_where_it_stood() {
        let text = br#"{"value": {"b": 1,  "a": 2}, "x": 1}"#;
        let members = parse_object(text).expect("valid");
        let name: PythonText = "value".chars().map(u32::from).collect();
        assert_eq!(&text[members[&name].source.clone()], br#"{"b": 1,  "a": 2}"#);
    }
}
