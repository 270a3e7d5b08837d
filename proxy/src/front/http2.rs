//! HTTP/2 (RFC 9113): over TLS by ALPN, and over plain TCP by prior knowledge on `server.listen_h2c`. Never by `Upgrade`.
//!
//! ```text
//! session: one connection, one task ─ accept ▶ streams ─▶ stream: one request ─ head ▶ Client<StreamLink> ─▶ exchange
//!    │                                                                     ◀ RST_STREAM, END_STREAM ◀─ link
//!    └─ wire: frames counted, turns taken ─ h2: frames, HPACK, flow control
//! ```
//!
//! The `h2` crate speaks the protocol; when to accept, refuse, cancel and end is decided here. A request's header list is
//! written as an HTTP/1 head, so that one set of rules holds for both protocols. In reading order: [`session`],
//! [`handshake`], [`streams`], [`wakers`], [`shared`], [`stream`], [`head`], [`link`], [`response`], [`lines`], [`wire`],
//! [`gather`], [`by_record`], [`frames`], [`budget`].

mod budget;
mod by_record;
mod frames;
mod gather;
mod handshake;
mod head;
mod lines;
mod link;
mod response;
mod session;
mod shared;
mod stream;
mod streams;
mod wakers;
mod wire;

pub(super) use by_record::ByRecord;
pub(super) use session::serve;
