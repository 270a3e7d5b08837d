//! Text for operators and contributors is plain technical English: phrases that would sound translated don't come back.

use std::fs;
use std::path::{Path, PathBuf};

use super::root;

/// Phrases that aren't used, with what to write instead.
const PHRASES: [(&str, &str); 43] = [
    ("anew", "again"),
    ("mend", "fix"),
    ("mends", "fixes"),
    ("mended", "fixed"),
    ("for ever", "indefinitely"),
    ("all the same", "anyway"),
    ("has come", "has arrived"),
    ("have come", "have arrived"),
    ("can't be had", "isn't available"),
    ("could be had", "was available"),
    ("must be had", "is required"),
    ("let go", "close or release"),
    ("lets go", "closes or releases"),
    ("beside", "next to, or in addition to"),
    ("is told", "is notified, is sent, is logged"),
    ("are told", "are notified, are sent, are logged"),
    ("was told", "was notified, was sent, was logged"),
    ("be told", "be determined, be notified"),
    ("tells of", "reports"),
    ("told of", "reported"),
    ("hears", "is notified, receives"),
    ("hears of", "is notified of"),
    ("heard of", "notified of"),
    ("sign of life", "watchdog ping"),
    ("blotted out", "redacted"),
    ("what becomes of", "what happens to"),
    ("what became of", "what happened to"),
    ("can't be meant", "is invalid"),
    ("shown out", "dropped"),
    ("needs somebody", "manual intervention required"),
    ("speaks against", "is a reason against"),
    ("as ever", "as usual"),
    ("may say no", "can veto"),
    ("gets through", "can connect, bypasses"),
    ("whose word", "which is trusted"),
    ("at the end of the process", "at shutdown"),
    ("stays in force", "is still served, still applies"),
    ("is no news", "isn't reported"),
    ("certificate is for", "certificate covers"),
    ("taken up again", "resumed"),
    ("he", "it, they or you"),
    ("him", "it, them or you"),
    ("his", "its, their or your"),
];

/// Folders and pages whose text is checked, with their comments.
const CHECKED: [&str; 12] = [
    "proxy",
    "controller",
    "app-shim",
    "docker",
    "benches",
    "config",
    "docs",
    ".github",
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
];

const KINDS: [&str; 8] = ["rs", "md", "toml", "yml", "json", "service", "socket", "timer"];

/// This list itself, and files that programs write.
const EXCEPT: [&str; 3] = ["benches/tests/it/docs/language.rs", "benches/fuzz/Cargo.lock", "benches/out"];

#[test]
fn no_phrase_sounds_translated() {
    let mut found = Vec::new();
    for path in CHECKED.iter().map(|path| root().join(path)).filter(|path| path.exists()).flat_map(files) {
        let text = flat(&fs::read_to_string(&path).unwrap());
        let phrases = PHRASES.iter().filter(|(phrase, _)| has(&text, phrase));
        let path = path.strip_prefix(root()).unwrap();
        found.extend(phrases.map(|(phrase, instead)| format!("{}: {phrase:?}: {instead}", path.display())));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn phrases_are_found_across_lines_and_only_as_words() {
    let text = flat("/// It is read\n    /// Anew, for\n// ever; renewed.\n\"again \\\n   and again\"");
    assert!(has(&text, "anew") && has(&text, "for ever") && has(&text, "again and again"));
    assert!(!has(&text, "new") && !has(&text, "ever and"));
}

/// The files below a path that have text of ours.
fn files(path: PathBuf) -> Vec<PathBuf> {
    let relative = path.strip_prefix(root()).unwrap();
    if EXCEPT.iter().any(|except| relative == Path::new(except)) {
        return Vec::new();
    }
    if path.is_dir() {
        let inside = path.read_dir().unwrap().map(|entry| entry.unwrap().path());
        return inside.flat_map(files).collect();
    }
    let kind = path.extension().is_some_and(|kind| KINDS.iter().any(|known| kind == *known));
    if kind { vec![path] } else { Vec::new() }
}

/// A text in lowercase without line ends, comment signs and continued strings, so that a phrase may span lines.
fn flat(text: &str) -> String {
    let line = |line: &str| {
        let line = line.trim().trim_end_matches('\\');
        line.trim_start_matches(['/', '!', '#', '>', '-', '*']).trim().to_lowercase()
    };
    text.lines().map(line).collect::<Vec<_>>().join(" ")
}

/// Whether a text has a phrase as whole words.
fn has(text: &str, phrase: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(phrase)
        .any(|(at, _)| !text[..at].ends_with(word) && !text[at + phrase.len()..].starts_with(word))
}
