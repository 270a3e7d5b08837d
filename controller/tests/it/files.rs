//! The static files of a version, which uh-proxy serves: copied by a deploy, removed after the backend is stopped.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::harness::{Ran, Stage};

/// Each version has a directory of files.
pub(crate) const FILES: &str = "[files]\nfrom = \"release-{version}\"\nto = \"srv/app-{backend}/public\"";

/// Writes the files of a version. `home`: the directory of the configuration.
pub(crate) fn write_release(home: &Path, version: &str) {
    let release = home.join(format!("release-{version}"));
    fs::create_dir_all(release.join("assets")).unwrap();
    fs::write(release.join("version.txt"), version).unwrap();
    for n in 0..5 {
        fs::write(release.join(format!("assets/{n}.js")), vec![b'x'; 10_000]).unwrap();
    }
}

/// The active backend, which answers with its name and version, has the files of that version, and nothing is left
/// next to any files.
pub(crate) fn belong_to(home: &Path, served: &str, what: &str) {
    let (active, version) = served.split_once(' ').unwrap();
    let found = fs::read_to_string(home.join(format!("srv/app-{active}/public/version.txt")));
    assert_eq!(found.ok().as_deref(), Some(version.trim()), "{what}: the files of {served}");
    for backend in ["blue", "green"] {
        let Ok(entries) = fs::read_dir(home.join(format!("srv/app-{backend}"))) else { continue };
        for entry in entries {
            let name = entry.unwrap().file_name();
            assert_eq!(name, "public", "{what}: left next to the files of {backend}");
            let public = home.join(format!("srv/app-{backend}/public"));
            assert_eq!(
                fs::read_dir(public.join("assets")).unwrap().count(),
                5,
                "{what}: not all files of {backend}"
            );
        }
    }
}

fn version_of(stage: &Stage, backend: &str) -> Option<String> {
    fs::read_to_string(stage.path(&format!("srv/app-{backend}/public/version.txt"))).ok()
}

fn stage() -> Stage {
    let stage = Stage::new();
    stage.configure("uh-deploy.toml", FILES);
    for version in ["1.0.0", "1.0.1", "1.0.2"] {
        write_release(&stage.path(""), version);
    }
    stage
}

#[test]
fn files_come_with_their_version_and_go_with_its_backend() {
    let stage = stage();
    stage.deploy("1.0.0").says("srv/app-blue/public");
    stage.deploy("1.0.1");
    assert_eq!(version_of(&stage, "blue").as_deref(), Some("1.0.0"), "it stays warm");
    assert_eq!(version_of(&stage, "green").as_deref(), Some("1.0.1"));
    let mode = |name: &str| {
        let path = stage.path(&format!("srv/app-green/public/{name}"));
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    assert_eq!((mode(""), mode("assets"), mode("assets/1.js")), (0o755, 0o755, 0o644));
    stage.expect(0, &["retire", "--now"]).says("srv/app-blue/public was removed");
    assert_eq!((version_of(&stage, "blue"), version_of(&stage, "green").as_deref()), (None, Some("1.0.1")));
    // The stopped version is started again, with its files.
    stage.expect(0, &["rollback"]);
    belong_to(&stage.path(""), "blue 1.0.0", "rollback");
    stage.deploy("1.0.2");
    belong_to(&stage.path(""), "green 1.0.2", "the next deploy");
    stage.expect(0, &["prune"]);
    belong_to(&stage.path(""), "green 1.0.2", "prune");
    assert_eq!(version_of(&stage, "blue").as_deref(), Some("1.0.0"), "a warm backend keeps its files");
}

#[test]
fn a_failed_deploy_leaves_no_files_and_says_what_is_wrong() {
    let stage = stage();
    stage.deploy("1.0.0");
    let missing = stage.expect(1, &["blue-green", "--version", "9.9.9"]);
    missing.says("can't put the files of the candidate at").says("release-9.9.9");
    belong_to(&stage.path(""), "blue 1.0.0", "no such release");
    assert_eq!(version_of(&stage, "green"), None);
    // The gate turns it away after its files were copied.
    let bad = "[health]\npath = \"/no-such-page\"\nwithin = \"500ms\"";
    stage.configure("bad.toml", &format!("{FILES}\n{bad}"));
    let command = stage.command_with("bad.toml", &["blue-green", "--version", "1.0.1"]).output().unwrap();
    assert_eq!(command.status.code(), Some(1), "{command:?}");
    belong_to(&stage.path(""), "blue 1.0.0", "turned away");
    assert_eq!(version_of(&stage, "green"), None);
    // What somebody else has put there stays.
    let foreign = stage.path("srv/app-green/public");
    fs::create_dir_all(&foreign).unwrap();
    fs::write(foreign.join("precious.txt"), "x").unwrap();
    stage.expect(1, &["blue-green", "--version", "1.0.1"]).says("uh-deploy didn't make it");
    assert!(foreign.join("precious.txt").exists());
    assert_eq!(stage.served(), "blue 1.0.0");
}

/// Runs `uh-deploy` where the files of green are on a file system of their own with this much room. What is left there is
/// printed below the output. `None`, with a message, if a file system can't be mounted.
fn with_room_for_green(stage: &Stage, room: &str, args: &[&str]) -> Option<Ran> {
    let srv = stage.path("srv/app-green");
    fs::create_dir_all(&srv).unwrap();
    let script = format!(
        "mount -t tmpfs -o size={room},mode=755 none {srv:?} || exit 99; \"$@\"; code=$?; \
         find {srv:?} -mindepth 1 | sed 's/^/left: /'; exit $code"
    );
    let whole = stage.command(args);
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &script, "sh"]).arg(whole.get_program()).args(whole.get_args());
    let ran = Ran::of(command.env_remove("npm_package_version").output().unwrap());
    if ran.code == Some(99) || ran.text.contains("unshare failed") {
        println!("skipped: files on a full file system, for none can be mounted here");
        return None;
    }
    Some(ran)
}

#[test]
fn a_disk_that_fills_while_files_are_copied_fails_the_deploy_before_anything_starts() {
    let stage = stage();
    stage.deploy("1.0.0");
    let load = stage.load();
    let Some(ran) = with_room_for_green(&stage, "32k", &["blue-green", "--version", "1.0.1"]) else { return };
    assert_eq!(ran.code, Some(1), "{}", ran.text);
    ran.says("can't put the files of the candidate at").says("No space left on device").says("blue (v1.0.0)");
    assert!(!ran.text.contains("left: "), "{}", ran.text);
    assert!(!ran.text.contains("[4/"), "it failed before the health gate: {}", ran.text);
    assert_eq!((stage.served().as_str(), stage.apps()), ("blue 1.0.0", 1));
    belong_to(&stage.path(""), "blue 1.0.0", "a full disk");
    load.must_be_unharmed();
    stage.expect(0, &["recover"]).says("Nothing to recover");
    // A check says so before.
    let Some(ran) = with_room_for_green(&stage, "32k", &["validate"]) else { return };
    ran.says("✗ Space for [files] sufficient: 32KiB free").says("a version needs ");
}

#[test]
fn validate_checks_where_files_come_from_and_where_they_go() {
    let stage = stage();
    let ran = stage.run(&["validate"]);
    ran.says("✓ Source of [files] exists").says("✓ Destination of [files] writable");
    ran.says("✓ Space for [files] sufficient").says("how much a version needs isn't known yet");
    stage.deploy("1.0.0");
    stage.run(&["validate"]).says("a version needs ");
    stage.configure("uh-deploy.toml", "[files]\nfrom = \"none/public\"\nto = \"srv/app-{backend}/public\"");
    let foreign = stage.path("srv/app-green/public");
    fs::create_dir_all(&foreign).unwrap();
    fs::write(foreign.join("precious.txt"), "x").unwrap();
    let ran = stage.expect(1, &["validate"]);
    ran.says("✗ Source of [files] exists: ").says("none/public").says("→ fix files.from");
    ran.says("✗ Destination of [files] writable: ").says("uh-deploy didn't make it");
}
