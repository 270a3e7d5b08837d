//! The systemd interface: readiness, reloads, shutdown and watchdog (`sd_notify(3)`), and socket activation
//! (`sd_listen_fds(3)`). Does nothing without systemd.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;
use uh_system::plain;

/// uh-proxy serves. `status` is shown by `systemctl status`.
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// A reload begins; [`ready`] reports its end.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now, NotifyState::Status("reloading")]),
        Err(error) => {
            tracing::warn!(error = %plain(&error), "cannot read the clock to notify systemd of a reload");
        }
    }
}

/// uh-proxy stops, and may take this long.
pub fn stopping(at_most: Duration) {
    let us = u32::try_from(at_most.as_micros()).unwrap_or(u32::MAX);
    let status = NotifyState::Status("stopping: finishing in-flight requests");
    notify(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(us), status]);
}

/// How often to call [`alive`]: twice per watchdog timeout.
#[must_use]
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|patience| patience / 2).filter(|interval| !interval.is_zero())
}

/// Pings the watchdog.
pub fn alive() {
    notify(&[NotifyState::Watchdog]);
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        let message = state.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        tracing::warn!(error = %plain(&error), message, "cannot notify systemd");
    }
}

/// Listening sockets that systemd has bound, and holds while uh-proxy restarts: connections wait in their queues
/// meanwhile.
#[derive(Debug, Default)]
pub struct Inherited(Vec<(SocketAddr, TcpListener)>);

/// Why an inherited socket can't be used.
#[derive(Debug, thiserror::Error)]
pub enum InheritedError {
    /// It is something else.
    #[error("systemd passed socket {index}, which isn't a listening TCP socket")]
    NotTcp {
        /// Its index among the passed sockets.
        index: usize,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// It isn't configured.
    #[error(
        "systemd passed a socket on {address}, which is in none of server.listen, server.listen_tls, server.listen_h2c and server.metrics: add it there, or remove it from the socket unit"
    )]
    NotConfigured {
        /// Where it is bound.
        address: SocketAddr,
    },
}

impl Inherited {
    /// Takes over the sockets. Must be called once, before anything else opens a file.
    ///
    /// # Errors
    /// If one of them isn't a listening TCP socket.
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

    /// Makes sure that every socket has been claimed: clients of an unclaimed socket would wait indefinitely.
    ///
    /// # Errors
    /// If one hasn't.
    pub fn finish(self) -> Result<(), InheritedError> {
        match self.0.first() {
            Some((address, _)) => Err(InheritedError::NotConfigured { address: *address }),
            None => Ok(()),
        }
    }
}
