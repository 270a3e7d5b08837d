//! A disk that is full under the controller's own files, at any byte of them.

use std::process::Command;

use crate::harness::{Ran, Stage};

/// A limit of the size of files takes a part of a line, as a full disk does, and needs no rights.
fn with_little_room(stage: &Stage, half_kib: usize, args: &[&str]) -> Ran {
    let whole = stage.command(args);
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; ulimit -f \"$1\"; shift; exec \"$@\"", "sh", &half_kib.to_string()]);
    command.arg(whole.get_program()).args(whole.get_args()).env_remove("npm_package_version");
    Ran::of(command.output().unwrap())
}

#[test]
fn a_disk_that_is_full_at_any_line_leaves_a_journal_that_can_be_read() {
    let stage = Stage::new();
    stage.configure("uh-deploy.toml", "[deploy]\nsettle = \"20ms\"\n[health]\nsuccesses = 1");
    stage.deploy("1.0.0");
    let mut failed = 0;
    for half_kib in 1..=12 {
        let version = format!("1.1.{half_kib}");
        let ran = with_little_room(&stage, half_kib, &["blue-green", "--version", &version]);
        failed += usize::from(ran.code != Some(0));
        if ran.text.contains("stopped here") {
            ran.says(&format!("stopped here: {} (v", stage.active()));
        }
        let recovered = stage.run(&["recover"]);
        assert_eq!(recovered.code, Some(0), "{half_kib}: {}\nthen: {}", ran.text, recovered.text);
    }
    assert!(failed > 2, "hardly any deploy met the limit");
    stage.deploy("1.2.0");
}
