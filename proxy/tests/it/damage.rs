//! The state file, damaged in every way that one cut or one byte allows.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use uh_proxy::state::file::{StateError, StateFile};
use uh_proxy::state::store::Store;

/// A state with everything in it that a state can have.
pub(crate) const WHOLE: &str = r#"{
  "active": "green", "previous": "blue", "lastSwitch": "2026-11-23T17:18:13Z", "version": "1.0.1", "healthy": true,
  "schema": 1, "generation": 17,
  "services": {
    "app": {"active": "green", "previous": "blue", "lastSwitch": "2026-11-23T17:18:13Z",
      "registered": {"blue": {"endpoints": ["127.0.0.1:3010", "unix:/run/blue.sock"], "version": "1.0.2"}}, "withdrawn": ["blue"]},
    "web": {"active": "one", "previous": null, "lastSwitch": null,
      "maintenance": {"since": "2026-11-23T17:18:13Z", "message": "Back at noon.", "retryAfterS": 300}}
  }
}"#;

fn whole() -> (StateFile, Vec<u8>) {
    let state = StateFile::parse(WHOLE.as_bytes()).unwrap();
    let text = state.text().unwrap();
    (state, text)
}

#[test]
fn a_state_file_that_is_cut_short_or_changed_in_a_byte_is_never_read_as_another_state() {
    let (state, text) = whole();
    assert_eq!(StateFile::parse(&text).unwrap(), state);
    let judge = |bad: &[u8], what: &str| {
        if let Ok(read) = StateFile::parse(bad) {
            assert_eq!(read, state, "{what}: {}", String::from_utf8_lossy(bad));
        }
    };
    for cut in 0..text.len() {
        judge(&text[..cut], "cut short");
    }
    for at in 0..text.len() {
        for change in 1..=255 {
            let mut bad = text.clone();
            bad[at] ^= change;
            judge(&bad, "changed");
        }
        let mut bad = text.clone();
        bad.remove(at);
        judge(&bad, "one byte lost");
    }
}

#[test]
fn whatever_is_damaged_the_last_good_copy_is_used_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.json");
    let (state, text) = whole();
    let store = Store::open(&path).unwrap();
    for at in (0..text.len()).step_by(7) {
        for bad in [text[..at].to_vec(), changed(&text, at)] {
            store.save(&state).unwrap();
            store.save_copy(&state).unwrap();
            fs::write(&path, &bad).unwrap();
            let loaded = store.load();
            assert_eq!(loaded.state.as_ref(), Some(&state), "byte {at}");
            assert!(
                StateFile::parse(&bad).is_ok() || loaded.warnings.iter().any(|w| w.contains("last-good")),
                "byte {at}: damage passed in silence"
            );
        }
    }
}

fn changed(text: &[u8], at: usize) -> Vec<u8> {
    let mut bad = text.to_vec();
    bad[at] ^= 4;
    bad
}

#[test]
fn a_state_file_made_by_hand_needs_no_checksum() {
    let (mut state, text) = whole();
    let text = String::from_utf8(text).unwrap();
    let by_hand = text.replace("\"green\"", "\"blue\"");
    assert!(StateFile::parse(by_hand.as_bytes()).unwrap_err().to_string().contains("checksum"));
    let line = by_hand.lines().find(|line| line.contains("checksum")).unwrap();
    let without = by_hand.replace(&format!(",\n{line}"), "");
    state.active = "blue".parse().unwrap();
    let read = StateFile::parse(without.as_bytes()).unwrap();
    assert_eq!(read.active, state.active);
}

#[test]
fn a_field_that_only_another_version_knows_is_no_damage() {
    let (state, text) = whole();
    let mut newer: serde_json::Value = serde_json::from_slice(&text).unwrap();
    newer["later"] = "field".into();
    let Err(StateError::Checksum { right, .. }) = StateFile::parse(&serde_json::to_vec(&newer).unwrap())
    else {
        panic!("a field that the checksum does not cover");
    };
    newer["checksum"] = right.into();
    assert_eq!(StateFile::parse(&serde_json::to_vec(&newer).unwrap()).unwrap(), state);
}

#[test]
fn the_documented_file_is_one_that_we_write() {
    let page = include_str!("../../../docs/state-file.md");
    let (_, rest) = page.split_once("## Example\n\n```json\n").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    let state = StateFile::parse(example.as_bytes()).unwrap();
    assert_eq!(String::from_utf8(state.text().unwrap()).unwrap(), example);
}

#[test]
fn what_somebody_else_has_put_in_the_place_of_our_files_is_never_written_through() {
    let dir = tempfile::tempdir().unwrap();
    let (state, text) = whole();
    let precious = dir.path().join("precious");
    for name in [
        "state.json",
        "state.json.tmp",
        "state.json.last-good",
        "state.json.last-good.tmp",
        "state.json.lock",
    ] {
        let path = dir.path().join("state.json");
        fs::write(&precious, "mine").unwrap();
        std::os::unix::fs::symlink(&precious, dir.path().join(name)).unwrap();
        let store = Store::open(&path).unwrap();
        store.save(&state).unwrap();
        store.save_copy(&state).unwrap();
        assert_eq!(fs::read_to_string(&precious).unwrap(), "mine", "{name} was followed");
        assert_eq!(fs::read(&path).unwrap(), text);
        assert!(is_file(&path), "{name}");
        drop(store);
        for entry in fs::read_dir(dir.path()).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
    }
}

/// What the sweep above is there for: JSON alone takes many a changed byte for another state.
#[test]
fn without_its_checksum_a_changed_byte_could_move_traffic() {
    let (state, text) = whole();
    let text = String::from_utf8(text).unwrap();
    let line = text.lines().find(|line| line.contains("checksum")).unwrap();
    let text = text.replace(&format!(",\n{line}"), "").into_bytes();
    assert_eq!(StateFile::parse(&text).unwrap(), state);
    let reads = (0..text.len()).map(|at| StateFile::parse(&changed(&text, at)));
    let wrong = reads.filter(|read| read.as_ref().is_ok_and(|read| *read != state)).count();
    assert!(wrong > 50, "{wrong}");
}

fn is_file(path: &Path) -> bool {
    fs::symlink_metadata(path).unwrap().is_file()
}

#[test]
fn a_pipe_or_directory_in_the_place_of_the_state_file_is_damage_and_no_wait() {
    let (state, _) = whole();
    for pipe in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        if pipe {
            assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        } else {
            fs::create_dir(&path).unwrap();
        }
        let store = Store::open(&path).unwrap();
        let begun = Instant::now();
        let loaded = store.load();
        assert!(begun.elapsed() < Duration::from_secs(10));
        assert!(loaded.warnings[0].contains("not a regular file"), "{:?}", loaded.warnings);
        store.save(&state).unwrap();
        assert!(is_file(&path));
    }
}
