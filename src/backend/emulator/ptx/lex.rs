//! Words of PTX text.

use std::ops::Range;

/// A word with its place in the text.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token<'a> {
    pub kind: Kind,
    pub text: &'a str,
    pub at: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Opcodes, registers, directives, symbols: anything that starts with a letter or one of `_$%.`.
    Word,
    Number,
    /// A quoted string, without its quotes.
    Text,
    Sign,
    End,
}

/// Reads words one at a time.
#[derive(Debug)]
pub(super) struct Lexer<'a> {
    source: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(source: &'a str) -> Lexer<'a> {
        Lexer { source, at: 0 }
    }

    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn skip_blank(&mut self) {
        loop {
            self.at = self.source.len() - self.rest().trim_start().len();
            let rest = self.rest();
            let comment = if rest.starts_with("//") {
                rest.find('\n')
            } else if rest.starts_with("/*") {
                rest.find("*/").map(|n| n + 2)
            } else {
                return;
            };
            self.at += comment.unwrap_or(rest.len());
        }
    }

    /// The next word; [`Kind::End`] for ever after the last.
    pub(super) fn next(&mut self) -> Token<'a> {
        self.skip_blank();
        let (at, rest) = (self.at, self.rest());
        let Some(first) = rest.chars().next() else {
            return Token { kind: Kind::End, text: "", at };
        };
        let (kind, len, text) = match first {
            '"' => {
                let len = rest[1..].find('"').map_or(rest.len(), |n| n + 2);
                (Kind::Text, len, rest[1..len].trim_end_matches('"'))
            }
            '0'..='9' => {
                let len = number_len(rest);
                (Kind::Number, len, &rest[..len])
            }
            c if is_word(c) => {
                let len = word_len(rest);
                (Kind::Word, len, &rest[..len])
            }
            c => (Kind::Sign, c.len_utf8(), &rest[..c.len_utf8()]),
        };
        self.at += len;
        Token { kind, text, at }
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '%' | '.')
}

/// Words hold dots and `::`, as in `shared::cta`; a single colon ends a label.
fn word_len(rest: &str) -> usize {
    let mut len = 0;
    loop {
        len += rest[len..].find(|c| !is_word(c)).unwrap_or(rest.len() - len);
        let after = &rest[len..];
        if !after.starts_with("::") || !after[2..].starts_with(is_word) {
            return len;
        }
        len += 2;
    }
}

/// Numbers hold letters (`0x1f`, `0f3F800000`, `7U`), a point, and a sign after a decimal exponent.
fn number_len(rest: &str) -> usize {
    let bytes = rest.as_bytes();
    let is_decimal = !(rest.len() > 1 && bytes[0] == b'0' && bytes[1].is_ascii_alphabetic());
    let mut len = 0;
    while let Some(&c) = bytes.get(len) {
        let after_exponent = is_decimal && len > 0 && matches!(bytes[len - 1], b'e' | b'E');
        if !(c.is_ascii_alphanumeric() || c == b'.' || (after_exponent && matches!(c, b'+' | b'-'))) {
            break;
        }
        len += 1;
    }
    len
}

/// The line of byte `at`, from 1.
pub(super) fn line_of(source: &str, at: usize) -> usize {
    1 + source.as_bytes()[..at.min(source.len())].iter().filter(|&&b| b == b'\n').count()
}

/// The text of an instruction on one line, with single spaces.
pub(super) fn one_line(source: &str, range: Range<usize>) -> String {
    source.get(range).unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_numbers_and_signs_are_told_apart() {
        let source =
            "@!%p1 mov.f32 %f1, 0f3F800000; // note\n$L_1: ld.shared::cta.u32 %r, [%rd5+-4]; /* x */ 1.5e-3 \"a b\" 7U";
        let mut lexer = Lexer::new(source);
        let mut words = Vec::new();
        loop {
            let token = lexer.next();
            if token.kind == Kind::End {
                break;
            }
            words.push((token.kind, token.text));
        }
        let text: Vec<&str> = words.iter().map(|w| w.1).collect();
        assert_eq!(
            text,
            [
                "@",
                "!",
                "%p1",
                "mov.f32",
                "%f1",
                ",",
                "0f3F800000",
                ";",
                "$L_1",
                ":",
                "ld.shared::cta.u32",
                "%r",
                ",",
                "[",
                "%rd5",
                "+",
                "-",
                "4",
                "]",
                ";",
                "1.5e-3",
                "a b",
                "7U"
            ]
        );
        assert_eq!(words[6].0, Kind::Number);
        assert_eq!(words[20].0, Kind::Number);
        assert_eq!(words[21].0, Kind::Text);
        assert_eq!((line_of(source, 41), one_line(source, 6..24).as_str()), (2, "mov.f32 %f1, 0f3F8"));
    }
}
