//! What can be set, as validated values.

use std::ffi::OsString;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use uh_settings::units::{DAY, parse_duration};

/// The conventional port of the first backend.
pub(crate) const DEFAULT_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 3008);
/// The longest duration: longer than any deploy waits, and far from where sums overflow.
const DURATION_MAX: Duration = DAY;

/// All settings of the program.
#[derive(Debug)]
pub(crate) struct ShimSettings {
    pub(crate) mode: Mode,
    pub(crate) app: AppAddress,
    pub(crate) health_path: String,
    pub(crate) health: HealthSource,
    pub(crate) drain_timeout: Duration,
    pub(crate) kill_after: Duration,
    pub(crate) start_timeout: Duration,
    pub(crate) metrics: Option<SocketAddr>,
    /// Whether something may listen on the app's address before the app is started.
    pub(crate) allow_listening: bool,
    pub(crate) command: Vec<OsString>,
}

/// Whether the shim is in the request path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Clients connect to the shim on this address.
    Forward(SocketAddr),
    /// Clients connect to the app; health may be served on this address.
    SuperviseOnly(Option<SocketAddr>),
}

/// Who answers a health check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum HealthSource {
    /// The shim: healthy while the app accepts connections
    Shim,
    /// The app itself, except while it starts and drains
    App,
    /// The shim, healthy only if the app answers 2xx too
    Both,
}

/// Where the app listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AppAddress {
    Tcp(SocketAddr),
    /// This port on 127.0.0.1 or ::1: an app that listens on "localhost" may use either.
    Localhost(u16),
    Unix(PathBuf),
}

/// Options that contradict each other, or an invalid value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error("{0:?} isn't an address: write ip:port, as in \"0.0.0.0:3008\"")]
    Listen(String),
    #[error("{0:?} isn't an address: write ip:port, localhost:port or unix:/path, with a port other than 0")]
    App(String),
    #[error("{0:?} isn't a duration: write a whole number and ms, s, m or h, at most 24h, as in \"30s\"")]
    Duration(String),
    #[error("{0:?} isn't a path: start with / and omit ? and #, as in \"/api/health\"")]
    Path(String),
    #[error("--listen and --app are both {0}: the app needs a port of its own")]
    SamePort(SocketAddr),
    #[error("--supervise-only needs a TCP address in --app: connections to a Unix socket can't be counted")]
    SuperviseUnix,
}

impl ShimSettings {
    /// Rejects settings that contradict each other.
    pub(crate) fn validated(self) -> Result<Self, SettingsError> {
        let listens = || [self.mode.listen(), self.metrics].into_iter().flatten();
        if matches!((self.mode, &self.app), (Mode::SuperviseOnly(_), AppAddress::Unix(_))) {
            return Err(SettingsError::SuperviseUnix);
        }
        for app in self.app.sockets() {
            if let Some(same) = listens().find(|listen| collide(*listen, app)) {
                return Err(SettingsError::SamePort(same));
            }
        }
        Ok(self)
    }

    /// The app's port, if its connections are counted instead of requests.
    pub(crate) fn watched_port(&self) -> Option<u16> {
        match self.mode {
            Mode::SuperviseOnly(_) => self.app.sockets().first().map(SocketAddr::port),
            Mode::Forward(_) => None,
        }
    }
}

/// Whether two listeners can't be bound at the same time.
fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port() && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

impl Mode {
    /// The address the shim listens on.
    pub(crate) fn listen(self) -> Option<SocketAddr> {
        match self {
            Self::Forward(listen) => Some(listen),
            Self::SuperviseOnly(listen) => listen,
        }
    }
}

impl AppAddress {
    /// Every TCP address that the app may listen on.
    pub(crate) fn sockets(&self) -> Vec<SocketAddr> {
        match self {
            Self::Tcp(address) => vec![*address],
            Self::Localhost(port) => {
                vec![(Ipv4Addr::LOCALHOST, *port).into(), (Ipv6Addr::LOCALHOST, *port).into()]
            }
            Self::Unix(_) => Vec::new(),
        }
    }

    /// The `Host` for requests of clients that send none.
    pub(crate) fn host(&self) -> String {
        match self {
            Self::Tcp(_) | Self::Localhost(_) => self.to_string(),
            Self::Unix(_) => "localhost".to_owned(),
        }
    }

    /// The variables that tell the app where to listen: Next.js and most others read `PORT`, Next.js also `HOSTNAME`.
    /// Node listens on a Unix socket if the port is a path.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Tcp(address) => {
                vec![("PORT", address.port().to_string()), ("HOSTNAME", address.ip().to_string())]
            }
            Self::Localhost(port) => {
                vec![("PORT", port.to_string()), ("HOSTNAME", Ipv4Addr::LOCALHOST.to_string())]
            }
            Self::Unix(path) => vec![("PORT", path.display().to_string())],
        }
    }
}

impl FromStr for AppAddress {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, SettingsError> {
        let wrong = || SettingsError::App(shortened(text));
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return if path.is_absolute() { Ok(Self::Unix(path)) } else { Err(wrong()) };
        }
        let app = match text.strip_prefix("localhost:") {
            Some(port) => Self::Localhost(port.parse().map_err(|_| wrong())?),
            None => Self::Tcp(text.parse().map_err(|_| wrong())?),
        };
        if app.sockets().iter().any(|address| address.port() == 0) { Err(wrong()) } else { Ok(app) }
    }
}

impl fmt::Display for AppAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Localhost(port) => write!(f, "localhost:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Reads an address to listen on. Port 0 is any free port.
pub(crate) fn listen_address(text: &str) -> Result<SocketAddr, SettingsError> {
    text.parse().map_err(|_| SettingsError::Listen(shortened(text)))
}

/// Reads the path of a URL.
pub(crate) fn path(text: &str) -> Result<String, SettingsError> {
    let good =
        text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#".contains(&byte));
    if good { Ok(text.to_owned()) } else { Err(SettingsError::Path(shortened(text))) }
}

/// Reads a duration.
pub(crate) fn duration(text: &str) -> Result<Duration, SettingsError> {
    let duration = parse_duration(text).ok().filter(|duration| *duration <= DURATION_MAX);
    duration.ok_or_else(|| SettingsError::Duration(shortened(text)))
}

/// The beginning of a value, enough to recognise it in a message.
fn shortened(text: &str) -> String {
    text.chars().take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_address_is_tcp_or_unix_and_sets_port_and_hostname() {
        let environment = |text: &str| text.parse::<AppAddress>().unwrap().environment();
        let tcp = |port: &str, host: &str| vec![("PORT", port.to_owned()), ("HOSTNAME", host.to_owned())];
        assert_eq!(environment("127.0.0.1:3000"), tcp("3000", "127.0.0.1"));
        assert_eq!(environment("localhost:80"), tcp("80", "127.0.0.1"));
        assert_eq!(environment("[::1]:80"), tcp("80", "::1"));
        assert_eq!(environment("unix:/run/app.sock"), [("PORT", "/run/app.sock".to_owned())]);
        for bad in
            ["", "3000", "app:3000", "127.0.0.1", "127.0.0.1:0", "localhost:x", "unix:", "unix:app.sock"]
        {
            assert!(bad.parse::<AppAddress>().is_err(), "{bad:?} passed");
        }
    }

    #[test]
    fn durations_need_a_unit_and_are_at_most_a_day() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("24h"), Ok(DURATION_MAX));
        for bad in ["", "30", "s", "-1s", "1.5s", "30 s", "1d", "25h", "99999999999999999999s", "ä"] {
            assert!(duration(bad).is_err(), "{bad:?} passed");
        }
    }

    #[test]
    fn paths_are_absolute_without_query_or_fragment() {
        for bad in ["health", "/a?b", "/a#b", "/a b", "/ä"] {
            assert!(path(bad).is_err(), "{bad:?} passed");
        }
    }
}
