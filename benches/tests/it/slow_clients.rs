//! The short form of the slow-clients measurement: the same, with fewer clients and shorter deadlines.

use std::process::Command;

#[test]
fn slow_clients_are_closed_at_their_deadlines_and_harm_no_one() {
    let _alone = crate::alone();
    // What is healthy has to be so under any load of the machine, but how fast it is says nothing here.
    let output = Command::new(env!("CARGO_BIN_EXE_slow_clients"))
        .args(["--clients", "60", "--deadline-ms", "2000", "--quiet-ms", "500", "--p99-factor", "0"])
        .args(["--idle", "200"])
        .output()
        .unwrap();
    let said = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", said(&output.stdout), said(&output.stderr));
}
