//! The systemd interface: readiness, reloads, shutdown and watchdog (`sd_notify(3)`), and socket activation
//! (`sd_listen_fds(3)`). Does nothing without systemd.

use std::io::Read as _;
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

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

/// Another process is the main one of the service from now on; only its notifications count.
pub fn main_process(pid: u32) {
    notify(&[NotifyState::MainPid(pid), NotifyState::Status("replaced: finishing in-flight requests")]);
    mute();
}

/// This process is the main one of the service again.
pub fn main_process_again() {
    if MUTED.swap(false, Ordering::Relaxed) {
        let status = NotifyState::Status("serving again: the new process is gone");
        notify(&[NotifyState::MainPid(std::process::id()), NotifyState::Ready, status]);
    }
}

/// Notifies systemd of nothing until [`unmute`]: the process isn't the main one of the service.
pub fn mute() {
    MUTED.store(true, Ordering::Relaxed);
}

/// Notifies systemd from now on.
pub fn unmute() {
    MUTED.store(false, Ordering::Relaxed);
}

/// Whether another process is the main one.
static MUTED: AtomicBool = AtomicBool::new(false);

fn notify(state: &[NotifyState<'_>]) {
    if MUTED.load(Ordering::Relaxed) {
        return;
    }
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

/// The unit that holds the listening sockets, as it is named in `config/`.
pub const SOCKET_UNIT: &str = "uh-proxy.socket";

/// How long systemd may take to describe it.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// The TCP addresses on which systemd listens for uh-proxy; `None`: there is no systemd, or the unit isn't active.
#[must_use]
pub fn socket_unit() -> Option<Vec<SocketAddr>> {
    if !sd_notify::booted().unwrap_or(false) {
        return None;
    }
    let mut child = Command::new("systemctl")
        .args(["show", SOCKET_UNIT, "--property=ActiveState,Listen"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let begun = Instant::now();
    // A few lines: they fit into the pipe, so reading can wait until the end.
    while child.try_wait().ok()?.is_none() {
        if begun.elapsed() > ANSWER_WITHIN {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut text = String::new();
    child.stdout.take()?.read_to_string(&mut text).ok()?;
    listening(&text)
}

/// The addresses in what `systemctl show` prints.
fn listening(text: &str) -> Option<Vec<SocketAddr>> {
    let active = text.lines().any(|line| line == "ActiveState=active");
    let address = |line: &str| {
        let (address, kind) = line.strip_prefix("Listen=")?.split_once(' ')?;
        if kind == "(Stream)" { address.parse().ok() } else { None }
    };
    active.then(|| text.lines().filter_map(address).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_of_the_socket_unit_are_read_if_it_is_active() {
        let text = "ActiveState=active\nListen=0.0.0.0:80 (Stream)\nListen=[::]:443 (Stream)\n\
                    Listen=/run/x.sock (Stream)\nListen=0.0.0.0:53 (Datagram)\n";
        let found: Vec<String> = listening(text).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(found, ["0.0.0.0:80", "[::]:443"]);
        assert_eq!(listening(&text.replace("=active", "=inactive")), None);
        assert_eq!(listening(""), None);
    }
}
