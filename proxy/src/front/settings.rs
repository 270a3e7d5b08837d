//! The part of `[server]` that requests use and a reload can change.
//!
//! Each worker has its own [`SettingsCell`], so that taking a reference writes to no cache line that another worker
//! uses. A connection takes one at the start of each request and keeps it until the next: one set of settings applies
//! to a request from its first byte to its last.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use uh_system::plain;

use super::answer::pages::Pages;
use super::request_buffer;
use crate::config::{RequestBuffers, Server, ServerLimits, Tls};
use uh_http1::forwarded::Scheme;
use uh_http1::network::Network;
use uh_http1::policy::HeaderPolicy;

/// The settings that apply to a request.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Limits that apply to a client before its request is known.
    pub limits: ServerLimits,
    /// What uh-proxy tells the app about its clients, and which client headers it passes on.
    pub headers: HeaderPolicy,
    /// Load balancers that send a PROXY header.
    pub proxy_protocol_from: Vec<Network>,
    /// The limits of all buffered requests.
    pub request_buffers: RequestBuffers,
    /// The error pages.
    pub pages: Pages,
    /// What goes with HTTPS; `None`: it isn't served.
    pub tls: Option<Https>,
    /// How long SIGTERM waits for in-flight requests.
    pub shutdown_timeout: Duration,
    /// How long after SIGTERM an idle client connection may still send a request.
    pub shutdown_idle_grace: Duration,
}

impl Settings {
    /// The settings of a configuration. The files they need are read and checked here.
    ///
    /// # Errors
    /// A file that the configuration names can't be read or is invalid.
    pub(crate) fn load(server: &Server) -> io::Result<Self> {
        if let Some(directory) = &server.request_buffers.directory {
            request_buffer::check_directory(directory).map_err(|error| {
                let (directory, reason) = (directory.display(), plain(&error));
                let key = "server.request_buffers.directory";
                io::Error::other(format!("{key}: cannot create files in {directory}: {reason}"))
            })?;
        }
        Ok(Self {
            request_buffers: server.request_buffers.clone(),
            limits: server.limits.clone(),
            headers: server.headers.clone(),
            proxy_protocol_from: server.proxy_protocol_from.clone(),
            tls: server.tls.as_ref().map(Https::new),
            pages: Pages::load(server.error_pages.as_deref())?,
            shutdown_timeout: server.shutdown_timeout,
            shutdown_idle_grace: server.shutdown_idle_grace,
        })
    }
}

impl Settings {
    /// Whether a connection from this address begins with a PROXY header.
    #[must_use]
    pub(crate) fn expects_proxy_header(&self, address: IpAddr) -> bool {
        self.proxy_protocol_from.iter().any(|network| network.contains(address))
    }

    /// The `Strict-Transport-Security` field for a client that speaks like this: over plain HTTP there is none
    /// (RFC 6797 §7.2).
    #[must_use]
    pub(crate) fn hsts(&self, scheme: Scheme) -> Option<&str> {
        match scheme {
            Scheme::Http => None,
            Scheme::Https => self.tls.as_ref()?.hsts.as_deref(),
        }
    }

    /// The port to which plain HTTP is redirected.
    #[must_use]
    pub(crate) fn redirect_port(&self) -> u16 {
        self.tls.as_ref().map_or(HTTPS_PORT, |tls| tls.redirect_port)
    }
}

/// The port of HTTPS where none is named.
pub(crate) const HTTPS_PORT: u16 = 443;

/// What goes with HTTPS.
#[derive(Debug, Clone)]
pub(crate) struct Https {
    /// The `Strict-Transport-Security` field, if there is to be one.
    hsts: Option<Box<str>>,
    redirect_port: u16,
}

impl Https {
    fn new(tls: &Tls) -> Self {
        let hsts = tls.hsts.as_ref().map(|hsts| hsts.value().into_boxed_str());
        Self { hsts, redirect_port: tls.redirect_port }
    }
}

/// The current settings of one worker's connections.
#[derive(Debug)]
pub(crate) struct SettingsCell {
    current: ArcSwap<Settings>,
    /// Where they are in memory: enough to see that nothing has changed, which is so for almost every request.
    address: AtomicUsize,
    replacing: Mutex<()>,
}

impl SettingsCell {
    /// For one worker.
    #[must_use]
    pub(crate) fn new(settings: Settings) -> Self {
        let settings = Arc::new(settings);
        let address = AtomicUsize::new(address(&settings));
        Self { current: ArcSwap::new(settings), address, replacing: Mutex::default() }
    }

    /// The settings for a request that begins now.
    pub(crate) fn load(&self) -> Arc<Settings> {
        self.current.load_full()
    }

    /// The same for a caller that has those of an earlier request. Others can't be at the same address, since they are
    /// still held.
    pub(crate) fn refresh(&self, held: &mut Arc<Settings>) {
        if self.address.load(Ordering::Acquire) != address(held) {
            *held = self.load();
        }
    }

    /// Replaces the settings for every request that begins from now on.
    pub(crate) fn store(&self, settings: Settings) {
        let settings = Arc::new(settings);
        let address = address(&settings);
        // In one step, or the address of one and the settings of another could stay.
        let _replacing = self.replacing.lock();
        self.current.store(settings);
        self.address.store(address, Ordering::Release);
    }
}

fn address(settings: &Arc<Settings>) -> usize {
    Arc::as_ptr(settings).addr()
}
