//! Signals. Scripts written for nginx send nginx's signals: none of them may end the process by its default action.

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::iterator::Signals;

use crate::admin::control::Control;

/// Every signal that we handle.
pub(super) const HANDLED: [i32; 7] = [SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGWINCH];

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SignalAction {
    /// Finish the requests in flight, then exit; a second one: exit immediately.
    Stop,
    /// Reload the configuration.
    Reload,
    /// Reopen the access log.
    ReopenLog,
    /// Start the installed program, which takes over.
    Upgrade,
    /// Nothing: in nginx, it stops the workers.
    Nothing,
}

fn meaning(signal: i32) -> SignalAction {
    match signal {
        SIGHUP => SignalAction::Reload,
        SIGUSR1 => SignalAction::ReopenLog,
        SIGUSR2 => SignalAction::Upgrade,
        SIGWINCH => SignalAction::Nothing,
        _ => SignalAction::Stop,
    }
}

/// Carries out the signals that have arrived so far, and returns the one that asks for a stop, if there is one.
pub(super) fn carry_out_pending(signals: &mut Signals, control: &Control) -> Option<i32> {
    // All of them: each is reported once.
    signals.pending().filter(|signal| carry_out(*signal, control) == SignalAction::Stop).last()
}

/// Carries out a signal, except a stop, which is up to the caller.
pub(super) fn carry_out(signal: i32, control: &Control) -> SignalAction {
    let meaning = meaning(signal);
    match meaning {
        SignalAction::Stop => {}
        SignalAction::Reload => control.reloading.wanted.notify_one(),
        SignalAction::ReopenLog => control.reloading.reopen_wanted.notify_one(),
        SignalAction::Upgrade => control.upgrades.wanted.notify_one(),
        SignalAction::Nothing => {
            tracing::info!(signal = "SIGWINCH", "ignored a signal that uh-proxy doesn't use");
        }
    }
    meaning
}
