//! Listening sockets: bound here, or held by another program as well, which keeps their queues while uh-proxy is away.

use std::future::pending;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use socket2::SockRef;
use uh_system::plain;

use super::unsent;
use crate::keeper::Renewals;

/// Connections that the kernel completes before a worker accepts them.
pub(super) const BACKLOG: i32 = 4096;

/// How often a socket that others hold as well is made non-blocking again.
pub(crate) const UNBLOCK_EVERY: Duration = Duration::from_secs(1);

/// How long an accept may take on a socket that another holder has made blocking. The kernel rounds it up to a tick.
const BLOCKED_AT_MOST: Duration = Duration::from_millis(1);

/// A listening socket and its holder.
#[derive(Debug)]
pub(crate) struct Listener {
    /// The socket, ready for workers.
    pub socket: TcpListener,
    /// Who else holds it.
    pub holder: Holder,
    /// What its clients speak.
    pub speaks: Speaks,
    /// The configuration's key.
    pub key: &'static str,
    /// The address there: with port 0, the kernel has chosen one.
    pub configured: SocketAddr,
}

/// What is spoken on a listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
    /// HTTP/2 without TLS.
    Http2,
}

/// Who holds a listening socket.
#[derive(Debug, Clone)]
pub(crate) enum Holder {
    /// Only this process: when it closes the socket, connections in its queue are reset.
    Us,
    /// systemd as well: connections in its queue are served by the next process.
    ServiceManager,
    /// uh-keeper as well. A uh-keeper that was started again may have another socket for the same address.
    Keeper(Renewals),
}

impl Holder {
    /// Waits for a socket that replaces the current one.
    pub(crate) async fn renewed(&mut self) -> io::Result<tokio::net::TcpListener> {
        let Self::Keeper(renewals) = self else { return pending().await };
        if renewals.changed().await.is_err() {
            // No more of them.
            return pending().await;
        }
        let Some(socket) = renewals.borrow_and_update().clone() else { return pending().await };
        prepare(&socket, self)?;
        tokio::net::TcpListener::from_std(socket.try_clone()?)
    }

    /// Whether other processes hold the socket.
    pub(crate) fn is_shared(&self) -> bool {
        !matches!(self, Self::Us)
    }
}

/// Binds a listening socket, ready for workers.
///
/// # Errors
/// The address is in use, not local, or needs a privilege.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // So that a restart need not wait for the old connections' TIME_WAIT.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Sets socket options on the listening socket, since accepted connections inherit them.
pub(crate) fn prepare(listener: &TcpListener, holder: &Holder) -> io::Result<()> {
    unsent::limit(listener);
    let socket = SockRef::from(listener);
    if holder.is_shared() {
        socket.set_nonblocking(true)?;
        // Any holder can make the socket blocking for all of them. A worker that finds the queue empty would then wait
        // for the next client, with all its connections. The accepted ones don't block, so the limit is nothing to them.
        socket.set_read_timeout(Some(BLOCKED_AT_MOST))?;
    }
    // An answer that is written in two parts must not wait for the first to be acknowledged.
    socket.set_tcp_nodelay(true)
}

/// Makes a socket non-blocking again if another holder has made it blocking.
pub(crate) fn unblock(listener: &tokio::net::TcpListener) {
    let blocks =
        rustix::fs::fcntl_getfl(listener).is_ok_and(|flags| !flags.contains(rustix::fs::OFlags::NONBLOCK));
    if blocks {
        tracing::warn!(
            "another holder of a listening socket made it blocking, which delays requests; made it non-blocking again"
        );
        if let Err(error) = SockRef::from(listener).set_nonblocking(true) {
            tracing::warn!(error = %plain(&error), "cannot make a listening socket non-blocking");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn connections_inherit_what_saves_a_system_call_for_each() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        prepare(&listener, &Holder::Us).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        assert!(accepted.nodelay().unwrap(), "small writes would wait for acknowledgements");
    }

    #[test]
    fn an_accept_on_a_shared_socket_returns_even_if_another_holder_made_it_blocking() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        prepare(&listener, &Holder::ServiceManager).unwrap();
        listener.try_clone().unwrap().set_nonblocking(false).unwrap();
        let begun = Instant::now();
        let error = listener.accept().unwrap_err();
        assert!(
            error.kind() == io::ErrorKind::WouldBlock && begun.elapsed() < Duration::from_secs(1),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_socket_that_another_holder_made_blocking_is_made_non_blocking_again() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let other = listener.try_clone().unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        other.set_nonblocking(false).unwrap();
        unblock(&listener);
        let flags = rustix::fs::fcntl_getfl(&other).unwrap();
        assert!(flags.contains(rustix::fs::OFlags::NONBLOCK));
    }
}
