//! Signal handlers, and what each signal means.

use std::io;
use std::thread;

use rustix::process::Signal;
use signal_hook::consts::{
    SIGALRM, SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH,
};
use signal_hook::iterator::Signals;
use tokio::sync::mpsc;

/// Signals that wait to be handled. The kernel merges pending signals of a kind, and a full queue only blocks the
/// signal thread.
const QUEUE: usize = 16;

/// Handled by the shim: requests to stop.
const STOP: [i32; 2] = [SIGTERM, SIGINT];
/// Forwarded to the app. Not included: signals that report a fault of the shim, that can't be caught, or that belong
/// to a terminal (TSTP, TTIN, TTOU).
const FORWARDED: [i32; 7] = [SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGWINCH, SIGCONT];

/// A signal, by what it calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReceivedSignal {
    /// Stop. With the signal's name.
    Stop(&'static str),
    /// A child has exited.
    Child,
    /// Forward it to the app.
    Forward(Signal),
}

/// Installs the handlers. From now on no signal is lost or kills the process.
pub(crate) fn install() -> io::Result<mpsc::Receiver<ReceivedSignal>> {
    let mut signals = Signals::new(STOP.into_iter().chain(FORWARDED).chain([SIGCHLD]))?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            let Some(received) = received(signal) else { continue };
            if sender.blocking_send(received).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}

fn received(signal: i32) -> Option<ReceivedSignal> {
    match signal {
        SIGTERM => Some(ReceivedSignal::Stop("SIGTERM")),
        SIGINT => Some(ReceivedSignal::Stop("SIGINT")),
        SIGCHLD => Some(ReceivedSignal::Child),
        _ => Signal::from_named_raw(signal).map(ReceivedSignal::Forward),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_caught_signal_is_handled() {
        assert!(STOP.iter().all(|signal| matches!(received(*signal), Some(ReceivedSignal::Stop(_)))));
        for signal in FORWARDED {
            let named = Signal::from_named_raw(signal).unwrap();
            assert_eq!(received(signal), Some(ReceivedSignal::Forward(named)));
        }
    }
}
