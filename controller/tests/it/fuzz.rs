//! Nearly right bytes for the files that `uh-deploy` reads: its configuration and its journal.

#[path = "../../../proxy/tests/it/fuzz/mutate.rs"]
mod mutate;

use std::fs;
use std::path::Path;

use crate::harness::Stage;
use mutate::{fuzz, near, with_all_keys};
use uh_controller::config;
use uh_controller::deploy::journal::{self, Journal};

const WORDS: &[&str] = &[
    "\n",
    "=",
    "[",
    "]",
    "[[",
    "\"",
    "'",
    "{",
    "}",
    ",",
    ".",
    "#",
    "0",
    "-1",
    "9223372036854775808",
    "1e400",
    "true",
    "null",
    "\"1s\"",
    "\"99999999999h\"",
    "\"1GiB\"",
    "[backends.blue]\n",
    "endpoints = []\n",
    "[runtime.docker]\n",
    "\\u0000",
    "\u{0}",
    "\u{e9}",
    "\"Begun\"",
    "\"event\":",
    "\"schema\":2",
    "\"operation\":\"x\"",
    "}\n{",
    "\"begun\":\"deploy\"",
];

#[test]
fn no_configuration_panics() {
    let shipped = include_str!("../../../config/uh-deploy.toml");
    let all_keys = with_all_keys(shipped);
    fuzz(3000, near(vec![shipped.to_owned(), all_keys], WORDS), &[], |bytes| {
        let Ok(config) = config::parse(&String::from_utf8_lossy(bytes), Path::new("/nowhere")) else {
            return Ok(());
        };
        if config.backends.iter().any(|backend| backend.endpoints.is_empty()) {
            return Err(format!("accepted: {config:?}"));
        }
        Ok(())
    });
}

/// Whatever its bytes are, it is read or told as damaged; looking changes nothing; and opening takes away at most a last
/// line that can't be read, and then tells the same story.
#[test]
fn no_journal_panics_and_opening_it_twice_tells_the_same_story() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    stage.expect(0, &["rollback"]);
    let journal = fs::read_to_string(stage.path("deploy-state/journal.jsonl")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.jsonl");
    // Half of an operation is a story too.
    let unfinished = journal.lines().take(4).map(|line| line.to_owned() + "\n").collect();
    fuzz(2000, near(vec![journal, unfinished], WORDS), &[], |bytes| {
        fs::write(&path, bytes).unwrap();
        let looked = journal::look(dir.path()).map(|story| format!("{story:?}")).map_err(|e| e.to_string());
        if fs::read(&path).unwrap() != bytes {
            return Err("looking has changed it".to_owned());
        }
        for _ in 0..2 {
            let opened =
                Journal::open(dir.path()).map(|(_, story)| format!("{story:?}")).map_err(|e| e.to_string());
            if opened != looked {
                return Err(format!("looked: {looked:?}\nopened: {opened:?}"));
            }
        }
        let left = fs::read(&path).unwrap();
        let lost = bytes.strip_prefix(left.as_slice()).ok_or("more than its end has changed")?;
        if lost.iter().filter(|&&byte| byte == b'\n').count() > 1 {
            return Err(format!("lost: {:?}", String::from_utf8_lossy(lost)));
        }
        Ok(())
    });
}
