//! What an operation knows about itself from the start. Written with its first line in the journal, never changed.

use serde::{Deserialize, Serialize};
use uh_protocol::{BackendName, ServiceName};

use super::watch::Plan;
use crate::evidence::Breach;
use crate::runtime::{Endpoint, InstanceId};

/// What an operation is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Its name: time and a random part, so that names sort by time.
    pub operation: String,
    /// The service.
    pub service: ServiceName,
    /// Active when it began.
    pub from: BackendName,
    /// The version there, as far as it is known.
    pub from_version: Option<String>,
    /// The candidate, or what is rolled back to.
    pub to: BackendName,
    /// The version that it is, or will be. Unknown only of a target that was not started by us.
    pub version: Option<String>,
    /// Where it listens.
    pub endpoints: Vec<Endpoint>,
    /// The front door's generation when it began.
    pub generation: u64,
    /// What the candidate's instance is called, if this operation starts one.
    pub instance: InstanceId,
    /// Whether it goes without the health gate.
    pub skip_health: bool,
    /// Who: user and host.
    pub who: String,
    /// Why, where that is not plain: `monitor`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What was found wrong, if that is why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breach: Option<Breach>,
    /// The watch that follows a deploy. In the journal from the start, so that it isn't lost if we are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watch: Option<Plan>,
    /// When it began: ISO 8601, UTC.
    pub began_at: String,
}

impl Facts {
    /// A version for people.
    #[must_use]
    pub fn version_or_unknown(&self) -> &str {
        self.version.as_deref().unwrap_or("unknown")
    }
}

/// A name for an operation that begins now.
#[must_use]
pub fn new_operation(now: jiff::Timestamp) -> String {
    use std::hash::{BuildHasher as _, Hasher as _};
    // Two controllers may begin in the same second; the standard library's hasher is seeded at random.
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    format!("{}-{:06x}", now.strftime("%Y%m%dt%H%M%S"), hasher.finish() & 0xff_ffff)
}

/// Who is at work: `user@host`.
#[must_use]
pub fn who() -> String {
    let user = ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
    let user = user.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()));
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{user}@{host}")
}
