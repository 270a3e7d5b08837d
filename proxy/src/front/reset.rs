//! Closes a connection with a reset instead of an end.
//!
//! To a client of HTTP/1.0 the end of the connection is the end of the body. If the body has broken off, the one way
//! to say so is a reset, for which the socket's linger time is set to nothing.

use std::time::Duration;

use pingora::protocols::Stream;
use socket2::SockRef;
use uh_system::plain;

use super::descriptor;

/// From here on, closing the connection resets it; what the kernel has not sent yet is lost. Where that can't be done,
/// it will simply be closed.
pub fn at_close(stream: &Stream) {
    let set = descriptor::copy(stream.id())
        .and_then(|socket| SockRef::from(&socket).set_linger(Some(Duration::ZERO)));
    if let Err(error) = set {
        tracing::debug!(error = %plain(&error), "a connection can't be reset, and is closed");
    }
}
