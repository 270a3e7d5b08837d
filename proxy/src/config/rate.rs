//! `rate`: how many requests one client may make, for a service or for some of its paths.

use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use uh_settings::{Given, Section};

const SECOND_US: u64 = 1_000_000;
const MINUTE_US: u64 = 60 * SECOND_US;

/// More than any single client needs. Above it, an interval of whole microseconds would be too coarse.
const MOST_PER_SECOND: u32 = 10_000;

/// So that no burst is longer than a day even at one request a minute.
const MOST_PER_MINUTE: u32 = 600_000;

/// More requests at once than any client has.
const MOST_BURST: u32 = 1_000_000;

/// How often a client may make a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quota {
    interval_us: u64,
    tolerance_us: u64,
}

impl Quota {
    /// The longest time between two requests, and the longest time to regain a whole burst: a day.
    pub const MOST_US: u64 = 24 * 60 * MINUTE_US;

    /// One request in `interval_us`, and `burst` more at once; `None`: one of the times is zero or longer than a day.
    #[must_use]
    pub fn new(interval_us: u64, burst: u32) -> Option<Self> {
        let tolerance_us = interval_us.checked_mul(u64::from(burst))?;
        let fits = (1..=Self::MOST_US).contains(&interval_us) && tolerance_us <= Self::MOST_US;
        fits.then_some(Self { interval_us, tolerance_us })
    }

    /// The time in which one request is regained.
    #[must_use]
    pub fn interval_us(self) -> u64 {
        self.interval_us
    }

    /// The time in which the whole burst is regained.
    #[must_use]
    pub fn tolerance_us(self) -> u64 {
        self.tolerance_us
    }
}

/// A limit on the requests of one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Which limit it is. The same after a reload that doesn't change it.
    pub rule: u64,
    /// How often a client may make a request.
    pub quota: Quota,
    requests: u32,
    per: Per,
    burst: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Per {
    Second,
    Minute,
}

/// As in `10 per second, burst 20`.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per = match self.per {
            Per::Second => "second",
            Per::Minute => "minute",
        };
        write!(f, "{} per {per}, burst {}", self.requests, self.burst)
    }
}

/// Reads `rate`. `owner` names what it is for, independently of its place in the file; `inherited` applies if the key is
/// absent.
pub(super) fn rate(section: &mut Section, owner: &str, inherited: Option<Rate>) -> Option<Rate> {
    match section.given("rate") {
        None => inherited,
        Some(Given::Boolean(false)) => None,
        Some(Given::Boolean(true)) => {
            section.mistake("rate", "say how many, such as { per_second = 10, burst = 20 }");
            None
        }
        Some(Given::Table(table)) => of_table(table, owner),
    }
}

fn of_table(mut section: Section, owner: &str) -> Option<Rate> {
    let (requests, per) = requests(&mut section)?;
    if !section.has("burst") {
        section.mistake("burst", "missing: give the requests that may come at once in addition, such as 20");
    }
    let burst = section.integer("burst", 0, (0, MOST_BURST));
    let unit_us = match per {
        Per::Second => SECOND_US,
        Per::Minute => MINUTE_US,
    };
    let requests_u64 = u64::from(requests);
    let Some(quota) = Quota::new((unit_us + requests_u64 / 2) / requests_u64, burst) else {
        section.mistake(
            "burst",
            "regaining it would take longer than a day: use a smaller one, or a higher rate",
        );
        return None;
    };
    let mut hasher = DefaultHasher::new();
    (owner, quota).hash(&mut hasher);
    Some(Rate { rule: hasher.finish(), quota, requests, per, burst })
}

fn requests(section: &mut Section) -> Option<(u32, Per)> {
    match (section.has("per_second"), section.has("per_minute")) {
        (true, false) => Some((section.integer("per_second", 1, (1, MOST_PER_SECOND)), Per::Second)),
        (false, true) => Some((section.integer("per_minute", 1, (1, MOST_PER_MINUTE)), Per::Minute)),
        (second, _) => {
            let reason = if second {
                "use only one of per_second and per_minute"
            } else {
                "missing: or give per_minute"
            };
            section.mistake("per_second", reason);
            for key in ["per_second", "per_minute", "burst"] {
                section.integer(key, 1, (0, u32::MAX));
            }
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, ConfigError, parse};

    /// A configuration with these lines in its service, and these path rules.
    fn configured(service: &str, rules: &str) -> Result<Config, ConfigError> {
        parse(&format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\n[services.app]\nactive = \"blue\"\n{service}\n\
             [services.app.backends.blue]\nendpoints = [\"127.0.0.1:1\"]\n{}",
            rules.replace("[[paths]]", "[[services.app.paths]]")
        ))
    }

    /// The identities of the limits of `/`, `/a` and `/b`.
    fn rules(service: &str, rules: &str) -> [Option<u64>; 3] {
        let config = configured(service, rules).unwrap();
        let paths = &config.services[0].rules;
        ["/", "/a", "/b"].map(|path| Some(paths.at(paths.find(path.as_bytes())).rate?.rule))
    }

    #[test]
    fn a_limit_is_the_same_one_as_long_as_its_paths_and_numbers_are() {
        let service = "rate = { per_second = 10, burst = 20 }";
        let a = "[[paths]]\nmatch = \"/a\"\nrate = { per_minute = 5, burst = 5 }\n";
        let b = "[[paths]]\nmatch = \"/b\"\nrate = { per_minute = 5, burst = 5 }\n";
        let first = rules(service, &format!("{a}{b}"));
        assert!(first.iter().all(Option::is_some));
        assert!(first[0] != first[1] && first[1] != first[2] && first[0] != first[2]);
        assert_eq!(
            rules(service, &format!("{b}access_log = false\n{a}")),
            first,
            "order and other keys don't matter"
        );
        let slower = rules(service, &format!("{}{b}", a.replace("burst = 5", "burst = 6")));
        assert!(slower[1] != first[1] && (slower[0], slower[2]) == (first[0], first[2]));
        let inherited =
            rules(service, "[[paths]]\nmatch = \"/a\"\n[[paths]]\nmatch = \"/b\"\nrate = false\n");
        assert_eq!(inherited, [first[0], first[0], None]);
        assert_eq!(rules("", a), [None, first[1], None]);
    }

    #[test]
    fn what_is_no_limit_is_refused() {
        for (rate, key, reason) in [
            ("true", "rate", "per_second = 10"),
            ("10", "rate", "expected a table"),
            ("{ burst = 5 }", "rate.per_second", "missing"),
            ("{ per_second = 1, per_minute = 1, burst = 5 }", "rate.per_second", "only one"),
            ("{ per_second = 1 }", "rate.burst", "missing"),
            ("{ per_second = 0, burst = 5 }", "rate.per_second", "out of range"),
            ("{ per_second = 10001, burst = 5 }", "rate.per_second", "out of range"),
            ("{ per_minute = 1, burst = 1441 }", "rate.burst", "longer than a day"),
            ("{ per_second = 1, burst = 5, delay = 2 }", "rate.delay", "unknown key"),
        ] {
            let Err(ConfigError::Mistakes(found)) = configured(&format!("rate = {rate}"), "") else {
                panic!("{rate} passed")
            };
            let key = format!("services.app.{key}");
            let named = found.0.iter().any(|mistake| mistake.key == key && mistake.reason.contains(reason));
            assert!(named, "{rate}: {found:?}");
        }
    }
}
