//! Why uh-proxy doesn't start, or stops by itself.

use std::io;

use crate::acme::AcmeError;
use crate::admin::socket::SocketError;
use crate::handover::leader::TakeOverError;
use crate::keeper::KeeperError;
use crate::state::store::StoreError;
use crate::systemd::InheritedError;
use crate::tls;

/// Why uh-proxy didn't start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A listening address isn't available.
    #[error("cannot listen on {address} ({key})")]
    Bind {
        /// The address.
        address: String,
        /// The configuration's key.
        key: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The admin socket isn't available.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A socket passed by systemd can't be used.
    #[error(transparent)]
    Inherited(#[from] InheritedError),
    /// uh-keeper doesn't give the listening sockets.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// The state file isn't available.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The uh-proxy that leads goes on.
    #[error(transparent)]
    TakeOver(#[from] TakeOverError),
    /// Another system call failed.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// TLS can't be served.
    #[error("cannot serve HTTPS as configured")]
    Tls(#[from] tls::server::TlsError),
    /// ACME can't be used.
    #[error("cannot get certificates as configured")]
    Acme(#[from] AcmeError),
    /// A metric has an invalid definition.
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
    /// A worker thread ended by itself.
    #[error("a worker thread ended unexpectedly")]
    WorkerLost,
}

/// An error of a system call: what was tried.
pub(super) fn system(what: &'static str) -> impl FnOnce(io::Error) -> RunError {
    move |source| RunError::System { what, source }
}
