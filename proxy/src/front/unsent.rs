//! How much of what is written to a client may wait in the kernel unsent.
//!
//! Without a limit, a client that reads slowly has megabytes copied into its socket at once: memory that nobody counts,
//! and work that the others wait for. What is sent and not acknowledged is no part of it, so a long way costs no speed.

use std::os::fd::AsFd;

use nix::libc;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SetStruct;
use uh_system::plain;

/// `TCP_NOTSENT_LOWAT`, as in `tcp(7)`.
#[derive(Debug, Clone, Copy)]
struct NotSentLowWater;
nix::setsockopt_impl!(NotSentLowWater, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, u32, SetStruct<'_, u32>);

/// Two buffers of a relay: one is sent while the other is filled.
const MOST_UNSENT: u32 = 128 << 10;

/// Limits the connections that this listening socket will accept. Linux can since 3.12; what only looks like Linux may not,
/// and then all works as well, but for that.
pub fn limit(listener: &impl AsFd) {
    if let Err(error) = setsockopt(listener, NotSentLowWater, &MOST_UNSENT) {
        tracing::warn!(error = %plain(&error), "the system can't limit what waits unsent for slow clients (TCP_NOTSENT_LOWAT)");
    }
}
