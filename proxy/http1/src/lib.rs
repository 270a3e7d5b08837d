//! HTTP/1.1 on the wire, without I/O: request and response heads, and where bodies end.
//!
//! Heads are parsed by `httparse`, and held to RFC 9112 where it is lenient. What goes on is written straight from the
//! parsed head into one buffer: no header map is built or copied, names keep their case and order. Bodies are passed
//! on as they came; [`body`] only finds where they end.
//!
//! It knows no configuration, no meters and no clock: what it needs of them is handed in as values ([`policy`],
//! [`response::Recipient`]).
//!
//! pingora-core has HTTP/1 sessions of its own; docs/adr/0001-own-http1-loop.md says why they are not used.

pub mod body;
pub mod buffer;
pub mod date;
pub mod field;
pub mod forwarded;
pub mod network;
pub mod policy;
pub mod prefix;
pub mod request;
pub mod response;
pub mod trace;
