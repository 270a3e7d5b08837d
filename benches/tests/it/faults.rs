//! The short form of the fault matrix.

use std::process::Command;

#[test]
fn every_fault_is_detected_reported_and_survived() {
    let _alone = crate::alone();
    let output = Command::new(env!("CARGO_BIN_EXE_faults")).arg("--short").output().unwrap();
    let said = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", said(&output.stdout), said(&output.stderr));
}
