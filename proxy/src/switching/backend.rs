//! A backend as it is registered: its name, version and endpoints, and what the probes think of them.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use uh_protocol::BackendName;
use uh_protocol::status::ProbeStatus;

/// Where an endpoint is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// An IP address and a port.
    Socket(SocketAddr),
    /// A host name and a port, looked up at every connect.
    Name(String, u16),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

/// Why a text is not an [`Address`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not an endpoint: write host:port, [IPv6]:port or unix:/path")]
pub struct AddressError {
    given: String,
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = || AddressError { given: text.chars().take(200).collect() };
        if let Some(path) = text.strip_prefix("unix:") {
            // A socket's path holds at most 107 bytes (unix(7)).
            let fits = path.starts_with('/') && path.len() <= 107 && !path.contains('\0');
            return if fits { Ok(Self::Unix(PathBuf::from(path))) } else { Err(error()) };
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return if address.port() == 0 { Err(error()) } else { Ok(Self::Socket(address)) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
        let port: u16 = port.parse().map_err(|_| error())?;
        let host_fits = (1..=253).contains(&host.len())
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
            && !host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        if port == 0 || !host_fits { Err(error()) } else { Ok(Self::Name(host.to_owned(), port)) }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Name(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What the probes think of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Probing is on, but there have not been enough probes to tell.
    Unknown,
    /// Enough good probes in a row.
    Healthy,
    /// Enough bad probes in a row.
    Unhealthy,
    /// Nobody probes: taken as healthy, and said to be unknown.
    NotProbed,
}

impl Health {
    /// As the status shows it.
    #[must_use]
    pub fn as_option(self) -> Option<bool> {
        match self {
            Self::Healthy => Some(true),
            Self::Unhealthy => Some(false),
            Self::Unknown | Self::NotProbed => None,
        }
    }
}

/// One address of a backend, and what the prober last found there.
#[derive(Debug)]
pub struct Endpoint {
    /// Where it is.
    pub address: Address,
    health: AtomicU8,
    last_probe: Mutex<Option<ProbeStatus>>,
    /// The app's version as the last probe reported it; apart from the probe, so that a request can read it.
    reported_version: ArcSwapOption<String>,
}

impl Endpoint {
    /// A new endpoint.
    #[must_use]
    pub fn new(address: Address, health: Health) -> Self {
        Self {
            address,
            health: AtomicU8::new(health as u8),
            last_probe: Mutex::default(),
            reported_version: ArcSwapOption::empty(),
        }
    }

    /// What the probes think of it.
    pub fn health(&self) -> Health {
        const ALL: [Health; 4] = [Health::Unknown, Health::Healthy, Health::Unhealthy, Health::NotProbed];
        ALL[usize::from(self.health.load(Ordering::Relaxed)) % ALL.len()]
    }

    /// Its newest probe.
    pub fn last_probe(&self) -> Option<ProbeStatus> {
        self.last_probe.lock().clone()
    }

    /// The app's version as the last probe reported it.
    pub fn reported_version(&self) -> arc_swap::Guard<Option<Arc<String>>> {
        self.reported_version.load()
    }

    /// For the prober: its newest probe, and what that makes of it.
    pub fn probed(&self, probe: ProbeStatus, health: Health) {
        if self.reported_version.load().as_deref() != probe.version.as_ref() {
            self.reported_version.store(probe.version.clone().map(Arc::new));
        }
        *self.last_probe.lock() = Some(probe);
        self.set_health(health);
    }

    /// What the probes think of it from now on.
    pub fn set_health(&self, health: Health) {
        self.health.store(health as u8, Ordering::Relaxed);
    }
}

/// A backend as it is registered. Registering it anew makes a new value, and with it new idle pools.
#[derive(Debug)]
pub struct Backend {
    /// Its name.
    pub name: BackendName,
    /// The app's version, if it was registered with one.
    pub version: Option<Arc<str>>,
    /// At least one.
    pub endpoints: Box<[Arc<Endpoint>]>,
}

impl Backend {
    /// A backend whose endpoints nobody has probed yet.
    #[must_use]
    pub fn new(name: BackendName, version: Option<&str>, addresses: &[Address], health: Health) -> Self {
        let endpoint = |address: &Address| Arc::new(Endpoint::new(address.clone(), health));
        Self { name, version: version.map(Arc::from), endpoints: addresses.iter().map(endpoint).collect() }
    }

    /// Healthy if any endpoint is: that is enough to take traffic.
    pub fn health(&self) -> Health {
        let any = |wanted| self.endpoints.iter().any(|endpoint| endpoint.health() == wanted);
        [Health::NotProbed, Health::Healthy, Health::Unknown]
            .into_iter()
            .find(|&health| any(health))
            .unwrap_or(Health::Unhealthy)
    }

    /// The newest probe of any endpoint; a failed one before a good one.
    pub fn last_probe(&self) -> Option<ProbeStatus> {
        let probes = self.endpoints.iter().filter_map(|endpoint| endpoint.last_probe());
        probes.max_by(|a, b| (!a.ok, &a.at).cmp(&(!b.ok, &b.at)))
    }

    /// Its version: as registered, or else as the app reports it.
    pub fn known_version(&self) -> Option<String> {
        let reported = || self.endpoints.iter().find_map(|endpoint| endpoint.last_probe()?.version);
        self.version.as_deref().map(str::to_owned).or_else(reported)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_back_as_it_was_written() {
        for text in ["127.0.0.1:3008", "[::1]:80", "blue:3008", "app-1.internal:8080", "unix:/run/blue.sock"]
        {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "blue",
            "blue:",
            ":80",
            "blue:0",
            "127.0.0.1:0",
            "256.1.1.1:80",
            "a b:80",
            "unix:rel",
            "::1:80",
            "x:99999",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text:?} passed");
        }
    }

    #[test]
    fn one_healthy_endpoint_is_enough() {
        let addresses: Vec<Address> = ["127.0.0.1:1", "127.0.0.1:2"].map(|a| a.parse().unwrap()).into();
        let backend = Backend::new("blue".parse().unwrap(), None, &addresses, Health::Unknown);
        assert_eq!(backend.health(), Health::Unknown);
        backend.endpoints[0].set_health(Health::Unhealthy);
        assert_eq!(backend.health(), Health::Unknown);
        backend.endpoints[1].set_health(Health::Healthy);
        assert_eq!(backend.health(), Health::Healthy);
        backend.endpoints[1].set_health(Health::Unhealthy);
        assert_eq!(backend.health(), Health::Unhealthy);
    }
}
