//! Request buffering: the body is read as a whole before a backend is asked, so that a slow client doesn't hold one of an
//! app's few workers.
//!
//! ```text
//! client ─▶ collect ─▶ memory, then a file without a name ─▶ replay ─▶ pump ─▶ backend
//!              └────── too large, or no room: the rest is streamed ──────┘
//! ```
//!
//! A buffered body is kept as it arrived, with its chunks, and goes through the same pump as a streamed one. What doesn't
//! fit is never refused: the buffered part is sent, and the rest follows as the client sends it. So every body arrives
//! complete or is cut off, as without buffering.

mod budget;
mod collect;
mod replay;
mod spool;

pub(crate) use budget::BufferBudgets;
pub(crate) use collect::collect;
pub(crate) use replay::{BufferedBody, Replay};
pub(crate) use spool::check_directory;

use uh_http1::body::Framing;
use uh_http1::field::values;
use uh_http1::request::RequestHead;

use crate::config::{Limits, RequestBuffer};
use crate::observe::buffered::Buffered;

/// Fields of uploads that can be resumed: of tus, and of the IETF's draft. What an app has received of such a body counts
/// even if the client leaves, so it must get it at once.
const RESUMABLE: [&[u8]; 5] =
    [b"tus-resumable", b"upload-offset", b"upload-complete", b"upload-incomplete", b"upload-length"];

/// Whether a request is to be buffered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It has no body, asks for a tunnel, or is too large for any answer but 413.
    No,
    /// It is streamed, for this reason.
    Stream(Buffered),
    /// It is.
    Buffer,
}

/// Decides by the head of a request.
pub(crate) fn decide(rules: RequestBuffer, limits: &Limits, request: &RequestHead, head: &[u8]) -> Decision {
    match request.framing {
        Framing::None | Framing::Length(0) => Decision::No,
        Framing::Length(length) if limits.body_bytes.is_some_and(|most| length > most) => Decision::No,
        _ if !request.upgrade.of_head(head).is_empty() => Decision::No,
        Framing::Length(length) if length > rules.max_bytes => Decision::Stream(Buffered::TooLarge),
        _ if RESUMABLE.iter().any(|name| values(head, name).next().is_some()) => {
            Decision::Stream(Buffered::Resumable)
        }
        _ => Decision::Buffer,
    }
}
