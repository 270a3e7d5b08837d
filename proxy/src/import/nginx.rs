//! A configuration of nginx as it is understood: servers with their locations, and what applies to each.

use std::time::Duration;

use super::ledger::Scope;
use crate::config::Sticky;

/// A value, and the directive that sets it.
#[derive(Debug, Clone)]
pub(super) struct Set<T> {
    pub(super) value: T,
    pub(super) id: usize,
}

/// Two settings are equal if their values are, wherever they are set.
impl<T: PartialEq> PartialEq for Set<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

/// What applies to the requests of a location.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Settings {
    pub(super) connect: Option<Set<Duration>>,
    pub(super) read: Option<Set<Duration>>,
    pub(super) send: Option<Set<Duration>>,
    pub(super) client: Option<Set<Duration>>,
    /// 0: any size.
    pub(super) body: Option<Set<u64>>,
    /// `proxy_set_header Upgrade`.
    pub(super) upgrade: bool,
    /// `proxy_set_header Host $host`: the app gets the client's.
    pub(super) keeps_host: bool,
    /// `limit_req`
    pub(super) rate: Option<Set<Rate>>,
    /// `proxy_request_buffering on`
    pub(super) buffers: bool,
    pub(super) gzip: Gzip,
    pub(super) files: FileSettings,
    pub(super) extras: Extras,
}

/// Settings that a path rule may have, but a service only if all its rules have the same.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Extras {
    /// `access_log off`
    pub(super) unlogged: bool,
    /// `add_header`
    pub(super) response: Vec<Set<(String, String)>>,
    /// `proxy_hide_header`
    pub(super) hidden: Vec<Set<String>>,
    /// `proxy_set_header`; an empty value removes the field.
    pub(super) request: Vec<Set<(String, String)>>,
    /// `Cache-Control` of `expires`.
    pub(super) cache: Option<Set<String>>,
    /// `allow`, if everybody else is denied.
    pub(super) allow: Vec<Set<String>>,
    /// `deny all`
    pub(super) denies: Option<Set<()>>,
    /// `allow all`: what follows has no effect.
    pub(super) is_open: bool,
}

impl Extras {
    /// The networks that are allowed, if everybody else is denied.
    pub(super) fn allowed(&self) -> Option<Vec<String>> {
        self.denies.as_ref().filter(|_| !self.allow.is_empty())?;
        Some(self.allow.iter().map(|set| set.value.clone()).collect())
    }

    /// Whether everybody is denied.
    pub(super) fn denies_all(&self) -> bool {
        self.denies.is_some() && self.allow.is_empty()
    }
}

/// How often a client may ask.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rate {
    pub(super) requests: u32,
    /// Otherwise by minute.
    pub(super) by_second: bool,
    pub(super) burst: u32,
    /// The `limit_req_zone`. Limits with one zone count together in nginx.
    pub(super) zone: usize,
}

/// Where files are, as nginx says it.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct FileSettings {
    pub(super) root: Option<Set<String>>,
    pub(super) alias: Option<Set<String>>,
    /// `try_files`
    pub(super) tries: Option<Set<Vec<String>>>,
    /// `index`
    pub(super) index: Option<Set<Vec<String>>>,
    /// `autoindex on`
    pub(super) lists: Option<Set<()>>,
    /// The directives `gzip_static on` and the like.
    pub(super) stored: Vec<usize>,
}

impl FileSettings {
    /// The directives.
    pub(super) fn ids(&self) -> Vec<usize> {
        let paths = [&self.root, &self.alias].into_iter().flatten().map(|set| set.id);
        let names = [&self.tries, &self.index].into_iter().flatten().map(|set| set.id);
        let lists = self.lists.iter().map(|set| set.id);
        paths.chain(names).chain(lists).chain(self.stored.iter().copied()).collect()
    }
}

/// The files of a location, as uh-proxy serves them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Files {
    /// `files`. For suffixes, without the path below which they are.
    pub(super) dir: String,
    /// `precompressed`
    pub(super) precompressed: bool,
    /// `spa`
    pub(super) spa: Option<String>,
    /// The named location that answers if there is no file; otherwise, nobody does.
    pub(super) fallback: Option<String>,
    /// The directives.
    pub(super) ids: Vec<usize>,
}

/// Which responses are compressed.
#[derive(Debug, Clone, Default)]
pub(super) struct Gzip {
    pub(super) on: bool,
    /// In addition to `text/html`.
    pub(super) types: Vec<String>,
    pub(super) min_bytes: Option<u64>,
    pub(super) level: Option<u8>,
}

/// How doesn't matter where nothing is compressed.
impl PartialEq for Gzip {
    fn eq(&self, other: &Self) -> bool {
        let how = |gzip: &Self| (gzip.types.clone(), gzip.min_bytes, gzip.level);
        self.on == other.on && (!self.on || how(self) == how(other))
    }
}

/// What uh-proxy answers by itself.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Reply {
    Answer { status: u16, body: String, content_type: Option<String> },
    Redirect { status: u16, to: String },
}

/// One address of an upstream.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Endpoint {
    /// As uh-proxy writes it.
    pub(super) address: String,
    /// `backup`, `down`, or commented out.
    pub(super) is_standby: bool,
}

/// Some servers for the same app.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Upstream {
    /// The directive.
    pub(super) id: usize,
    pub(super) name: String,
    pub(super) endpoints: Vec<Endpoint>,
    /// `keepalive_timeout`
    pub(super) idle: Option<Set<Duration>>,
    /// `ip_hash`, or another one that binds a client to a server.
    pub(super) sticky: Option<Sticky>,
}

/// Where requests are passed to.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Target {
    /// The upstream with this name.
    Upstream(String),
    /// An address.
    Address(String),
}

/// What replaces the location's path.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Proxy {
    pub(super) target: Target,
    /// The path of `proxy_pass`, if it has one.
    pub(super) uri: Option<String>,
    /// The directive.
    pub(super) id: usize,
}

/// Which requests a location is for.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Pattern {
    /// With `^~`, before regular expressions.
    Prefix {
        path: String,
        first: bool,
    },
    Exact(String),
    Prefixes(Vec<String>),
    ExactList(Vec<String>),
    Suffixes {
        below: Vec<String>,
        suffixes: Vec<String>,
    },
    /// Another regular expression.
    Unknown,
    /// `@name`
    Named(String),
}

impl Pattern {
    /// Whether it is for all requests without another location.
    pub(super) fn is_root(&self) -> bool {
        matches!(self, Self::Prefix { path, .. } if path == "/")
    }
}

/// Where a redirect leads.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Redirect {
    /// The same address with https.
    Https,
    /// The same path on another host.
    Host { host: String, https: bool },
    /// Elsewhere.
    Other,
}

/// What happens to a request.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    /// Nothing that uh-proxy does, such as another protocol.
    None,
    Proxy(Proxy),
    Files(Files),
    Redirect(Redirect),
    /// `return`, with the directive.
    Reply(Reply, usize),
    /// The connection is closed, or the answer is 404: for hosts that nobody serves.
    Refuse,
}

/// A `location`.
#[derive(Debug, Clone)]
pub(super) struct Location {
    /// Its own.
    pub(super) scope: Scope,
    /// The directive.
    pub(super) id: usize,
    pub(super) pattern: Pattern,
    pub(super) settings: Settings,
    pub(super) action: Action,
    /// The directives in it.
    pub(super) inner: Vec<usize>,
    /// The prefix that a `rewrite` removes.
    pub(super) strips: Option<String>,
}

/// A `server`.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) scope: Scope,
    pub(super) id: usize,
    /// Hosts in uh-proxy's form; empty: any.
    pub(super) hosts: Vec<String>,
    /// Ports without TLS.
    pub(super) plain: Vec<String>,
    /// Ports with TLS.
    pub(super) tls: Vec<String>,
    /// What happens to all requests, before locations.
    pub(super) action: Action,
    /// The directive that says so.
    pub(super) action_id: Option<usize>,
    /// Hosts that an `if` redirects.
    pub(super) host_redirects: Vec<(String, Redirect)>,
    pub(super) settings: Settings,
    pub(super) locations: Vec<Location>,
    pub(super) is_default: bool,
}
