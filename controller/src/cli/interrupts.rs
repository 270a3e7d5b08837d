//! SIGINT, SIGTERM and SIGHUP. They end the command at once, as they would without us; but an operation takes the first
//! one to undo what it has begun. Handlers stay for good, which is why all of it is decided in one place: a signal that
//! nobody waits for would be lost, and as process 1 of a container the system has no defaults.

use std::cell::RefCell;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// One of the signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Interrupt {
    pub(super) name: &'static str,
    number: u8,
}

impl Interrupt {
    /// 128+n, as a shell has it.
    pub(super) fn exit_code(self) -> u8 {
        128 + self.number
    }
}

/// Lets an operation take a signal.
#[derive(Debug, Default)]
pub(super) struct Interrupts {
    taker: RefCell<Option<oneshot::Sender<Interrupt>>>,
}

impl Interrupts {
    /// The next signal, which then does not end the command, as long as this is waited for.
    pub(super) async fn take(&self) -> Interrupt {
        let (sender, receiver) = oneshot::channel();
        self.taker.replace(Some(sender));
        match receiver.await {
            Ok(interrupt) => interrupt,
            // Somebody else takes it.
            Err(_) => std::future::pending().await,
        }
    }

    /// Whether somebody has taken it.
    fn hand_over(&self, interrupt: Interrupt) -> bool {
        self.taker.take().is_some_and(|taker| taker.send(interrupt).is_ok())
    }
}

/// The handlers.
pub(super) struct Handlers {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Handlers {
    /// Installs them. Within a tokio runtime.
    pub(super) fn install() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next signal that nobody takes.
    pub(super) async fn not_taken(&mut self, interrupts: &Interrupts) -> Interrupt {
        loop {
            let (name, kind) = tokio::select! {
                _ = self.interrupt.recv() => ("SIGINT", SignalKind::interrupt()),
                _ = self.terminate.recv() => ("SIGTERM", SignalKind::terminate()),
                _ = self.hangup.recv() => ("SIGHUP", SignalKind::hangup()),
            };
            let number = u8::try_from(kind.as_raw_value()).unwrap_or_default();
            let interrupt = Interrupt { name, number };
            if !interrupts.hand_over(interrupt) {
                return interrupt;
            }
        }
    }
}
