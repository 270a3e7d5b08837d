//! TLS for clients: choosing a certificate by host, the handshake, and reloading certificates while running.
//!
//! ```text
//! accept ─▶ connection slot ─▶ handshake ─▶ TLS stream ─▶ the same exchanges as over plain HTTP
//!                                  ▲
//!     Server: TLS settings ────────┤
//!     Names: certificates by host ─┘◀── certificate files, read again when they change
//! ```
//!
//! There are two extension points. [`TlsSession`] holds the protocol negotiated by ALPN, and [`server::ALPN`] lists the
//! protocols on offer. Certificates from other sources than files become [`Certificate`]s and go to
//! [`Server::install_acme`].
//!
//! In reading order: [`certificate`], `der`, [`names`], [`challenges`], [`server`], [`handshake`], [`pending`], [`failure`],
//! [`watch`].

pub mod certificate;
pub mod challenges;
mod der;
pub mod failure;
pub mod handshake;
pub mod names;
pub mod pending;
mod reloads;
pub mod server;
pub mod watch;

pub use certificate::Certificate;
pub use handshake::TlsSession;
pub use server::Server;
