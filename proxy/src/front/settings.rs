//! What a reload changes for every connection: the part of `[server]` that requests look at.
//!
//! Each worker has a [`SettingsCell`] of its own, so that taking a reference writes to no cache line that another
//! worker uses. A connection takes one at the start of each request and keeps it until the next: a request is judged
//! by one set of settings from its first byte to its last.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::answer::pages::Pages;
use crate::config::{Server, ServerLimits, Tls};
use uh_http1::forwarded::Scheme;
use uh_http1::policy::HeaderPolicy;

/// The settings in force for a request.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What a client may do before its request is known.
    pub limits: ServerLimits,
    /// What the app is told of its clients, and which of their words are passed on.
    pub headers: HeaderPolicy,
    /// The pages of our own answers.
    pub pages: Pages,
    /// What goes with HTTPS; `None`: it isn't served.
    pub tls: Option<Https>,
    /// How long SIGTERM waits for exchanges in flight.
    pub shutdown_timeout: Duration,
    /// How long after SIGTERM an idle client connection may still bring a request.
    pub shutdown_idle_grace: Duration,
}

impl Settings {
    /// The settings that a configuration asks for. What they need from disk is read and checked here.
    ///
    /// # Errors
    /// Something that the configuration names can't be read, or is not as it has to be.
    pub fn load(server: &Server) -> io::Result<Self> {
        Ok(Self {
            limits: server.limits.clone(),
            headers: server.headers.clone(),
            tls: server.tls.as_ref().map(Https::new),
            pages: Pages::load(server.error_pages.as_deref())?,
            shutdown_timeout: server.shutdown_timeout,
            shutdown_idle_grace: server.shutdown_idle_grace,
        })
    }
}

impl Settings {
    /// The `Strict-Transport-Security` field for a client that speaks like this: over plain HTTP there is none
    /// (RFC 6797 §7.2).
    #[must_use]
    pub fn hsts(&self, scheme: Scheme) -> Option<&str> {
        match scheme {
            Scheme::Http => None,
            Scheme::Https => self.tls.as_ref()?.hsts.as_deref(),
        }
    }

    /// The port to which plain HTTP is redirected.
    #[must_use]
    pub fn redirect_port(&self) -> u16 {
        self.tls.as_ref().map_or(HTTPS_PORT, |tls| tls.redirect_port)
    }
}

/// The port of HTTPS where none is named.
pub const HTTPS_PORT: u16 = 443;

/// What goes with HTTPS.
#[derive(Debug, Clone)]
pub struct Https {
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

/// Where one worker's connections find the settings in force.
#[derive(Debug)]
pub struct SettingsCell(ArcSwap<Settings>);

impl SettingsCell {
    /// For one worker.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self(ArcSwap::from_pointee(settings))
    }

    /// The settings for a request that begins now.
    pub fn load(&self) -> Arc<Settings> {
        self.0.load_full()
    }

    /// Puts other settings in force, for every request that begins from now on.
    pub fn store(&self, settings: Settings) {
        self.0.store(Arc::new(settings));
    }
}
