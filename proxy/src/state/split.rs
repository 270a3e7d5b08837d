//! A split in the state file.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uh_protocol::BackendName;
use uh_switching::{Assignment, Judging, Side, SplitRecord, Term, Weight};

use super::time::iso_millis;

/// The split of a service's traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SplitEntry {
    /// The backend that gets a part of the traffic.
    pub to: BackendName,
    /// The share of clients that go there, in millionths.
    pub weight_millionths: u32,
    /// Which clients: 32 hexadecimal digits.
    pub salt: String,
    /// When it began: ISO 8601, UTC.
    pub since: String,
    /// When it ends unless it is renewed: ISO 8601, UTC.
    pub until: String,
    /// How long it lasts from its last renewal, in milliseconds.
    pub lasts_ms: u64,
    /// Whether it is a lease.
    pub leased: bool,
    /// Whether its trial suspects the active backend instead of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspects_active: bool,
    /// For how long its trial doesn't judge slowness, in milliseconds. Absent: as long as usual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_up_ms: Option<u64>,
}

impl SplitEntry {
    /// Of this split.
    #[must_use]
    pub fn of(split: &SplitRecord) -> Self {
        let SplitRecord { to, assignment, began, term, until, judging } = split;
        Self {
            to: to.clone(),
            weight_millionths: assignment.weight.millionths(),
            salt: assignment.salt.to_string(),
            since: iso_millis(*began),
            until: iso_millis(*until),
            lasts_ms: millis(term.length()),
            leased: matches!(term, Term::Lease(_)),
            suspects_active: judging.suspect == Side::Old,
            warm_up_ms: judging.warm_up.map(millis),
        }
    }

    /// The split. `None`: it isn't one, so all traffic goes to the active backend.
    #[must_use]
    pub fn record(&self) -> Option<SplitRecord> {
        let weight = Weight::from_millionths(self.weight_millionths)?;
        let lasts = Duration::from_millis(self.lasts_ms);
        Some(SplitRecord {
            to: self.to.clone(),
            assignment: Assignment { weight, salt: self.salt.parse().ok()? },
            began: self.since.parse::<Timestamp>().ok()?,
            term: if self.leased { Term::Lease(lasts) } else { Term::Hold(lasts) },
            until: self.until.parse::<Timestamp>().ok()?,
            judging: Judging {
                suspect: if self.suspects_active { Side::Old } else { Side::New },
                warm_up: self.warm_up_ms.map(Duration::from_millis),
            },
        })
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uh_switching::Salt;

    use super::*;

    proptest! {
        #[test]
        fn a_split_survives_the_file(
            millionths in 1u32..=1_000_000,
            salt in any::<u128>(),
            times in [0i64..4_000_000_000_000, 0i64..4_000_000_000_000],
            lasts in any::<u32>(),
            leased in any::<bool>(),
            suspects_active in any::<bool>(),
            warm_up in proptest::option::of(any::<u32>()),
        ) {
            let [began, until] = times.map(|ms| Timestamp::from_millisecond(ms).unwrap());
            let lasts = Duration::from_millis(u64::from(lasts));
            let split = SplitRecord {
                to: "green".parse().unwrap(),
                assignment: Assignment { weight: Weight::from_millionths(millionths).unwrap(), salt: Salt::new(salt) },
                began,
                term: if leased { Term::Lease(lasts) } else { Term::Hold(lasts) },
                until,
                judging: Judging {
                    suspect: if suspects_active { Side::Old } else { Side::New },
                    warm_up: warm_up.map(|ms| Duration::from_millis(u64::from(ms))),
                },
            };
            let text = serde_json::to_string(&SplitEntry::of(&split)).unwrap();
            let entry: SplitEntry = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(entry.record(), Some(split));
        }
    }
}
