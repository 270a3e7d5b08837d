//! The documentation says what the code says: links, configuration keys, options, exit codes, metrics, wire words, and
//! the examples, which are run.

use std::fs;

use super::workspace::root;

mod examples;
mod keys;
mod language;
mod links;
mod programs;
mod words;

/// A file of the repository.
fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// What stands under a heading, up to the next one of the same or a higher level. `heading` with its `#`s.
fn chapter<'a>(page: &'a str, heading: &str) -> &'a str {
    let level = heading.bytes().take_while(|b| *b == b'#').count();
    let mut begin = None;
    let mut at = 0;
    let mut in_code = false;
    for line in page.split_inclusive('\n') {
        in_code ^= line.starts_with("```");
        let hashes = line.bytes().take_while(|b| *b == b'#').count();
        if !in_code && (1..=level).contains(&hashes) {
            if let Some(begin) = begin {
                return &page[begin..at];
            }
            if line.trim_end() == heading {
                begin = Some(at + line.len());
            }
        }
        at += line.len();
    }
    &page[begin.unwrap_or_else(|| panic!("there is no heading {heading:?}"))..]
}

/// The cells of every table row, without the lines below the heads.
fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let lines = text.lines().filter(|line| line.starts_with('|') && !line.starts_with("|---"));
    lines.map(|line| line.trim().trim_matches('|').split('|').map(str::trim).collect())
}

/// What stands in `backticks`.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}
