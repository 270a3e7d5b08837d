//! Names of services and backends: short, lower-case, safe in a URL path, a label and a file name.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The longest name, in bytes: as for a DNS label, so that a name can become a host or container name.
pub const MAX_NAME_BYTES: usize = 63;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{given:?} isn't a valid name: use 1 to {MAX_NAME_BYTES} characters from a-z, 0-9, '-' and '_', starting with a letter or digit"
)]
pub struct NameError {
    given: String,
}

fn check(text: &str) -> Result<(), NameError> {
    let starts_well = text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    let all_allowed = text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'));
    if starts_well && all_allowed && text.len() <= MAX_NAME_BYTES {
        return Ok(());
    }
    // Truncated, so that a megabyte of garbage doesn't come back in an error.
    Err(NameError { given: text.chars().take(MAX_NAME_BYTES + 1).collect() })
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                check(text)?;
                Ok(Self(Arc::from(text)))
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}

name!(
    /// An app published through uh-proxy.
    ServiceName
);
name!(
    /// One environment of a service, such as `blue` or `green`.
    BackendName
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_short_lower_case_label() {
        for good in ["blue", "green", "v2", "2", "a-b_c", &"x".repeat(63)] {
            assert_eq!(good.parse::<BackendName>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "_a", "Blue", "a b", "a/b", "ä", "a\n", &"x".repeat(64)] {
            assert!(bad.parse::<BackendName>().is_err(), "{bad:?} passed");
        }
    }

    #[test]
    fn a_bad_name_in_json_is_an_error_that_shows_it() {
        let error = serde_json::from_str::<ServiceName>("\"No Good\"").unwrap_err().to_string();
        assert!(error.contains("No Good"), "{error}");
    }
}
