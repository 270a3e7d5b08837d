//! `[services.NAME]`: hosts and paths, backends, probes, timeouts and limits.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use hyper::header::{HeaderName, HeaderValue};
use uh_protocol::{BackendName, ServiceName};

use uh_http1::field::{Known, classify, is_token_byte};
use uh_http1::network::Network;
use uh_http1::request::is_protocol;
use uh_protocol::Address;
use uh_settings::Section;
use uh_settings::units::{DAY, MS, SECOND};
use uh_switching::{BackendDefinition, route};

use super::paths::{self, PathPrefix, PathRules};
use super::preview::{self, PreviewSettings};
use super::split::{self, SplitSettings};
use super::sticky::{self, Sticky};

/// Limited because a drain's caller waits for this too.
const MAX_TUNNEL_SPREAD: Duration = Duration::from_secs(60);

/// An app published through uh-proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// The hosts it serves, those for previews next, the redirected ones last; empty: any host that no other service names.
    pub hosts: Vec<String>,
    /// Of these, from which ones clients are redirected to the first.
    pub redirect_hosts: Vec<String>,
    /// Whether plain HTTP is redirected to HTTPS; where the file says nothing, as `server.tls.redirect` says.
    pub redirect_https: bool,
    /// The path prefix it serves, on segment boundaries.
    pub path_prefix: String,
    /// Whether to strip the prefix from the path that the app gets.
    pub strip_prefix: bool,
    /// The protocols that a client may upgrade its connection to, by name.
    pub upgrades: Vec<String>,
    /// The active backend as long as there is no state file.
    pub active: BackendName,
    /// The default timeout of `uh-proxy drain`.
    pub drain_timeout: Duration,
    /// What happens to tunnels at a drain and at shutdown.
    pub tunnels_at_drain: TunnelsAtDrain,
    /// The time over which many tunnels are closed, so that their clients don't all reconnect at once.
    pub tunnel_close_spread: Duration,
    /// At least one, in file order.
    pub backends: Vec<BackendDefinition>,
    /// How endpoints are probed.
    pub health: HealthCheck,
    /// What applies to its requests, by their paths.
    pub rules: PathRules,
    /// Who bypasses the maintenance page.
    pub maintenance: MaintenanceBypass,
    /// The retry budget.
    pub retries: Retries,
    /// How a client's requests reach the same endpoint; `None`: each goes where the fewest are.
    pub sticky: Option<Sticky>,
    /// How endpoint names are resolved.
    pub resolve: Resolve,
    /// What applies to splits of its traffic.
    pub split: SplitSettings,
    /// What applies to previews of its standbys.
    pub preview: PreviewSettings,
}

impl Service {
    /// Whether there are requests that are redirected.
    #[must_use]
    pub fn redirects(&self) -> bool {
        self.redirect_https || !self.redirect_hosts.is_empty()
    }

    /// The hosts that are served, not redirected.
    #[must_use]
    pub fn served_hosts(&self) -> &[String] {
        &self.hosts[..self.hosts.len().saturating_sub(self.redirect_hosts.len())]
    }

    /// The path prefix without its final slash, if it is to be stripped.
    #[must_use]
    pub fn stripped_prefix(&self) -> Option<&str> {
        let prefix = self.path_prefix.trim_end_matches('/');
        (self.strip_prefix && !prefix.is_empty()).then_some(prefix)
    }

    /// The name of the protocol that a client asks to upgrade to, if it's allowed.
    #[must_use]
    pub fn allowed_upgrade(&self, asked: &[u8]) -> Option<&str> {
        let mut allowed = self.upgrades.iter().map(String::as_str);
        allowed.find(|allowed| allowed.as_bytes().eq_ignore_ascii_case(asked))
    }
}

impl uh_switching::Service for Service {
    fn name(&self) -> &ServiceName {
        &self.name
    }

    fn hosts(&self) -> &[String] {
        &self.hosts
    }

    fn path_prefix(&self) -> &str {
        &self.path_prefix
    }

    fn backends(&self) -> &[BackendDefinition] {
        &self.backends
    }

    fn first_active(&self) -> &BackendName {
        &self.active
    }

    fn asks_previous(&self) -> bool {
        self.rules.any(|settings| settings.previous.any())
    }

    fn is_probed(&self) -> bool {
        self.health.enabled
    }

    fn is_probed_like(&self, other: &Self) -> bool {
        self.health == other.health
    }

    fn is_same(&self, other: &Self) -> bool {
        *self == Self { active: self.active.clone(), ..other.clone() }
    }
}

/// What happens to a backend's tunnels at a drain that doesn't say whether to cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunnelsAtDrain {
    /// They stay until they end by themselves or are cut explicitly.
    Keep,
    /// They stay until the drain's deadline.
    Drain,
    /// They are closed as soon as the drain begins.
    Close,
}

/// How endpoints are probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// If `false`, every backend counts as healthy.
    pub enabled: bool,
    /// The path to request.
    pub path: String,
    /// The `Host` header; `None`: the endpoint's address.
    pub host: Option<String>,
    /// Time between the starts of two probes.
    pub interval: Duration,
    /// How long a probe may take.
    pub timeout: Duration,
    /// Good probes in a row that make an endpoint healthy.
    pub healthy_after: u32,
    /// Bad probes in a row that make it unhealthy.
    pub unhealthy_after: u32,
    /// Whether the body's `deployment` must name the backend.
    pub expect_identity: bool,
    /// Extra headers of every probe.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// How long the probe right before a switch may take; zero: no probe.
    pub switch_probe_timeout: Duration,
}

/// How many unsuccessful retries each worker thread may make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retries {
    /// Per hundred answered exchanges.
    pub percent: u32,
    /// In addition, per second.
    pub per_second: u32,
}

/// How endpoint names are resolved in the background.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolve {
    /// Time between two lookups.
    pub interval: Duration,
    /// How long a lookup may take.
    pub timeout: Duration,
}

/// Who bypasses the maintenance page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MaintenanceBypass {
    /// A header field with this name and value.
    pub header: Option<SecretField>,
    /// Clients from these networks.
    pub addresses: Vec<Network>,
}

/// A header field whose value is a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretField {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

impl fmt::Debug for SecretField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: (secret)", self.name)
    }
}

impl FromStr for SecretField {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || "expected a header field with its value, such as \"X-Bypass: a long secret\"".to_owned();
        let (name, value) = text.split_once(':').ok_or_else(wrong)?;
        let value = value.trim();
        if name.is_empty()
            || !name.bytes().all(is_token_byte)
            || !matches!(classify(name.as_bytes()), Known::Other | Known::Cookie)
        {
            return Err(wrong());
        }
        if value.len() < MIN_SECRET_BYTES || !value.bytes().all(|b| (b' '..0x7f).contains(&b)) {
            return Err(format!("the value must be {MIN_SECRET_BYTES} or more printable ASCII characters"));
        }
        Ok(Self { name: name.to_owned(), value: value.to_owned() })
    }
}

/// A shorter secret can be guessed.
const MIN_SECRET_BYTES: usize = 12;

/// `redirect`: whether plain HTTP is redirected to HTTPS if the service doesn't say.
pub(super) fn service(name: &str, mut section: Section, redirect: bool) -> Option<Service> {
    let hosts = hosts(&mut section, "hosts");
    let redirect_hosts = redirect_hosts(&mut section, &hosts);
    let redirect_https = section.boolean("redirect_https", redirect);
    let path_prefix =
        section.parsed::<PathPrefix>("path_prefix").map_or_else(|| "/".to_owned(), |prefix| prefix.0);
    let strip_prefix = section.boolean("strip_prefix", false);
    let upgrades = section.list::<UpgradeName>("upgrades");
    let drain_timeout = section.duration("drain_timeout", 30 * SECOND, (Duration::ZERO, DAY));
    let policies =
        [("keep", TunnelsAtDrain::Keep), ("drain", TunnelsAtDrain::Drain), ("close", TunnelsAtDrain::Close)];
    let tunnels_at_drain = section.choice("tunnels_at_drain", TunnelsAtDrain::Drain, &policies);
    let tunnel_close_spread =
        section.duration("tunnel_close_spread", 5 * SECOND, (Duration::ZERO, MAX_TUNNEL_SPREAD));
    let health = health(&mut section.section("health"));
    let backends: Vec<BackendDefinition> = section
        .sections("backends")
        .into_iter()
        .filter_map(|(name, section)| backend(&name, section))
        .collect();
    let rules = paths::rules(&mut section, &path_prefix, &backends);
    let maintenance = maintenance(&mut section.section("maintenance"));
    let sticky = sticky::sticky(&mut section);
    let retries = retries(&mut section.section("retries"));
    let resolve = resolve(&mut section.section("resolve"));
    let split = split::split(&mut section.section("split"));
    let others: Vec<String> = hosts.iter().chain(&redirect_hosts).cloned().collect();
    let preview = preview::preview(&mut section.section("preview"), &others);
    let has_active = section.has("active");
    let active = section.parsed::<BackendName>("active");
    if !has_active {
        section.mistake("active", "missing: name the backend that is active at the very first start");
    }
    if backends.is_empty() {
        section.mistake("backends", "missing: give at least one, such as [services.NAME.backends.blue]");
    } else if let Some(active) = active.as_ref().filter(|active| !backends.iter().any(|b| b.name == **active))
    {
        let names: Vec<&str> = backends.iter().map(|b| b.name.as_str()).collect();
        section.mistake(
            "active",
            format!("no backend is named {active}; configured backends: {}", names.join(", ")),
        );
    }
    let name = match name.parse() {
        Ok(name) => name,
        Err(e) => {
            section.mistake("", format!("{e}"));
            return None;
        }
    };
    Some(Service {
        name,
        hosts: hosts.iter().chain(&preview.hosts).chain(&redirect_hosts).cloned().collect(),
        redirect_hosts,
        redirect_https,
        path_prefix,
        strip_prefix,
        upgrades: upgrades.map_or_else(
            || vec!["websocket".to_owned()],
            |names| names.into_iter().map(|name| name.0).collect(),
        ),
        active: active?,
        drain_timeout,
        tunnels_at_drain,
        tunnel_close_spread,
        backends,
        health,
        rules,
        maintenance,
        retries,
        sticky,
        resolve,
        split,
        preview,
    })
}

pub(super) fn hosts(section: &mut Section, key: &'static str) -> Vec<String> {
    let hosts = section.list::<HostPattern>(key).unwrap_or_default();
    let hosts: Vec<String> = hosts.into_iter().map(|host| host.0).collect();
    for (index, host) in hosts.iter().enumerate() {
        if hosts[..index].contains(host) {
            section.mistake(key, format!("{host} is listed twice"));
        }
    }
    hosts
}

/// Whether a configured host, which may be a wildcard, is for this host of a request.
pub(crate) fn is_for(host: &str, name: &str) -> bool {
    match host.strip_prefix('*') {
        Some(suffix) => name.find('.').is_some_and(|dot| dot > 0 && name[dot..] == *suffix),
        None => host == name,
    }
}

fn redirect_hosts(section: &mut Section, hosts: &[String]) -> Vec<String> {
    let others = self::hosts(section, "redirect_hosts");
    if let Some(host) = others.iter().find(|host| hosts.contains(host)) {
        section
            .mistake("redirect_hosts", format!("{host} is one of hosts, too: leave it out in one of them"));
    }
    if !others.is_empty() && hosts.first().is_none_or(|first| first.starts_with('*')) {
        let reason = "nowhere to redirect to: the first of hosts must be a host without a wildcard";
        section.mistake("redirect_hosts", reason);
    }
    others
}

fn backend(name: &str, mut section: Section) -> Option<BackendDefinition> {
    let (has_endpoints, none) = (section.has("endpoints"), section.is_empty_list("endpoints"));
    let endpoints = section.list::<Address>("endpoints").unwrap_or_default();
    if !has_endpoints {
        section.mistake("endpoints", "missing: give at least one, such as [\"127.0.0.1:3008\"]");
    } else if none {
        section.mistake("endpoints", "empty: give at least one, such as [\"127.0.0.1:3008\"]");
    } else if endpoints.len() > MAX_ENDPOINTS {
        section.mistake("endpoints", format!("more than {MAX_ENDPOINTS}"));
    }
    let version = section.text("version");
    match name.parse() {
        Ok(name) => Some(BackendDefinition { name, endpoints, version }),
        Err(e) => {
            section.mistake("", format!("{e}"));
            None
        }
    }
}

fn health(section: &mut Section) -> HealthCheck {
    let path = section.text("path").unwrap_or_else(|| "/api/health".to_owned());
    if !path.starts_with('/') || path.bytes().any(|b| b <= b' ' || b >= 0x7f) {
        section.mistake("path", format!("{path:?} is not a path"));
    }
    let host = section.text("host");
    if host.as_ref().is_some_and(|host| host.is_empty() || host.bytes().any(|b| b <= b' ' || b >= 0x7f)) {
        section.mistake("host", "not a host");
    }
    HealthCheck {
        enabled: section.boolean("enabled", true),
        path,
        host,
        interval: section.duration("interval", SECOND, (10 * MS, DAY)),
        timeout: section.duration("timeout", 2 * SECOND, (10 * MS, DAY)),
        healthy_after: section.integer("healthy_after", 2, (1, 1000)),
        unhealthy_after: section.integer("unhealthy_after", 3, (1, 1000)),
        expect_identity: section.boolean("expect_identity", false),
        headers: probe_headers(section),
        switch_probe_timeout: section.duration(
            "switch_probe_timeout",
            250 * MS,
            (Duration::ZERO, MAX_SWITCH_PROBE),
        ),
    }
}

/// Limited because the caller of a switch waits for the probe too.
const MAX_SWITCH_PROBE: Duration = Duration::from_secs(2);

fn probe_headers(section: &mut Section) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers: Vec<(HeaderName, HeaderValue)> = Vec::new();
    for (name, value) in section.texts("headers") {
        let key = format!("headers.{name}");
        let framing = match classify(name.as_bytes()) {
            Known::Host => Some("use the key `host`"),
            Known::ContentLength
            | Known::TransferEncoding
            | Known::Connection
            | Known::KeepAlive
            | Known::Upgrade
            | Known::Expect
            | Known::HopByHop => {
                Some("this field concerns the connection or a body, which uh-proxy sets itself: remove it")
            }
            _ => None,
        };
        match (framing, HeaderName::try_from(name.as_str()), HeaderValue::try_from(value.as_str())) {
            (Some(reason), ..) => section.mistake(&key, reason),
            (None, Err(_), _) => section.mistake(&key, format!("{name:?} isn't a valid header field name")),
            // The value may be a secret, so it is not repeated.
            (None, Ok(_), Err(_)) => {
                section.mistake(&key, "the value has characters that aren't allowed in a header field");
            }
            (None, Ok(name), Ok(_)) if headers.iter().any(|(other, _)| *other == name) => {
                section.mistake(&key, "it is set twice, with different capitalization");
            }
            (None, Ok(name), Ok(mut value)) => {
                value.set_sensitive(true);
                headers.push((name, value));
            }
        }
    }
    headers
}

fn maintenance(section: &mut Section) -> MaintenanceBypass {
    MaintenanceBypass {
        header: section.parsed("bypass_header"),
        addresses: section.list("bypass_addresses").unwrap_or_default(),
    }
}

fn retries(section: &mut Section) -> Retries {
    Retries {
        percent: section.integer("percent", 20, (0, 100)),
        per_second: section.integer("per_second", 10, (0, 10_000)),
    }
}

fn resolve(section: &mut Section) -> Resolve {
    Resolve {
        interval: section.duration("interval", 5 * SECOND, (100 * MS, DAY)),
        timeout: section.duration("timeout", 2 * SECOND, (10 * MS, DAY)),
    }
}

/// More endpoints than a backend needs in this design: a switch builds a pool for each.
pub const MAX_ENDPOINTS: usize = 64;

/// The name of a protocol that a connection may be upgraded to: `websocket`, `SPDY/3.1`.
struct UpgradeName(String);

impl FromStr for UpgradeName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !is_protocol(text.as_bytes()) {
            return Err(format!("{text:?} isn't a valid protocol name: use websocket or another token"));
        }
        // Requests in it would be neither checked nor counted. HTTP/1.1 servers may ignore the upgrade.
        let lower = text.to_ascii_lowercase();
        if lower == "h2c" || lower.starts_with("http/") || lower.starts_with("tls/") {
            return Err(format!("{text:?} would let requests bypass routing and counting: remove it"));
        }
        Ok(Self(text.to_owned()))
    }
}

/// A host of a service, in canonical form: `app.example.com`, `*.example.com` or `[2001:db8::1]`.
struct HostPattern(String);

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(address) = route::ipv6(text.as_bytes()) {
            return Ok(Self(format!("[{address}]")));
        }
        let text = text.strip_suffix('.').unwrap_or(text);
        let host = text.strip_prefix("*.").unwrap_or(text);
        let labels_fit = host.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        });
        if labels_fit && text.len() <= route::MAX_HOST_BYTES {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(format!(
                "{text:?} isn't a host: use app.example.com, *.example.com or [2001:db8::1], without a port"
            ))
        }
    }
}
