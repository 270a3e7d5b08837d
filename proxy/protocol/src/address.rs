//! Endpoint addresses: one type and one parser, shared by all programs.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest path of a Unix socket, with `unix:` before it: it holds at most 107 bytes (unix(7)).
const MAX_UNIX_BYTES: usize = 107;

/// The longest host name, in bytes (RFC 1035, section 2.3.4, as text).
const MAX_HOST_BYTES: usize = 253;

/// The address of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Address {
    /// An IP address and a port.
    Socket(SocketAddr),
    /// A host name and a port, looked up in the background.
    Name(String, u16),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl Address {
    /// The port, unless it is a Unix socket.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Socket(address) => Some(address.port()),
            Self::Name(_, port) => Some(*port),
            Self::Unix(_) => None,
        }
    }

    /// The host name or the IP address (an IPv6 one without brackets), unless it is a Unix socket.
    #[must_use]
    pub fn host(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Socket(address) => Some(address.ip().to_string().into()),
            Self::Name(host, _) => Some(host.into()),
            Self::Unix(_) => None,
        }
    }
}

/// Why a text is not an [`Address`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} isn't a valid endpoint: use host:port, [IPv6]:port or unix:/path")]
pub struct AddressError {
    given: String,
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = || AddressError { given: text.chars().take(200).collect() };
        if let Some(path) = text.strip_prefix("unix:") {
            let fits = path.starts_with('/') && path.len() <= MAX_UNIX_BYTES && !path.contains('\0');
            return if fits { Ok(Self::Unix(PathBuf::from(path))) } else { Err(error()) };
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return if address.port() == 0 { Err(error()) } else { Ok(Self::Socket(address)) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
        let port: u16 = port.parse().map_err(|_| error())?;
        let host_fits = (1..=MAX_HOST_BYTES).contains(&host.len())
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
            && !host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        if port == 0 || !host_fits { Err(error()) } else { Ok(Self::Name(host.to_owned(), port)) }
    }
}

impl TryFrom<String> for Address {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_back_as_it_is_shown() {
        for good in [
            "127.0.0.1:3008",
            "blue:3008",
            "[::1]:3008",
            "unix:/run/blue.sock",
            "a-b_c.example:1",
            "app-1.internal:8080",
        ] {
            assert_eq!(good.parse::<Address>().unwrap().to_string(), good);
        }
        assert_eq!("[0:0::1]:80".parse::<Address>().unwrap().to_string(), "[::1]:80");
    }

    #[test]
    fn unreachable_addresses_are_rejected() {
        let long = format!("unix:/{}", "x".repeat(120));
        for bad in [
            "",
            "3008",
            "blue",
            "blue:",
            "blue:0",
            "blue:70000",
            ":3008",
            "unix:blue.sock",
            "unix:",
            "a b:1",
            "1.2.3.999:80",
            "127.0.0.1:0",
            "x:99999",
            "[zzz]:80",
            "[::1]:0",
            "::1:80",
            "[::1]",
            &long,
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad:?} passed");
        }
    }
}
