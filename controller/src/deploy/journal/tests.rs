//! The journal, cut and damaged anywhere.

use proptest::prelude::*;

use super::super::machine::{FailureCause, Outcome};
use super::*;
use crate::runtime::InstanceId;

pub(crate) fn facts(operation: &str) -> OperationFacts {
    let (service, blue, green) = ("app".parse().unwrap(), "blue".parse().unwrap(), "green".parse().unwrap());
    OperationFacts {
        operation: operation.to_owned(),
        instance: InstanceId::new(&service, &green, operation),
        service,
        together_with: Vec::new(),
        from: blue,
        from_version: Some("1".to_owned()),
        to: green,
        version: Some("2".to_owned()),
        endpoints: vec!["127.0.0.1:3009".parse().unwrap()],
        generation: 7,
        last_switch: None,
        skip_health: false,
        keep_failed: false,
        who: "me@here".to_owned(),
        why: None,
        breach: None,
        watch: None,
        canary: None,
        earlier_trial: None,
        began_at: "2026-11-25T10:00:00.000Z".to_owned(),
    }
}

const WELL: [Event; 7] = [
    Event::Built,
    Event::Started,
    Event::Proven,
    Event::Switched,
    Event::Drained,
    Event::Confirmed,
    Event::Recorded,
];

fn open(directory: &Path) -> (Journal, Option<ReplayedOperation>) {
    let file = files::append(&path(directory)).unwrap();
    Journal::open(directory, Rc::new(file)).unwrap()
}

fn write_all(directory: &Path, operation: &str, events: &[Event]) {
    let (mut journal, _) = open(directory);
    journal.write(operation, Event::Begun(OperationKind::Deploy), &[&facts(operation)], None).unwrap();
    for event in events {
        journal.write(operation, *event, &[], None).unwrap();
    }
}

#[test]
fn the_newest_operation_is_read_with_its_phase() {
    let dir = tempfile::tempdir().unwrap();
    assert!(look(dir.path()).unwrap().is_none());
    write_all(dir.path(), "one", &WELL);
    write_all(dir.path(), "two", &WELL[..3]);
    let replayed = look(dir.path()).unwrap().unwrap();
    assert!(replayed.is_unfinished());
    assert_eq!(replayed.facts, facts("two"));
    assert!(matches!(replayed.phase, Phase::Draining(_) | Phase::Switching(_)));
}

#[test]
fn damage_before_the_end_is_an_error_that_names_the_line() {
    let dir = tempfile::tempdir().unwrap();
    write_all(dir.path(), "one", &WELL);
    let text = std::fs::read_to_string(path(dir.path())).unwrap();
    std::fs::write(path(dir.path()), text.replacen("proven", "improven", 1)).unwrap();
    let message = look(dir.path()).unwrap_err().to_string();
    assert!(message.contains("is damaged at line 4"), "{message}");
}

#[test]
fn an_operation_finished_by_an_earlier_version_counts_as_finished() {
    let dir = tempfile::tempdir().unwrap();
    let events = ["\"built\"", "\"started\"", "\"proven\"", "\"switched\"", "\"drained\"", "\"recorded\""];
    write_all(dir.path(), "one", &[]);
    let mut text = std::fs::read_to_string(path(dir.path())).unwrap();
    for event in events {
        text.push_str(&format!("{{\"schema\":2,\"at\":\"\",\"operation\":\"one\",\"event\":{event}}}\n"));
    }
    std::fs::write(path(dir.path()), text.replace("\"schema\":2", "\"schema\":1")).unwrap();
    assert_eq!(look(dir.path()).unwrap().unwrap().phase, Phase::Done(Outcome::Deployed));
    let text = text.replace("\"begun\":\"deploy\"", "\"begun\":\"rollback\"");
    let short = [text.lines().next().unwrap(), text.lines().nth(4).unwrap(), text.lines().nth(6).unwrap()];
    let alive = short[1].replace("switched", "alive");
    let text = [short[0], &alive, short[1], short[2], ""].join("\n").replace("\"schema\":2", "\"schema\":1");
    std::fs::write(path(dir.path()), text).unwrap();
    assert_eq!(look(dir.path()).unwrap().unwrap().phase, Phase::Done(Outcome::RolledBack));
}

#[test]
fn a_journal_that_was_moved_away_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    write_all(dir.path(), "one", &WELL);
    let (mut journal, _) = open(dir.path());
    std::fs::rename(path(dir.path()), dir.path().join("moved")).unwrap();
    for another in [false, true] {
        if another {
            std::fs::write(path(dir.path()), "").unwrap();
        }
        let error =
            journal.write("two", Event::Begun(OperationKind::Deploy), &[&facts("two")], None).unwrap_err();
        assert!(matches!(error, JournalError::Replaced { .. }), "{error}");
    }
}

#[test]
fn a_long_journal_is_emptied_once_nothing_is_unfinished() {
    let dir = tempfile::tempdir().unwrap();
    let line = |n: usize| {
        format!(
            "{}\n",
            serde_json::json!({"schema": 1, "at": "", "operation": "one", "event": "interrupted", "note": "x".repeat(n)})
        )
    };
    write_all(dir.path(), "one", &[Event::Failed(FailureCause::Build)]);
    let mut text = std::fs::read_to_string(path(dir.path())).unwrap();
    text.push_str(&line(usize::try_from(MAX_BYTES).unwrap()));
    std::fs::write(path(dir.path()), &text).unwrap();
    let (mut journal, replayed) = open(dir.path());
    assert!(replayed.unwrap().is_unfinished());
    journal.write("one", Event::Undone, &[], None).unwrap();
    journal.write("one", Event::Confirmed, &[], None).unwrap();
    journal.write("one", Event::Recorded, &[], None).unwrap();
    let (_, replayed) = open(dir.path());
    assert_eq!(replayed.unwrap().phase, Phase::Done(Outcome::Failed(FailureCause::Build)));
    assert!(look(dir.path()).unwrap().is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Cut anywhere, a journal reads as if the torn line had never been started, and can be appended to.
    #[test]
    fn a_journal_cut_anywhere_reads_as_if_the_torn_line_never_started(cut in 0usize..3000) {
        let dir = tempfile::tempdir().unwrap();
        write_all(dir.path(), "one", &WELL[..4]);
        let text = std::fs::read(path(dir.path())).unwrap();
        let cut = cut.min(text.len());
        std::fs::write(path(dir.path()), &text[..cut]).unwrap();
        let whole = text[..cut].iter().filter(|b| **b == b'\n').count();
        let (mut journal, replayed) = open(dir.path());
        prop_assert_eq!(replayed.is_some(), whole > 0);
        if replayed.is_some() {
            journal.write("one", Event::Interrupted, &[], None).unwrap();
            let after = look(dir.path()).unwrap().unwrap();
            prop_assert!(after.is_unfinished());
        }
    }

    #[test]
    fn no_bytes_panic_the_reader(text in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = replay(&text);
    }
}
