//! Which signals reach the app's processes.

use rustix::process::Signal;

use crate::shim::{Shim, TALKER};

const NOWHERE: &str = "unix:/nonexistent/app.sock";

#[tokio::test]
async fn signals_are_forwarded_to_the_app() {
    let mut shim = Shim::start(NOWHERE, &[], TALKER);
    shim.output.wait_for("ready").await;
    for (signal, name) in [
        (Signal::HUP, "HUP"),
        (Signal::QUIT, "QUIT"),
        (Signal::USR1, "USR1"),
        (Signal::USR2, "USR2"),
        (Signal::ALARM, "ALRM"),
        (Signal::WINCH, "WINCH"),
    ] {
        shim.signal(signal);
        shim.output.wait_for(&format!("got {name}")).await;
    }
    shim.signal(Signal::TERM);
    assert_eq!(shim.code().await, Some(0));
}

#[tokio::test]
async fn the_whole_process_group_gets_them_so_wrappers_need_not_forward_them() {
    // The outer shell, like npm, only waits.
    let script = format!("sh -c '{}' & wait; wait; exit 0", TALKER.replace('\'', "'\\''"));
    let mut shim = Shim::start(NOWHERE, &[], &format!("trap : USR1 TERM; {script}"));
    shim.output.wait_for("ready").await;
    shim.signal(Signal::USR1);
    shim.output.wait_for("got USR1").await;
    shim.signal(Signal::TERM);
    shim.output.wait_for("got TERM").await;
    assert_eq!(shim.code().await, Some(0));
}
