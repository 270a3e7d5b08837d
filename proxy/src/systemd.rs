//! What the service manager and we tell each other: readiness, reloads, stopping and signs of life (`sd_notify(3)`),
//! and the listening sockets that it holds for us (`sd_listen_fds(3)`). Without a service manager, nothing.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;
use uh_system::plain;

/// The front door serves. `status` is what `systemctl status` shows.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// A reload begins; [`ready`] tells of its end.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now, NotifyState::Status("reloading")]),
        Err(error) => {
            tracing::warn!(error = %plain(&error), "no clock to tell the service manager of a reload");
        }
    }
}

/// The front door stops, and may take this long.
pub fn stopping(at_most: Duration) {
    let us = u32::try_from(at_most.as_micros()).unwrap_or(u32::MAX);
    let status = NotifyState::Status("stopping: answering what is in flight");
    tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(us), status]);
}

/// How often the service manager wants to hear [`alive`]: at twice the pace at which it loses patience.
#[must_use]
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|patience| patience / 2).filter(|interval| !interval.is_zero())
}

/// All threads are alive.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        let message = state.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        tracing::warn!(error = %plain(&error), message, "cannot notify the service manager");
    }
}

/// Listening sockets that the service manager has bound, and holds while we are started anew: whoever connects
/// meanwhile waits in their queues.
#[derive(Debug, Default)]
pub struct Inherited(Vec<(SocketAddr, TcpListener)>);

/// Why an inherited socket can't be used.
#[derive(Debug, thiserror::Error)]
pub enum InheritedError {
    /// It is something else.
    #[error("the service manager passed socket {index}, which is no listening TCP socket")]
    NotTcp {
        /// Its place among those passed.
        index: usize,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Nobody asked for it.
    #[error(
        "the service manager passed a socket on {address}, which is neither in server.listen, server.listen_tls nor server.metrics: \
         add it there, or take it out of the socket unit"
    )]
    NotConfigured {
        /// Where it is bound.
        address: SocketAddr,
    },
}

impl Inherited {
    /// Takes the sockets over. Must come before anything else opens a file, and once only.
    ///
    /// # Errors
    /// One of them is no listening TCP socket.
    pub fn take() -> Result<Self, InheritedError> {
        let mut passed = ListenFd::from_env();
        let mut sockets = Vec::new();
        for index in 0..passed.len() {
            let not_tcp = |source| InheritedError::NotTcp { index, source };
            let Some(listener) = passed.take_tcp_listener(index).map_err(not_tcp)? else { continue };
            listener.set_nonblocking(true).map_err(not_tcp)?;
            sockets.push((listener.local_addr().map_err(not_tcp)?, listener));
        }
        Ok(Self(sockets))
    }

    /// The socket for an address, if there is one.
    pub fn claim(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let place = self.0.iter().position(|(bound, _)| *bound == address)?;
        Some(self.0.swap_remove(place).1)
    }

    /// Makes sure that every socket has been claimed: one that nobody serves would let clients wait for ever.
    ///
    /// # Errors
    /// One has not.
    pub fn finish(self) -> Result<(), InheritedError> {
        match self.0.first() {
            Some((address, _)) => Err(InheritedError::NotConfigured { address: *address }),
            None => Ok(()),
        }
    }
}
