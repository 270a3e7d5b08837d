//! What uh-proxy has once for all services: `[server]`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::Reader;
use crate::import::ledger::Scope;
use crate::import::syntax::Directive;
use crate::import::table::Class;
use crate::import::values::{size, time};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The same bounds as those of the keys.
const HEADER_BYTES: (u64, u64) = (1 << 10, 60 << 10);

/// What uh-proxy has once. `None`: its default.
#[derive(Debug, Default)]
pub(in crate::import) struct Keys {
    pub(in crate::import) listen: Vec<String>,
    pub(in crate::import) listen_tls: Vec<String>,
    /// Files of certificates with their keys.
    pub(in crate::import) certificates: Vec<(String, String)>,
    pub(in crate::import) only_tls13: Option<bool>,
    pub(in crate::import) hsts: Option<Hsts>,
    /// The directives that set it.
    pub(in crate::import) hsts_ids: Vec<(usize, Scope)>,
    pub(in crate::import) trusted: Vec<String>,
    /// The directives that need `proxy_protocol_from`.
    pub(in crate::import) proxy_protocol: Vec<(usize, Scope)>,
    pub(in crate::import) threads: Option<u64>,
    pub(in crate::import) access_log: Option<AccessLog>,
    pub(in crate::import) idle_timeout: Option<Duration>,
    pub(in crate::import) header_timeout: Option<Duration>,
    pub(in crate::import) requests_per_connection: Option<u64>,
    pub(in crate::import) header_bytes: Option<u64>,
    pub(in crate::import) h2_streams: Option<u64>,
    /// Switches of `[server.headers]`.
    pub(in crate::import) headers: Vec<&'static str>,
}

/// Where the access log goes, and in which format.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::import) struct AccessLog {
    pub(in crate::import) path: String,
    pub(in crate::import) format: &'static str,
}

/// `Strict-Transport-Security`.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::import) struct Hsts {
    pub(in crate::import) max_age: Duration,
    pub(in crate::import) include_subdomains: bool,
    pub(in crate::import) preload: bool,
}

impl Hsts {
    /// Reads the field's value. `None`: not one that uh-proxy sends.
    pub(in crate::import) fn parse(value: &str) -> Option<Self> {
        let mut hsts = Self { max_age: Duration::ZERO, include_subdomains: false, preload: false };
        let mut has_age = false;
        for part in value.split(';').map(str::trim).filter(|part| !part.is_empty()) {
            match part.to_ascii_lowercase().as_str() {
                "includesubdomains" => hsts.include_subdomains = true,
                "preload" => hsts.preload = true,
                other => {
                    let seconds = other.strip_prefix("max-age=")?.trim_matches('"').parse().ok()?;
                    hsts.max_age = Duration::from_secs(seconds);
                    has_age = true;
                }
            }
        }
        let fits = hsts.max_age.is_zero() || (DAY..=3650 * DAY).contains(&hsts.max_age);
        let listed = !hsts.preload || (hsts.include_subdomains && hsts.max_age >= 365 * DAY);
        (has_age && fits && listed).then_some(hsts)
    }
}

/// Sets a value that uh-proxy has once. `false`: it has another one already.
fn once<T: PartialEq>(slot: &mut Option<T>, value: T) -> bool {
    match slot {
        Some(old) => *old == value,
        None => {
            *slot = Some(value);
            true
        }
    }
}

/// An address or a network, as `trusted_proxies` lists them.
pub(super) fn network(text: &str) -> Option<String> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits.parse::<u8>().ok()?)),
        None => (text, None),
    };
    let address = address.parse::<IpAddr>().ok()?;
    let most: u32 = if address.is_ipv4() { 32 } else { 128 };
    let Some(bits) = bits else { return Some(text.to_owned()) };
    let rest = most.checked_sub(u32::from(bits))?;
    // nginx ignores the bits after the prefix, uh-proxy rejects them.
    let first = match address {
        IpAddr::V4(ip) => {
            IpAddr::from(Ipv4Addr::from_bits(ip.to_bits() & u32::MAX.checked_shl(rest).unwrap_or(0)))
        }
        IpAddr::V6(ip) => {
            IpAddr::from(Ipv6Addr::from_bits(ip.to_bits() & u128::MAX.checked_shl(rest).unwrap_or(0)))
        }
    };
    Some(format!("{first}/{bits}"))
}

impl Reader {
    /// A directive whose value uh-proxy has once. `None`: it isn't one.
    pub(super) fn key(&mut self, directive: &Directive, scope: Scope) -> Option<()> {
        let first = directive.arg(0);
        let (low, high) = HEADER_BYTES;
        let keys = &mut self.keys;
        let fits = |time: &Duration| *time >= Duration::from_millis(1) && *time <= DAY;
        let done = match directive.name.as_str() {
            "keepalive_timeout" => time(first).filter(fits).map(|time| once(&mut keys.idle_timeout, time)),
            "client_header_timeout" => {
                time(first).filter(fits).map(|time| once(&mut keys.header_timeout, time))
            }
            "keepalive_requests" => first
                .parse()
                .ok()
                .filter(|n| (1..=u64::from(u32::MAX)).contains(n))
                .map(|n| once(&mut keys.requests_per_connection, n)),
            "http2_max_concurrent_streams" => {
                first.parse().ok().filter(|n| (1..=1024).contains(n)).map(|n| once(&mut keys.h2_streams, n))
            }
            "large_client_header_buffers" => {
                let total = first.parse::<u64>().ok().zip(size(directive.arg(1)));
                total
                    .and_then(|(count, each)| count.checked_mul(each))
                    .map(|total| once(&mut keys.header_bytes, total.clamp(low, high)))
            }
            "set_real_ip_from" => network(first).map(|network| {
                if !keys.trusted.contains(&network) {
                    keys.trusted.push(network);
                }
                true
            }),
            "ssl_protocols" => {
                self.ssl_protocols(directive, scope);
                return Some(());
            }
            "underscores_in_headers" => {
                if first == "on" && !keys.headers.contains(&"underscores = \"pass\"") {
                    keys.headers.push("underscores = \"pass\"");
                }
                Some(true)
            }
            _ => return None,
        };
        match done {
            Some(true) => self.ledger.carried(directive, scope),
            Some(false) => self.ledger.look(
                directive,
                scope,
                "uh-proxy has one value for all services; another one was found first",
            ),
            None => self.ledger.look(directive, scope, "uh-proxy has no such value; its default applies"),
        }
        Some(())
    }

    pub(super) fn threads(&mut self, directive: &Directive) {
        let number = directive.arg(0).parse().ok().filter(|number| (1..=1024).contains(number));
        if let Some(number) = number {
            self.keys.threads = Some(number);
        }
        self.ledger.carried(directive, Scope::Main);
    }

    fn ssl_protocols(&mut self, directive: &Directive, scope: Scope) {
        let old = directive.args.iter().any(|version| !matches!(version.as_str(), "TLSv1.2" | "TLSv1.3"));
        let only_13 = directive.args == ["TLSv1.3"];
        if old {
            self.ledger.by_table(directive, Class::Changes, scope);
        } else if once(&mut self.keys.only_tls13, only_13) {
            self.ledger.carried(directive, scope);
        } else {
            self.ledger.look(
                directive,
                scope,
                "uh-proxy has one oldest version for all services; another one was found first",
            );
        }
    }

    /// Remembers whether a format has the request time.
    pub(super) fn log_format(&mut self, format: &Directive) {
        let timed = format.args.iter().any(|part| part.contains("$request_time"));
        self.formats.insert(format.arg(0).to_owned(), timed);
        self.ledger.by_table(format, Class::Look, Scope::Main);
    }

    pub(super) fn access_log(&mut self, directive: &Directive, scope: Scope) {
        let path = directive.arg(0);
        if path.contains('$') || path.starts_with("syslog:") {
            return self.ledger.look(
                directive,
                scope,
                "the access log is one file or standard output, which systemd and containers pass on",
            );
        }
        let format = match (path, directive.arg(1)) {
            ("off", _) => "off",
            (_, name) if self.formats.get(name) == Some(&true) => "timed_combined",
            _ => "combined",
        };
        let path = if matches!(path, "off" | "/dev/stdout" | "/dev/stderr") { "-" } else { path };
        let log = AccessLog { path: path.to_owned(), format };
        if once(&mut self.keys.access_log, log) {
            self.ledger.carried(directive, scope);
        } else {
            self.ledger.look(directive, scope, "uh-proxy has one access log for all services, in JSON with the service's name; another one was found first");
        }
    }
}
