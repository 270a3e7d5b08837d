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
    /// The front door's last switch before it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_switch: Option<String>,
    /// What the candidate's instance is called, if this operation starts one.
    pub instance: InstanceId,
    /// Whether it goes without the health gate.
    pub skip_health: bool,
    /// Whether a candidate that fails is left running, out of service.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_failed: bool,
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

/// Who is at work, as `--by` says; set once, at the start.
pub static BY: std::sync::OnceLock<String> = std::sync::OnceLock::new();

/// The longest name that is put on record.
const MAX_WHO_CHARS: usize = 128;

/// The variables in which CI services say who has started a job.
const CI: [(&str, &str); 5] = [
    ("GITHUB_ACTOR", "GitHub Actions"),
    ("GITLAB_USER_LOGIN", "GitLab CI"),
    ("BUILDKITE_BUILD_CREATOR", "Buildkite"),
    ("CIRCLE_USERNAME", "CircleCI"),
    ("BUILD_USER_ID", "Jenkins"),
];

/// Who is at work: `user@host`. A person where one is known: who is named by `--by`, who has called sudo, who has started
/// the CI job. In a container the user and the host are nobody's names.
#[must_use]
pub fn who() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    who_is(BY.get().map(String::as_str), |name| std::env::var(name).ok(), &host)
}

fn who_is(by: Option<&str>, variable: impl Fn(&str) -> Option<String>, host: &str) -> String {
    let given = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
    let ci = || CI.iter().find_map(|(name, service)| Some(format!("{} ({service})", given(name)?)));
    let user = || ["USER", "LOGNAME"].iter().find_map(|name| given(name));
    let uid = || format!("uid {}", rustix::process::getuid().as_raw());
    let name =
        by.map(str::to_owned).or_else(|| given("SUDO_USER")).or_else(ci).or_else(user).unwrap_or_else(uid);
    let shown = name.chars().filter(|c| !c.is_control()).take(MAX_WHO_CHARS).collect::<String>();
    format!("{}@{host}", shown.trim())
}

#[cfg(test)]
mod tests {
    use super::who_is;

    #[test]
    fn whoever_is_known_best_is_named() {
        let variables = |set: &'static [(&str, &str)]| {
            move |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        };
        let ci = variables(&[("USER", "runner"), ("GITHUB_ACTOR", "octocat")]);
        assert_eq!(who_is(None, ci, "h"), "octocat (GitHub Actions)@h");
        let sudo = variables(&[("USER", "root"), ("SUDO_USER", "ann")]);
        assert_eq!(who_is(None, sudo, "h"), "ann@h");
        let root = variables(&[("USER", "root")]);
        assert_eq!(who_is(Some("Ann\n"), root, "7f2185bcd4eb"), "Ann@7f2185bcd4eb");
        assert_eq!(who_is(None, root, "h"), "root@h");
    }
}
