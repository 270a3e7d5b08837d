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

pub(crate) mod carrier;
pub(crate) mod certificate;
pub(crate) mod challenges;
mod der;
pub(crate) mod failure;
pub(crate) mod handshake;
pub(crate) mod names;
pub(crate) mod pending;
mod reloads;
pub(crate) mod server;
pub(crate) mod watch;

pub(crate) use certificate::Certificate;
pub(crate) use handshake::TlsSession;
pub(crate) use server::Server;
