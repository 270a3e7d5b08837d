//! Nearly valid bytes for the files that `uh-deploy` reads: its configuration and its journal.

#[path = "../../../proxy/tests/it/fuzz/mutate.rs"]
mod mutate;
#[path = "fuzz/properties.rs"]
mod properties;
#[path = "../../../proxy/tests/it/fuzz/shipped.rs"]
mod shipped;
#[path = "fuzz/words.rs"]
mod words;

use std::fs;

use crate::harness::Stage;
use mutate::{fuzz, near};
use properties::{of_config, of_journal};
use shipped::with_all_keys;
use words::WORDS;

#[test]
fn no_configuration_panics() {
    let shipped = include_str!("../../../config/uh-deploy.toml");
    let all_keys = with_all_keys(shipped);
    fuzz(3000, near(vec![shipped.to_owned(), all_keys], WORDS), &[], of_config);
}

#[test]
fn no_journal_panics_and_reading_it_twice_gives_the_same_result() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    stage.expect(0, &["rollback"]);
    let journal = fs::read_to_string(stage.path("deploy-state/journal.jsonl")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    // An incomplete operation is valid too.
    let unfinished = journal.lines().take(4).map(|line| line.to_owned() + "\n").collect();
    fuzz(2000, near(vec![journal, unfinished], WORDS), &[], |bytes| of_journal(bytes, dir.path()));
}
