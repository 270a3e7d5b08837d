//! Environment files, read as compose v2 reads them (compose-go's `dotenv`), or rejected.
//!
//! ```text
//! # a comment             NAME=value             export NAME=value       NAME = value
//! NAME=two words # why    → two words            (a comment begins after a space)
//! NAME='as it is, $too'   → as it is, $too       over several lines if need be
//! NAME="a\nb \"c\" \$d"   → a, a new line, b "c" $d; over several lines if need be
//! ```
//!
//! The last assignment of a name counts. What compose would read differently than it looks is rejected, with its
//! line: `$` outside single quotes (compose replaces `$NAME`; use single quotes, or `\$` in double quotes), a name
//! without `=` (compose passes on its own variable), an unclosed quote, text after a closing quote, an unknown
//! escape. docker-compose 1.29 kept `$` and stripped comments after any white space; where the two differ, v2 counts.

use std::collections::BTreeMap;
use std::path::Path;

use crate::files;

/// The largest file: far more than the kernel accepts as a program's environment.
const MAX_BYTES: usize = 16 << 20;

/// Reads a file. Errors name the line, but never its value.
///
/// # Errors
/// It can't be read, or not as compose would read it.
pub fn read(path: &Path) -> Result<BTreeMap<String, String>, String> {
    let found = files::read_foreign(path, MAX_BYTES);
    let bytes = found.map_err(|e| format!("can't read {}: {}", path.display(), crate::chain(&e)))?;
    let text = String::from_utf8(bytes).map_err(|_| format!("{} isn't UTF-8", path.display()))?;
    parse(&text).map_err(|wrong| format!("{}, line {}: {}", path.display(), wrong.line, wrong.reason))
}

/// Why a file can't be used.
#[derive(Debug, PartialEq, Eq)]
struct ParseError {
    line: usize,
    reason: &'static str,
}

const DOLLAR: &str = "compose would interpolate the $: put the value in single quotes to keep it";

fn parse(text: &str) -> Result<BTreeMap<String, String>, ParseError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).replace("\r\n", "\n");
    let mut variables = BTreeMap::new();
    let (mut rest, mut line) = (text.as_str(), 1);
    while !rest.is_empty() {
        let statement = rest.trim_start_matches(blank);
        if statement.is_empty() || statement.starts_with('#') || statement.starts_with('\n') {
            rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
            line += 1;
            continue;
        }
        let (name, value) = name(statement).map_err(|reason| ParseError { line, reason })?;
        let wrong = |reason| ParseError { line, reason };
        let (value, after) = match value.chars().next() {
            Some(quote @ ('"' | '\'')) => {
                let within = &value[1..];
                let end = closing(within, quote).ok_or(wrong("unclosed quote"))?;
                let (value, after) = (&within[..end], &within[end + 1..]);
                let left = after.split('\n').next().unwrap_or_default().trim_matches(blank);
                if !left.is_empty() && !left.starts_with('#') {
                    return Err(wrong("text after the closing quote"));
                }
                let read = if quote == '"' { double_quoted(value) } else { Ok(value.replace("\\'", "'")) };
                (read.map_err(wrong)?, after)
            }
            _ => {
                let (value, _) = value.split_once('\n').unwrap_or((value, ""));
                let (bare, _) = value.split_once(" #").unwrap_or((value, ""));
                if bare.contains('$') {
                    return Err(wrong(DOLLAR));
                }
                (bare.trim_end().to_owned(), &statement[value_end(statement)..])
            }
        };
        if value.contains('\0') {
            return Err(wrong("a value can't contain a NUL byte"));
        }
        variables.insert(name.to_owned(), value);
        let next = after.split_once('\n').map_or("", |(_, rest)| rest);
        line += rest[..rest.len() - next.len()].matches('\n').count().max(1);
        rest = next;
    }
    Ok(variables)
}

/// White space other than a line end.
fn blank(c: char) -> bool {
    c != '\n' && c.is_whitespace()
}

fn value_end(statement: &str) -> usize {
    statement.find('\n').unwrap_or(statement.len())
}

/// Splits `export NAME = VALUE…` into the name and the rest.
fn name(statement: &str) -> Result<(&str, &str), &'static str> {
    const EXPECTED: &str = "expected NAME=value";
    let exported = statement.strip_prefix("export").filter(|rest| rest.starts_with(blank));
    let statement = exported.unwrap_or(statement).trim_start_matches(blank);
    let (name, value) = statement.split_once('=').ok_or(EXPECTED)?;
    let name = name.trim_end_matches(blank);
    let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if name.is_empty() || !name.bytes().all(fits) {
        return Err(EXPECTED);
    }
    Ok((name, value.trim_start_matches(blank)))
}

/// Where a quoted value ends: at the first quote without a backslash before it.
fn closing(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(at),
            _ => {}
        }
    }
    None
}

fn double_quoted(text: &str) -> Result<String, &'static str> {
    let mut value = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        value.push(match c {
            '$' => return Err(DOLLAR),
            '\\' => match characters.next() {
                Some('n') => '\n',
                Some('r') => '\r',
                Some('t') => '\t',
                Some(c @ ('"' | '\\' | '$')) => c,
                _ => return Err("unknown escape: only \\n, \\r, \\t, \\\", \\\\ and \\$ are supported"),
            },
            c => c,
        });
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn reads(text: &str, expected: &[(&str, &str)]) {
        let expected = expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        assert_eq!(parse(text), Ok(expected.collect()), "{text:?}");
    }

    #[test]
    fn assignments_are_read_as_compose_reads_them() {
        reads(
            "# comment\n\n  # more\nA=1\nexport B=x\nC = y \nD=\nA=2",
            &[("A", "2"), ("B", "x"), ("C", "y"), ("D", "")],
        );
        reads(
            "A=two words # why\nB=a#b\nC=it's\nD= # none",
            &[("A", "two words"), ("B", "a#b"), ("C", "it's"), ("D", "# none")],
        );
        reads(
            "A=\"two words\" # why\nB='x=y # z'\r\nC=\"\"\r\n",
            &[("A", "two words"), ("B", "x=y # z"), ("C", "")],
        );
        reads(
            "\u{feff}A=\"a\\nb \\\"c\\\" \\$d \\\\\"\nB='$A \\n it\\'s'",
            &[("A", "a\nb \"c\" $d \\"), ("B", "$A \\n it's")],
        );
    }

    #[test]
    fn a_quoted_value_may_span_lines_and_later_line_numbers_stay_right() {
        reads(
            "KEY=\"-----BEGIN-----\nabc=\n-----END-----\"\nB='x\ny'\nC=3\n",
            &[("KEY", "-----BEGIN-----\nabc=\n-----END-----"), ("B", "x\ny"), ("C", "3")],
        );
        assert_eq!(parse("A=\"x\ny\"\n\nnonsense\n").unwrap_err().line, 4);
    }

    #[test]
    fn what_compose_would_read_differently_is_rejected_with_its_line() {
        for (text, line) in [
            ("A=1\nsecret words\n", 2),
            ("A=1\nNAME_ALONE\n", 2),
            ("=x", 1),
            ("A B=x", 1),
            ("A=1\n\nB=\"open\nC=2\n", 3),
            ("B='open", 1),
            ("A=\"a\" b", 1),
            ("A='a'b", 1),
            ("A=pa$word", 1),
            ("A=1\nB=\"${A}\"", 2),
            ("A=\"\\x\"", 1),
            ("A=a\0b", 1),
        ] {
            assert_eq!(parse(text).map_err(|wrong| wrong.line), Err(line), "{text:?}");
        }
    }
}
