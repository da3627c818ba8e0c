//! Source files as the rules see them: text, text without comments and literals, and which lines are
//! tests. A small lexer, good enough for formatted Rust; it does not parse.

use std::ops::Range;
use std::path::{Path, PathBuf};

/// Where workspace members live; below them everything that ends in `.rs` is a source.
const ROOTS: [&str; 3] = ["node", "operator", "tests"];

pub(crate) struct Source {
    /// Relative to the workspace.
    pub(crate) path: String,
    pub(crate) text: String,
    /// The same length and lines, with comments, strings and characters blanked.
    pub(crate) code: String,
    /// Byte ranges of `#[cfg(test)]` items.
    test_items: Vec<Range<usize>>,
    /// Another file declares it under `#[cfg(test)]`.
    declared_as_test: bool,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let code = blank(text);
        let test_items = test_items(&code);
        Self { path: path.to_owned(), text: text.to_owned(), code, test_items, declared_as_test: false }
    }

    /// A file that exists for tests or measurements alone.
    pub(crate) fn is_test_file(&self) -> bool {
        let parts: Vec<&str> = self.path.split('/').collect();
        self.declared_as_test
            || parts[0] == "tests"
            || parts.iter().any(|p| ["tests", "tests.rs", "benches"].contains(p))
    }

    /// The files of the modules that it declares under `#[cfg(test)]`.
    fn test_modules(&self) -> Vec<String> {
        let dir = match self.path.strip_suffix("/lib.rs").or(self.path.strip_suffix("/main.rs")) {
            Some(dir) => dir,
            None => self.path.trim_end_matches(".rs"),
        };
        let after = self.code.split("#[cfg(test)]").skip(1).map(str::trim_start);
        let names =
            after.filter_map(|code| code.trim_start_matches("pub(crate) ").strip_prefix("mod ")?.split_once(';'));
        names.filter(|(name, _)| !name.contains('{')).map(|(name, _)| format!("{dir}/{name}.rs")).collect()
    }

    /// The places where `pattern` stands in code that is not a test, as `path:line`.
    pub(crate) fn find_outside_tests(&self, pattern: &str) -> Vec<String> {
        if self.is_test_file() {
            return Vec::new();
        }
        let outside = |at: &usize| !self.test_items.iter().any(|range| range.contains(at));
        find_all(&self.code, pattern).into_iter().filter(outside).map(|at| self.place(at)).collect()
    }

    /// The places where `pattern` stands in code, tests included.
    pub(crate) fn find(&self, pattern: &str) -> Vec<String> {
        find_all(&self.code, pattern).into_iter().map(|at| self.place(at)).collect()
    }

    /// The places where `pattern` stands in test code.
    pub(crate) fn find_in_tests(&self, pattern: &str) -> Vec<String> {
        let inside = |at: &usize| self.is_test_file() || self.test_items.iter().any(|range| range.contains(at));
        find_all(&self.code, pattern).into_iter().filter(inside).map(|at| self.place(at)).collect()
    }

    pub(crate) fn place(&self, at: usize) -> String {
        format!("{}:{}", self.path, self.code[..at].matches('\n').count() + 1)
    }

    /// Every function with a body: its place, its name and its lines.
    pub(crate) fn functions(&self) -> Vec<(String, String, usize)> {
        let starts = find_all(&self.code, "fn ").into_iter().filter(|&at| starts_word(&self.code, at));
        starts
            .filter_map(|at| {
                let body = block(&self.code, at)?;
                let name: String =
                    self.code[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let lines = self.code[at..body.end].matches('\n').count() + 1;
                (!name.is_empty()).then(|| (self.place(at), name, lines))
            })
            .collect()
    }
}

/// All sources of the workspace.
pub(crate) fn sources() -> Vec<Source> {
    let workspace = workspace();
    let mut files = Vec::new();
    for root in ROOTS {
        collect(&workspace.join(root), &mut files);
    }
    files.sort();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        let relative = path.strip_prefix(&workspace).unwrap().to_str().unwrap().to_owned();
        Source::new(&relative, &text)
    };
    let mut sources: Vec<Source> = files.into_iter().map(read).collect();
    let tests: Vec<String> = sources.iter().flat_map(Source::test_modules).collect();
    for source in &mut sources {
        // What a test module declares is a test, too.
        source.declared_as_test = tests
            .iter()
            .any(|test| source.path == *test || source.path.starts_with(&format!("{}/", test.trim_end_matches(".rs"))));
    }
    sources
}

pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() && !["target", "data"].iter().any(|skipped| path.ends_with(skipped)) {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

fn find_all(text: &str, pattern: &str) -> Vec<usize> {
    text.match_indices(pattern).map(|(at, _)| at).collect()
}

fn starts_word(text: &str, at: usize) -> bool {
    !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_')
}

/// The block in braces after `at`; None when a semicolon comes first.
fn block(code: &str, at: usize) -> Option<Range<usize>> {
    let mut round_and_square = 0_i32;
    let open = code[at..].char_indices().find_map(|(i, c)| {
        match c {
            '(' | '[' => round_and_square += 1,
            ')' | ']' => round_and_square -= 1,
            '{' if round_and_square == 0 => return Some(Some(at + i)),
            ';' if round_and_square == 0 => return Some(None),
            _ => {}
        }
        None
    })??;
    let mut depth = 0;
    for (i, c) in code[open..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(open..open + i + 1);
        }
    }
    None
}

fn test_items(code: &str) -> Vec<Range<usize>> {
    if code.contains("#![cfg(test)]") {
        return std::iter::once(0..code.len()).collect();
    }
    find_all(code, "#[cfg(test)]").into_iter().filter_map(|at| Some(at..block(code, at + 12)?.end)).collect()
}

/// Blanks comments, strings and characters; lengths and line breaks stay.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_end(bytes, at);
        for byte in &mut out[at..end.max(at)] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    String::from_utf8(out).unwrap()
}

/// The end of the comment or literal that begins here; `at` itself when none does.
fn literal_end(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let before = at.checked_sub(1).map_or(b' ', |i| bytes[i]);
    let after_word = before.is_ascii_alphanumeric() || before == b'_';
    if rest.starts_with(b"//") {
        return at + rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
    }
    if rest.starts_with(b"/*") {
        return at + find_bytes(rest, b"*/").map_or(rest.len(), |i| i + 2);
    }
    if rest[0] == b'"' {
        return at + quoted_end(rest, b'"');
    }
    if (rest.starts_with(b"r\"") || rest.starts_with(b"r#")) && (!after_word || before == b'b') {
        return at + raw_string_end(rest).unwrap_or(0);
    }
    if rest[0] == b'\'' && is_character(rest) {
        return at + quoted_end(rest, b'\'');
    }
    at
}

fn quoted_end(rest: &[u8], quote: u8) -> usize {
    let mut i = 1;
    while i < rest.len() && rest[i] != quote {
        i += if rest[i] == b'\\' { 2 } else { 1 };
    }
    (i + 1).min(rest.len())
}

fn raw_string_end(rest: &[u8]) -> Option<usize> {
    let hashes = rest[1..].iter().take_while(|b| **b == b'#').count();
    if rest.get(1 + hashes) != Some(&b'"') {
        return None;
    }
    let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let body = hashes + 2;
    Some(body + find_bytes(&rest[body..], &close)? + close.len())
}

/// A character, not a lifetime: an escape, or a quote after one character.
fn is_character(rest: &[u8]) -> bool {
    if rest.get(1) == Some(&b'\\') {
        return true;
    }
    let text = &rest[1..rest.len().min(6)];
    let length = match text.first() {
        Some(b) if *b < 0x80 => 1,
        Some(b) if *b < 0xe0 => 2,
        Some(b) if *b < 0xf0 => 3,
        _ => 4,
    };
    text.get(length) == Some(&b'\'')
}

fn find_bytes(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[test]
fn comments_strings_and_characters_are_no_code() {
    let text = "let a = \"x.unwrap()\"; // .unwrap()\nlet b: &'static str = r#\"}\"#; let c = '{'; /* } */ f(b'\\'');";
    let code = blank(text);
    assert_eq!(code.len(), text.len());
    assert!(!code.contains("unwrap") && !code.contains('{') && !code.contains('}'), "{code}");
    assert!(code.contains("&'static str"));
}

#[test]
fn a_test_module_is_told_from_the_code_above_it() {
    let source = Source::new(
        "node/src/a.rs",
        "fn a() { b.unwrap(); }\n#[cfg(test)]\nmod tests {\n    fn c() { d.unwrap() }\n}\n",
    );
    assert_eq!(source.find_outside_tests(".unwrap()"), ["node/src/a.rs:1"]);
    assert_eq!(source.find_in_tests(".unwrap()"), ["node/src/a.rs:4"]);
}

#[test]
fn functions_are_found_with_their_lines() {
    let source = Source::new("node/src/a.rs", "trait T { fn declared(&self) -> [u8; 3]; }\nfn long()\n{\n    x\n}\n");
    assert_eq!(source.functions(), [("node/src/a.rs:2".to_owned(), "long".to_owned(), 4)]);
}
