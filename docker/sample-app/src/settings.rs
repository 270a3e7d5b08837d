//! The environment as validated values.
//!
//! An invalid setting is an error that names its variable; it never falls back to the default. The environment is
//! read through a function, so that tests don't touch the real one.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use hyper::header::HeaderValue;

/// The longest start delay: ten minutes, longer than any deploy waits.
const START_DELAY_MAX_MS: u64 = 600_000;
const FAIL_FOR_MAX_MS: u64 = 600_000;
/// The default drain timeout: the time orchestrators commonly allow before they kill.
const DRAIN_TIMEOUT_DEFAULT_MS: u64 = 30_000;
/// The longest drain timeout: an hour, for demos of long drains.
const DRAIN_TIMEOUT_MAX_MS: u64 = 3_600_000;

/// All settings of the app.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `HOSTNAME` and `PORT`; port 0 is any free port.
    pub address: SocketAddr,
    /// `DEPLOYMENT_ENV`: the name of this backend, as in `x-backend`.
    pub backend: Label,
    /// `APP_VERSION`, else `npm_package_version`: as in `x-version`.
    pub version: Label,
    /// `START_DELAY_MS`: nothing listens before this has passed.
    pub start_delay: Duration,
    /// `UNHEALTHY`: what `/api/health` reports while not draining.
    pub health: Health,
    /// `FAIL_PERCENT`: how many of a hundred requests fail, except health checks: a version that only looks healthy.
    pub fail_percent: u64,
    /// `FAIL_HOW`: `500`, `hang`, `cut` or `late`.
    pub fail_how: Failing,
    /// `FAIL_FOR_MS`: for how long after the first page they fail; 0: always.
    pub fail_for: Duration,
    /// `DRAIN_TIMEOUT_MS`: how long requests in flight may take after the first signal.
    pub drain_timeout: Duration,
}

/// The health that the app reports while it isn't draining.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Answers 200.
    Healthy,
    /// Answers 503, for deploys that must fail.
    Unhealthy,
}

/// How a request fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failing {
    /// It is answered with 500.
    Status,
    /// It is accepted and never answered.
    Hang,
    /// Its answer is 200 and announces more bytes than are sent.
    Cut,
    /// It is answered as usual, but late.
    Late,
}

/// A name that is valid in a header and in text: visible ASCII, never empty.
#[derive(Debug, Clone)]
pub struct Label {
    text: String,
    header: HeaderValue,
}

impl Label {
    fn fixed(text: &'static str) -> Self {
        Self { text: text.to_owned(), header: HeaderValue::from_static(text) }
    }

    fn parse(text: &str) -> Option<Self> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        Some(Self { text: text.to_owned(), header: HeaderValue::from_str(text).ok()? })
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// As the value of a header.
    pub fn header(&self) -> HeaderValue {
        self.header.clone()
    }
}

/// A variable with an invalid value.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{variable} is {value:?}: expected {expected}")]
pub struct SettingsError {
    variable: &'static str,
    value: String,
    expected: String,
}

impl Settings {
    /// Reads the process environment.
    pub fn from_env() -> Result<Self, SettingsError> {
        Self::from_lookup(|name| std::env::var_os(name))
    }

    /// Reads an environment given as a function from name to value.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self, SettingsError> {
        let variables = Variables(lookup);
        let ip = bind_ip(variables.text("HOSTNAME")?.as_deref());
        let port = variables.number("PORT", 3000, u64::from(u16::MAX))? as u16;
        let version = match variables.label("APP_VERSION")? {
            None => variables.label("npm_package_version")?,
            found => found,
        };
        Ok(Self {
            address: SocketAddr::new(ip, port),
            backend: variables.label("DEPLOYMENT_ENV")?.unwrap_or_else(|| Label::fixed("blue")),
            version: version.unwrap_or_else(|| Label::fixed("0.0.0")),
            start_delay: Duration::from_millis(variables.number("START_DELAY_MS", 0, START_DELAY_MAX_MS)?),
            health: match variables.number("UNHEALTHY", 0, 1)? {
                0 => Health::Healthy,
                _ => Health::Unhealthy,
            },
            fail_percent: variables.number("FAIL_PERCENT", 0, 100)?,
            fail_how: variables.failing("FAIL_HOW")?,
            fail_for: Duration::from_millis(variables.number("FAIL_FOR_MS", 0, FAIL_FOR_MAX_MS)?),
            drain_timeout: Duration::from_millis(variables.number(
                "DRAIN_TIMEOUT_MS",
                DRAIN_TIMEOUT_DEFAULT_MS,
                DRAIN_TIMEOUT_MAX_MS,
            )?),
        })
    }
}

/// The environment as a function, and the ways to read one variable of it.
struct Variables<F>(F);

impl<F: Fn(&str) -> Option<OsString>> Variables<F> {
    fn text(&self, variable: &'static str) -> Result<Option<String>, SettingsError> {
        let text = (self.0)(variable).map(OsString::into_string).transpose();
        text.map_err(|raw| wrong(variable, raw.to_string_lossy(), "UTF-8"))
    }

    fn number(&self, variable: &'static str, default: u64, max: u64) -> Result<u64, SettingsError> {
        let Some(value) = self.text(variable)? else { return Ok(default) };
        let number = value.parse().ok().filter(|number| *number <= max);
        number.ok_or_else(|| wrong(variable, value, format!("a number from 0 to {max}")))
    }

    fn failing(&self, variable: &'static str) -> Result<Failing, SettingsError> {
        let Some(value) = self.text(variable)? else { return Ok(Failing::Status) };
        match value.as_str() {
            "500" => Ok(Failing::Status),
            "hang" => Ok(Failing::Hang),
            "cut" => Ok(Failing::Cut),
            "late" => Ok(Failing::Late),
            _ => Err(wrong(variable, value, "500, hang, cut or late")),
        }
    }

    fn label(&self, variable: &'static str) -> Result<Option<Label>, SettingsError> {
        let Some(value) = self.text(variable)? else { return Ok(None) };
        let label = Label::parse(&value);
        label.map(Some).ok_or_else(|| wrong(variable, value, "visible ASCII without spaces"))
    }
}

/// Where to bind. Next.js takes an address from `HOSTNAME`, but containers put their own name there. In a container,
/// only a bind to all addresses can be reached from outside.
fn bind_ip(hostname: Option<&str>) -> IpAddr {
    match hostname {
        None => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Some(name) => name.parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
    }
}

fn wrong(variable: &'static str, value: impl Into<String>, expected: impl Into<String>) -> SettingsError {
    SettingsError { variable, value: value.into(), expected: expected.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        Settings::from_lookup(|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn an_empty_environment_gives_the_defaults() {
        let settings = read(&[]).unwrap();
        assert_eq!(settings.address.to_string(), "127.0.0.1:3000");
        assert_eq!((settings.backend.as_str(), settings.version.as_str()), ("blue", "0.0.0"));
        assert_eq!((settings.health, settings.fail_percent), (Health::Healthy, 0));
        assert_eq!(settings.start_delay, Duration::ZERO);
        assert_eq!(settings.drain_timeout, Duration::from_secs(30));
    }

    #[test]
    fn a_hostname_that_is_not_an_address_binds_to_all_addresses() {
        for (hostname, bound) in
            [("0.0.0.0", "0.0.0.0:0"), ("::1", "[::1]:0"), ("4f2a9c", "0.0.0.0:0"), ("", "0.0.0.0:0")]
        {
            assert_eq!(read(&[("HOSTNAME", hostname), ("PORT", "0")]).unwrap().address.to_string(), bound);
        }
    }

    #[test]
    fn app_version_takes_precedence_over_npm_package_version() {
        let npm = ("npm_package_version", "1.2.3");
        assert_eq!(read(&[npm]).unwrap().version.as_str(), "1.2.3");
        assert_eq!(read(&[npm, ("APP_VERSION", "9.0.0")]).unwrap().version.as_str(), "9.0.0");
    }

    #[test]
    fn an_invalid_value_is_an_error_that_names_its_variable() {
        for (variable, value) in [
            ("PORT", "65536"),
            ("PORT", ""),
            ("DEPLOYMENT_ENV", "sky blue"),
            ("DEPLOYMENT_ENV", ""),
            ("APP_VERSION", "1\r\nx: y"),
            ("npm_package_version", "é"),
            ("START_DELAY_MS", "600001"),
            ("START_DELAY_MS", "-1"),
            ("UNHEALTHY", "yes"),
            ("FAIL_PERCENT", "101"),
            ("FAIL_HOW", "loudly"),
            ("DRAIN_TIMEOUT_MS", "30s"),
        ] {
            let message = read(&[(variable, value)]).unwrap_err().to_string();
            assert!(message.starts_with(&format!("{variable} is {value:?}: expected ")), "{message}");
        }
    }
}
