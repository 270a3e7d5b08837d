//! SIGINT, SIGTERM and SIGHUP. They end a command immediately, as by default, except that an operation takes the
//! first one and undoes its changes. Handlers stay installed, so all of this is decided here: a signal without a
//! waiter would be lost, and process 1 of a container has no default actions.

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
    /// 128+n, as in shells.
    pub(super) fn exit_code(self) -> u8 {
        128 + self.number
    }
}

/// Lets an operation take the next signal.
#[derive(Debug, Default)]
pub(super) struct Interrupts {
    taker: RefCell<Option<oneshot::Sender<Interrupt>>>,
}

impl Interrupts {
    /// Waits for the next signal, which then doesn't end the command.
    pub(super) async fn take(&self) -> Interrupt {
        let (sender, receiver) = oneshot::channel();
        self.taker.replace(Some(sender));
        match receiver.await {
            Ok(interrupt) => interrupt,
            // Another caller takes it now.
            Err(_) => std::future::pending().await,
        }
    }

    /// Whether an operation has taken it.
    fn hand_over(&self, interrupt: Interrupt) -> bool {
        self.taker.take().is_some_and(|taker| taker.send(interrupt).is_ok())
    }
}

pub(super) struct Handlers {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Handlers {
    /// Installs them. Must run within a tokio runtime.
    pub(super) fn install() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next signal that no operation takes.
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
