//! The short form of the soak: nothing can grow much in ten seconds, but the books must be balanced.

use std::process::Command;

#[test]
fn after_switches_drains_reloads_and_tunnels_the_books_are_balanced() {
    let _alone = crate::alone();
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_soak"))
        .args(["--minutes", "0.15", "--rate", "100", "--pause-ms", "500", "--out"])
        .arg(dir.path())
        .output()
        .unwrap();
    let said = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", said(&output.stdout), said(&output.stderr));
    assert!(dir.path().join("soak.csv").exists() && dir.path().join("soak.svg").exists());
}
