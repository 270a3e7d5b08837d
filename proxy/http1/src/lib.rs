//! HTTP/1.1 on the wire, without I/O: request and response heads, and where bodies end.
//!
//! Heads are parsed by `httparse`, with additional checks where it is more lenient than RFC 9112. The forwarded head is
//! written directly from the parsed one into one buffer: no header map is built or copied, and names keep their case
//! and order. Bodies are forwarded unchanged; [`body`] only finds where they end.
//!
//! [`proxy_protocol`] reads the header that a load balancer sends before HTTP or TLS.
//!
//! It knows no configuration, no meters and no clock: what it needs of them is handed in as values ([`policy`],
//! [`response::Recipient`]).
//!
//! pingora-core has HTTP/1 sessions of its own; docs/adr/0001-own-http1-loop.md says why they are not used.

pub mod accept;
pub mod body;
pub mod buffer;
pub mod compression;
pub mod conditional;
pub mod cookie;
pub mod date;
pub mod edits;
pub mod field;
pub mod forwarded;
pub mod network;
pub mod policy;
pub mod prefix;
pub mod proxy_protocol;
pub mod request;
pub mod response;
pub mod trace;
