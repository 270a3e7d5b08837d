//! Closes a connection with a reset instead of an end.
//!
//! For an HTTP/1.0 client, the end of the connection is the end of the body. A reset is the only way to mark a
//! truncated body. To send one, the socket's linger time is set to zero.

use std::time::Duration;

use pingora::protocols::Stream;
use socket2::SockRef;
use uh_system::plain;

use super::descriptor;

/// From now on, closing the connection resets it; what the kernel hasn't sent yet is lost. If that can't be set, it is
/// closed normally.
pub fn at_close(stream: &Stream) {
    let set = descriptor::copy(stream.id())
        .and_then(|socket| SockRef::from(&socket).set_linger(Some(Duration::ZERO)));
    if let Err(error) = set {
        tracing::debug!(error = %plain(&error), "cannot reset a connection; closing it instead");
    }
}
