//! Which signals come, and what each is for.

use std::io;
use std::thread;

use rustix::process::Signal;
use signal_hook::consts::{
    SIGALRM, SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH,
};
use signal_hook::iterator::Signals;
use tokio::sync::mpsc;

/// Signals that wait to be handled. Each kind waits only once before it gets here, and a full queue holds up only
/// the thread that fills it.
const QUEUE: usize = 16;

/// Handled by us: the order to leave.
const STOP: [i32; 2] = [SIGTERM, SIGINT];
/// The app's own business. Left out are those that tell of a fault of ours, that can't be caught, and that belong
/// to a terminal (TSTP, TTIN, TTOU).
const FORWARDED: [i32; 7] = [SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGWINCH, SIGCONT];

/// A signal, by what is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// Leave. With the signal's name.
    Stop(&'static str),
    /// A child has ended.
    Child,
    /// The app should get it.
    Forward(Signal),
}

/// Installs the handlers. From here on no signal is lost, nor ends the process by itself.
pub(crate) fn install() -> io::Result<mpsc::Receiver<Received>> {
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

fn received(signal: i32) -> Option<Received> {
    match signal {
        SIGTERM => Some(Received::Stop("SIGTERM")),
        SIGINT => Some(Received::Stop("SIGINT")),
        SIGCHLD => Some(Received::Child),
        _ => Signal::from_named_raw(signal).map(Received::Forward),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_that_is_caught_has_a_meaning() {
        assert!(STOP.iter().all(|signal| matches!(received(*signal), Some(Received::Stop(_)))));
        for signal in FORWARDED {
            let named = Signal::from_named_raw(signal).unwrap();
            assert_eq!(received(signal), Some(Received::Forward(named)));
        }
    }
}
