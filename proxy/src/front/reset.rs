//! Closes a connection with a reset instead of an end.
//!
//! For an HTTP/1.0 client, the end of the connection is the end of the body. A reset is the only way to mark a
//! truncated body. To send one, the socket's linger time is set to zero.

use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use uh_system::plain;

/// From now on, closing the connection resets it; what the kernel hasn't sent yet is lost. If that can't be set, it is
/// closed normally.
pub(crate) fn at_close(socket: &TcpStream) {
    if let Err(error) = SockRef::from(socket).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(error = %plain(&error), "cannot reset a connection; closing it instead");
    }
}
