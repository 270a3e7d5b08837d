//! TLS for clients: which certificate a name gets, the handshake, and certificates that change while we run.
//!
//! ```text
//! accept ─▶ a place among the connections ─▶ handshake ─▶ Client ─▶ the same exchanges as over plain HTTP
//!                                               ▲
//!               Server: settings of TLS ────────┤
//!               Names: certificates by name ────┘◀── certificate files, read again when they change
//! ```
//!
//! Two seams are left open. What a handshake agrees on by ALPN is in [`Session`], and [`server::ALPN`] lists what is
//! offered. Certificates from another source than files are [`Certificate`]s as well, and go to [`Server::install`].
//!
//! In reading order: [`certificate`], `der`, [`names`], [`server`], [`handshake`], [`crowd`], [`failure`], [`stream`],
//! [`watch`].

pub mod certificate;
pub mod crowd;
mod der;
pub mod failure;
pub mod handshake;
pub mod names;
mod reloads;
pub mod server;
pub mod stream;
pub mod watch;

pub use certificate::Certificate;
pub use handshake::Session;
pub use server::Server;
