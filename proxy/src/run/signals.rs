//! What each signal means. Who replaces nginx sends the signals that nginx knows: none of them may kill by its default.

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};

use crate::admin::control::Control;

/// Every signal that we handle.
pub(super) const HANDLED: [i32; 7] = [SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGWINCH];

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Answer what is in flight, then end; a second one: end at once.
    Stop,
    /// Read the configuration again.
    Reload,
    /// Open the access log again.
    ReopenLog,
    /// Nothing, yet: nginx upgrades its program (USR2) or stops its workers (WINCH).
    Nothing,
}

fn meaning(signal: i32) -> Meaning {
    match signal {
        SIGHUP => Meaning::Reload,
        SIGUSR1 => Meaning::ReopenLog,
        SIGUSR2 | SIGWINCH => Meaning::Nothing,
        _ => Meaning::Stop,
    }
}

/// Carries out whatever is not the end, which is the caller's.
pub(super) fn carry_out(signal: i32, control: &Control) -> Meaning {
    let meaning = meaning(signal);
    match meaning {
        Meaning::Stop => {}
        Meaning::Reload => control.reloading.wanted.notify_one(),
        Meaning::ReopenLog => control.reloading.reopen_wanted.notify_one(),
        Meaning::Nothing => {
            let name = if signal == SIGUSR2 { "SIGUSR2" } else { "SIGWINCH" };
            tracing::info!(signal = name, "signal ignored: uh-proxy has no use for it");
        }
    }
    meaning
}
