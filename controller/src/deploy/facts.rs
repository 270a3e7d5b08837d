//! The facts of an operation: known when it starts, written with its first journal entry, never changed.

use serde::{Deserialize, Serialize};
use uh_protocol::{Address, BackendName, ServiceName};

use super::trial::EarlierTrial;
use super::watch::WatchPlan;
use crate::config::CanaryPlan;
use crate::evidence::Breach;
use crate::runtime::InstanceId;

/// The facts of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationFacts {
    /// Its id: the time and a random part, so that ids sort by time.
    pub operation: String,
    pub service: ServiceName,
    /// The services that move together with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub together_with: Vec<ServiceName>,
    /// The active backend when it started.
    pub from: BackendName,
    /// The version there, if known.
    pub from_version: Option<String>,
    /// The candidate, or what is rolled back to.
    pub to: BackendName,
    /// Its version. Unknown only for a rollback target that uh-deploy didn't start.
    pub version: Option<String>,
    /// Where it listens.
    pub endpoints: Vec<Address>,
    /// uh-proxy's generation when it started.
    pub generation: u64,
    /// uh-proxy's last switch before it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_switch: Option<String>,
    /// The candidate's instance, if this operation starts one.
    pub instance: InstanceId,
    /// Whether the health gate is skipped.
    pub skip_health: bool,
    /// Whether a failed candidate keeps running, out of service.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_failed: bool,
    /// Who runs it: user and host.
    pub who: String,
    /// What requested it, if not a person: `monitor`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The breach that caused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breach: Option<Breach>,
    /// The planned watch of a deploy. In the journal from the start, so that it survives a crash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watch: Option<WatchPlan>,
    /// The trial of a deploy, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryPlan>,
    /// What uh-proxy had counted in an earlier trial when this one was planned: its status shows that until the next split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub earlier_trial: Option<EarlierTrial>,
    /// When it started: ISO 8601, UTC.
    pub began_at: String,
}

impl OperationFacts {
    /// The version for messages.
    #[must_use]
    pub fn version_or_unknown(&self) -> &str {
        self.version.as_deref().unwrap_or("unknown")
    }
}

/// An id for an operation that starts now.
#[must_use]
pub(crate) fn new_operation(now: jiff::Timestamp) -> String {
    use std::hash::{BuildHasher as _, Hasher as _};
    // Two operations may start in the same second; the standard library's hasher has a random seed.
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    format!("{}-{:06x}", now.strftime("%Y%m%dt%H%M%S"), hasher.finish() & 0xff_ffff)
}

/// The value of `--by`, set once at the start.
pub(crate) static BY: std::sync::OnceLock<String> = std::sync::OnceLock::new();

/// The longest name that is recorded.
const MAX_WHO_CHARS: usize = 128;

/// The variables in which CI services name the user who started the job.
const CI: [(&str, &str); 5] = [
    ("GITHUB_ACTOR", "GitHub Actions"),
    ("GITLAB_USER_LOGIN", "GitLab CI"),
    ("BUILDKITE_BUILD_CREATOR", "Buildkite"),
    ("CIRCLE_USERNAME", "CircleCI"),
    ("BUILD_USER_ID", "Jenkins"),
];

/// Who runs the command: `user@host`. Prefers a person: the value of `--by`, the caller of sudo, or the user who
/// started the CI job. In a container, user and host don't identify anyone.
#[must_use]
pub(crate) fn who() -> String {
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
    fn the_most_specific_known_name_is_used() {
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
