//! The kernel's view of a client connection, queried without reading from it: for times when nothing is read because
//! the backend accepts no more of the request or is still being connected to.

use std::os::fd::AsRawFd as _;

use pingora::protocols::l4::ext::{TCP_INFO, get_tcp_info};
use tokio::net::TcpStream;

/// States of a TCP connection, as Linux numbers them (`include/net/tcp_states.h`).
const TCP_CLOSE: u8 = 7;
const TCP_CLOSE_WAIT: u8 = 8;

/// Whether a client is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    /// As far as is known.
    There,
    /// It has closed its sending side (FIN). It may still read.
    HalfClosed,
    /// It has reset the connection.
    Gone,
}

/// Checks whether the client is still there.
pub(crate) fn presence(socket: &TcpStream) -> Presence {
    match info(socket).map(|info| info.tcpi_state) {
        Some(TCP_CLOSE) => Presence::Gone,
        Some(TCP_CLOSE_WAIT) => Presence::HalfClosed,
        _ => Presence::There,
    }
}

/// Whether the client's side has acknowledged everything that was written; `None`: not yet.
pub(crate) fn has_taken_all(socket: &TcpStream) -> Option<bool> {
    let Some(info) = info(socket) else { return Some(true) };
    if info.tcpi_state == TCP_CLOSE {
        return Some(false);
    }
    (info.tcpi_unacked == 0 && info.tcpi_notsent_bytes == 0).then_some(true)
}

/// Bytes that the client's side has acknowledged, if the system can tell.
pub(crate) fn taken(socket: &TcpStream) -> Option<u64> {
    info(socket).map(|info| info.tcpi_bytes_acked)
}

fn info(socket: &TcpStream) -> Option<TCP_INFO> {
    get_tcp_info(socket.as_raw_fd()).ok()
}
