//! The state file: damaged by every truncation and every changed byte; and intact but unreadable, which isn't damage.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use uh_proxy::state::file::{StateError, StateFile};
use uh_proxy::state::store::{Store, StoreError};
use uh_testkit::fuzz::words::WHOLE_STATE;

use crate::harness::{Home, cli, pair, soon, until};

fn whole() -> (StateFile, Vec<u8>) {
    let state = StateFile::parse(WHOLE_STATE.as_bytes()).unwrap();
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
fn whatever_is_damaged_the_last_good_copy_is_used_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.json");
    let (state, text) = whole();
    let store = Store::open(&path).unwrap();
    for at in (0..text.len()).step_by(7) {
        for bad in [text[..at].to_vec(), changed(&text, at)] {
            store.save(&state).unwrap();
            store.save_copy(&state).unwrap();
            fs::write(&path, &bad).unwrap();
            let loaded = store.load().unwrap();
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
fn a_link_in_place_of_a_file_is_never_written_through() {
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
        if name.ends_with(".lock") {
            // uh-proxy doesn't run without its lock.
            let error = Store::open(&path).unwrap_err();
            assert!(matches!(error, StoreError::Lock { .. }), "{error}");
            assert_eq!(fs::read_to_string(&precious).unwrap(), "mine", "{name} was followed");
            fs::remove_file(dir.path().join(name)).unwrap();
        }
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

/// The reason for the sweep above: with a changed byte, a file is often still valid JSON with another state.
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
        let loaded = store.load().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(10));
        assert!(loaded.warnings[0].contains("not a regular file"), "{:?}", loaded.warnings);
        store.save(&state).unwrap();
        assert!(is_file(&path));
    }
}

#[test]
fn a_registration_with_what_is_no_endpoint_is_damage_and_not_left_out() {
    for endpoints in ["[\"127.0.0.1:3010\", \"nowhere\"]", "[]"] {
        let text = WHOLE_STATE.replace("[\"127.0.0.1:3010\", \"unix:/run/blue.sock\"]", endpoints);
        assert_ne!(text, WHOLE_STATE);
        assert!(matches!(StateFile::parse(text.as_bytes()), Err(StateError::Malformed(_))), "{endpoints}");
    }
}

#[test]
fn a_state_of_a_newer_version_still_says_which_backend_is_active() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.json");
    let text = WHOLE_STATE.replace("\"schema\": 1", "\"schema\": 2, \"later\": {}");
    fs::write(&path, &text).unwrap();
    let loaded = Store::open(&path).unwrap().load().unwrap();
    assert_eq!(loaded.state.unwrap().active.as_str(), "green");
    assert!(loaded.warnings[0].contains("newer uh-proxy (schema 2)"), "{:?}", loaded.warnings);
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}

/// Runs uh-proxy to completion in this home, as a user that is nobody in particular.
async fn run_as_nobody(home: &Home) -> (Option<i32>, String) {
    let program = home.path("uh-proxy");
    if !program.exists() {
        fs::copy(env!("CARGO_BIN_EXE_uh-proxy"), &program).unwrap();
    }
    let mut command = tokio::process::Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&program);
    command.args(["run", "--config"]).arg(home.path("uh-proxy.toml")).kill_on_drop(true);
    // A program that was copied just now may still be open for writing in a process that another test starts.
    let output = until("it can be run", async || {
        Some(soon("its end", command.output()).await.unwrap())
            .filter(|output| output.status.code() != Some(126))
    })
    .await;
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn a_state_file_that_cannot_be_read_is_no_damage_and_nothing_starts_without_its_lock() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can become another user");
        return;
    }
    let (home, mut proxy, _blue, _green) = pair().await;
    assert!(proxy.switch("green").await.persisted);
    proxy.kill();
    let state = fs::read(home.state_file()).unwrap();
    let lock = home.path("state/.deployment-state.json.lock");
    assert_eq!(fs::metadata(&lock).unwrap().mode() & 0o777, 0o600, "others can hold the lock");
    // From now on everything except the state belongs to another user.
    fs::set_permissions(home.path("."), fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_dir_all(home.path("run")).unwrap();
    fs::remove_file(home.path("access.log")).unwrap();
    for path in [home.path("."), home.path("state")] {
        std::os::unix::fs::chown(path, Some(65534), Some(65534)).unwrap();
    }
    let names = || {
        let mut names: Vec<_> =
            fs::read_dir(home.path("state")).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    let (exit, said) = run_as_nobody(&home).await;
    assert_eq!(exit, Some(1), "{said}");
    assert!(said.contains("cannot lock the state file") && said.contains("Permission denied"), "{said}");
    assert!(said.contains("belongs to user ID 0: remove it, or chown it to 65534"), "{said}");
    std::os::unix::fs::chown(&lock, Some(65534), Some(65534)).unwrap();
    for file in [home.state_file(), home.path("state/.deployment-state.json.last-good")] {
        fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let (exit, said) = run_as_nobody(&home).await;
    assert_eq!(exit, Some(1), "{said}");
    for part in [
        "cannot read the state file",
        "unknown which backend was active",
        "Permission denied",
        "move it away",
    ] {
        assert!(said.contains(part), "{part:?} is missing in {said:?}");
    }
    assert_eq!((names(), fs::read(home.state_file()).unwrap()), (before, state), "something was changed");
    // A copy that can't be read isn't damage either, if it is the one that is needed.
    fs::remove_file(home.state_file()).unwrap();
    let (exit, said) = run_as_nobody(&home).await;
    assert_eq!(exit, Some(1), "{said}");
    assert!(said.contains(".last-good"), "{said}");
}

#[tokio::test]
async fn no_other_user_can_keep_a_front_door_from_starting() {
    use std::os::unix::fs::PermissionsExt as _;
    let (home, mut proxy, _blue, _green) = pair().await;
    proxy.kill();
    let lock = home.path("state/.deployment-state.json.lock");
    for name in [lock.clone(), home.path("run/admin.sock.lock")] {
        assert_eq!(fs::metadata(&name).unwrap().permissions().mode() & 0o777, 0o600, "{}", name.display());
        // As created by an earlier version.
        fs::set_permissions(&name, fs::Permissions::from_mode(0o644)).unwrap();
    }
    let mut proxy = home.start().await;
    for name in [lock, home.path("run/admin.sock.lock")] {
        assert_eq!(fs::metadata(&name).unwrap().permissions().mode() & 0o777, 0o600, "{}", name.display());
    }
    proxy.kill();
    // A directory in which any user can create a lock is rejected.
    fs::set_permissions(home.path("state"), fs::Permissions::from_mode(0o1777)).unwrap();
    let mut command = home.command();
    command.stderr(std::process::Stdio::piped());
    let output = soon("its end", tokio::process::Command::from(command).output()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("every local user can write to") && said.contains("chmod o-w"), "{said}");
    // `check` reports it before the restart.
    let config = home.path("uh-proxy.toml");
    let (exit, _, said) = cli(&home.socket(), &["check", "--config", config.to_str().unwrap()]).await;
    assert_eq!(
        (exit, said.contains("server.state_file: every local user can write to")),
        (1, true),
        "{said}"
    );
}

#[test]
fn a_removed_lock_is_taken_again_and_two_never_write() {
    let dir = tempfile::tempdir().unwrap();
    let (path, lock) = (dir.path().join("state.json"), dir.path().join("state.json.lock"));
    let (state, text) = whole();
    let store = Store::open(&path).unwrap();
    store.save(&state).unwrap();
    fs::remove_file(&lock).unwrap();
    store.save(&state).unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::Taken { .. })), "it runs without its lock");
    fs::remove_file(&lock).unwrap();
    let other = Store::open(&path).unwrap();
    let changed = StateFile { generation: 99, ..state };
    let error = store.save(&changed).unwrap_err().to_string();
    assert!(error.contains("another uh-proxy has taken it"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), text);
    other.save(&changed).unwrap();
}
