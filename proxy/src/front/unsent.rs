//! Limits how much data for a client may wait unsent in the kernel.
//!
//! Without a limit, megabytes are copied into the socket of a slow client at once: memory that isn't accounted for, and
//! work that delays other clients. Sent but unacknowledged data doesn't count, so a long round trip costs no speed.

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

/// Sets the limit for the connections that this listening socket will accept. Linux supports it since 3.12; systems
/// that only emulate Linux may not, and then everything else still works.
pub(crate) fn limit(listener: &impl AsFd) {
    if let Err(error) = setsockopt(listener, NotSentLowWater, &MOST_UNSENT) {
        tracing::warn!(error = %plain(&error), "cannot limit the unsent data of slow clients (TCP_NOTSENT_LOWAT)");
    }
}
