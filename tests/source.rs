//! Reads this package's own source files, for the tests that hold its structure.

use std::path::{Path, PathBuf};

/// A path inside the package.
pub(crate) fn path(inside: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(inside)
}

/// All files below `folder` whose name ends with one of `endings`, sorted, as paths inside the package.
pub(crate) fn files(folder: &str, endings: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(path(&folder)).unwrap_or_else(|e| panic!("{folder}: {e}")) {
            let entry = entry.unwrap();
            let name = format!("{folder}/{}", entry.file_name().to_string_lossy());
            if entry.file_type().unwrap().is_dir() {
                open.push(name);
            } else if endings.iter().any(|e| name.ends_with(e)) {
                found.push(name);
            }
        }
    }
    found.sort();
    found
}

/// The text of a file of the package.
pub(crate) fn read(inside: &str) -> String {
    std::fs::read_to_string(path(inside)).unwrap_or_else(|e| panic!("{inside}: {e}"))
}

/// An identifier or one character of Rust source.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Token {
    pub(crate) text: String,
    pub(crate) line: usize,
}

/// The tokens of Rust source, without comments, strings and characters.
pub(crate) fn tokens(source: &str) -> Vec<Token> {
    let c: Vec<char> = source.chars().collect();
    let at = |i: usize| c.get(i).copied().unwrap_or('\0');
    let (mut all, mut i, mut line) = (Vec::new(), 0, 1);
    while i < c.len() {
        let start = i;
        match (at(i), at(i + 1)) {
            ('/', '/') => i += c[i..].iter().take_while(|&&c| c != '\n').count(),
            ('/', '*') => i = after_comment(&c, i),
            ('"', _) => i = after_string(&c, i + 1, 0),
            ('r', '"' | '#') if raw_string(&c, i + 1).is_some() => i = raw_string(&c, i + 1).unwrap_or(i + 1),
            ('b', '"') => i = after_string(&c, i + 2, 0),
            ('b', 'r') if raw_string(&c, i + 2).is_some() => i = raw_string(&c, i + 2).unwrap_or(i + 1),
            ('\'', '\\') => i += 3 + c[(i + 3).min(c.len())..].iter().take_while(|&&c| c != '\'').count(),
            ('\'', _) if at(i + 2) == '\'' => i += 3,
            (a, _) if a.is_alphanumeric() || a == '_' => {
                i += c[i..].iter().take_while(|c| c.is_alphanumeric() || **c == '_').count();
                all.push(Token { text: c[start..i].iter().collect(), line });
            }
            (a, _) => {
                i += 1;
                if !a.is_whitespace() {
                    all.push(Token { text: a.to_string(), line });
                }
            }
        }
        i = i.max(start + 1).min(c.len());
        line += c[start..i].iter().filter(|&&c| c == '\n').count();
    }
    all
}

fn after_comment(c: &[char], mut i: usize) -> usize {
    let mut depth = 0;
    while i < c.len() {
        match c[i..] {
            ['/', '*', ..] => (depth, i) = (depth + 1, i + 2),
            ['*', '/', ..] => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            break;
        }
    }
    i
}

/// The end of a string whose content starts at `i`; a raw one ends with `hashes` hashes.
fn after_string(c: &[char], mut i: usize, hashes: usize) -> usize {
    while i < c.len() {
        match c[i] {
            '\\' if hashes == 0 => i += 2,
            '"' if c[i + 1..].iter().take_while(|&&c| c == '#').count() >= hashes => return i + 1 + hashes,
            _ => i += 1,
        }
    }
    i
}

/// The end of a raw string whose hashes or quote start at `i`, if there is one.
fn raw_string(c: &[char], i: usize) -> Option<usize> {
    let hashes = c[i..].iter().take_while(|&&c| c == '#').count();
    (c.get(i + hashes) == Some(&'"')).then(|| {
        if hashes > 0 {
            return after_string(c, i + hashes + 1, hashes);
        }
        i + 2 + c[i + 1..].iter().take_while(|&&c| c != '"').count()
    })
}

#[test]
fn tokens_leave_out_comments_and_strings() {
    let source = r##"
        // crate::a
        /* crate::b /* nested */ */
        let s = "crate::\"c"; let r = r#"crate::"d"#; let c = ['\'', '"', 'x'];
        fn f<'a>(x: &'a str) {} use crate::e; let raw = r"\"; last
    "##;
    let text: Vec<String> = tokens(source).into_iter().map(|t| t.text).collect();
    assert!(!text.iter().any(|t| ["b", "nested", "c\"", "d", "x'"].contains(&t.as_str())), "{text:?}");
    assert!(text.windows(4).any(|w| w == ["crate", ":", ":", "e"]), "{text:?}");
    assert_eq!(tokens(source).last().map(|t| (t.text.clone(), t.line)), Some(("last".into(), 5)));
}
