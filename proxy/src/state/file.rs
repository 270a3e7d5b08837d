//! The format of the state file. Its first five fields are the guide's, for the first service, so that
//! `jq -r .active` in old scripts keeps working.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uh_protocol::{Address, BackendName, ServiceName};
use uh_switching::{Maintenance, RoutingView, ServiceRecord, ServiceView};

use super::split::SplitEntry;
use super::time::iso_seconds;
use crate::config;

/// The version of the format.
pub const SCHEMA: u32 = 1;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StateFile {
    /// The first service's active backend.
    pub active: BackendName,
    /// The one before it.
    pub previous: Option<BackendName>,
    /// When it became active: ISO 8601, UTC.
    pub last_switch: Option<String>,
    /// The app's version there.
    pub version: Option<String>,
    /// Whether its last probes were good.
    pub healthy: bool,
    /// The version of the format.
    pub schema: u32,
    /// The generation of the routing.
    pub generation: u64,
    /// No generation beyond this was used before a state with a larger reserve was on disk; `None`: unknown, as written
    /// by an older version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation_reserve: Option<u64>,
    /// Every service, the first one too.
    pub services: BTreeMap<ServiceName, ServiceEntry>,
}

/// The state of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEntry {
    /// The active backend.
    pub active: BackendName,
    /// The one before it.
    pub previous: Option<BackendName>,
    /// When it became active.
    pub last_switch: Option<String>,
    /// Backends registered at run time, which override the configuration.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub registered: BTreeMap<BackendName, Registration>,
    /// Its maintenance, if it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<MaintenanceEntry>,
    /// Standbys that can't become active until they are registered again.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub withdrawn: BTreeSet<BackendName>,
    /// The split of its traffic, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<SplitEntry>,
}

/// The maintenance of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MaintenanceEntry {
    /// When it began: ISO 8601, UTC.
    pub since: String,
    /// For humans.
    pub message: String,
    /// When to come back, in seconds.
    pub retry_after_s: u32,
}

/// A backend as it was registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Its endpoints; at least one. An invalid endpoint counts as damage: ignoring it would send traffic to the
    /// configured ones.
    #[serde(with = "endpoints")]
    pub endpoints: Vec<Address>,
    /// The app's version.
    pub version: Option<String>,
}

/// Endpoints as text.
mod endpoints {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    use uh_protocol::Address;

    pub(super) fn serialize<S: Serializer>(addresses: &[Address], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(addresses.iter().map(ToString::to_string))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Address>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        if texts.is_empty() {
            return Err(D::Error::custom("a registration has no endpoint"));
        }
        texts.iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
    }
}

/// Why a text isn't a valid state file.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Not JSON, or not with the expected fields.
    #[error("not a state file: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Its content isn't what was written.
    #[error(
        "damaged or edited by hand: its checksum is {found}, expected {right} (a file without a checksum is accepted as it is)"
    )]
    Checksum {
        /// The file's checksum.
        found: String,
        /// The checksum of the file's content.
        right: String,
    },
    /// It has uh-proxy's fields but no schema.
    #[error("damaged: it has no schema, but it has fields that the old scripts didn't write")]
    NoSchema,
    /// Written by a newer version in a format that this one can't read.
    #[error("schema {0} is newer than this version of uh-proxy supports ({SCHEMA})")]
    Newer(u32),
}

impl StateFile {
    /// The state of the current routing. `None`: there is no service.
    #[must_use]
    pub fn of(routing: &RoutingView<config::Service>) -> Option<Self> {
        let first = routing.services.first()?;
        let active = first.active()?;
        let entry = |service: &ServiceView<config::Service>| {
            (service.state.config.name.clone(), ServiceEntry::of(ServiceRecord::of(&service.state)))
        };
        Some(Self {
            active: active.backend.name.clone(),
            previous: first.state.previous.clone(),
            last_switch: first.state.last_switch.map(iso_seconds),
            version: active.version.clone(),
            healthy: active.health.is_good(),
            schema: SCHEMA,
            generation: routing.generation,
            generation_reserve: Some(routing.generation_reserve),
            services: routing.services.iter().map(entry).collect(),
        })
    }

    /// The text of the file, with a checksum: JSON alone doesn't reveal a flipped bit in a name.
    ///
    /// # Errors
    /// Never for these values.
    pub fn text(&self) -> Result<Vec<u8>, serde_json::Error> {
        #[derive(Serialize)]
        struct Sealed<'a> {
            #[serde(flatten)]
            state: &'a StateFile,
            checksum: String,
        }
        let checksum = checksum(&serde_json::to_value(self)?)?;
        let mut text = serde_json::to_vec_pretty(&Sealed { state: self, checksum })?;
        text.push(b'\n');
        Ok(text)
    }

    /// Reads a state file. One without a checksum is accepted as it is: operators may have to write one by hand.
    ///
    /// # Errors
    /// If it is damaged, or from a version that is too new.
    pub fn parse(text: &[u8]) -> Result<Self, StateError> {
        #[derive(Deserialize)]
        struct Outline {
            #[serde(default)]
            schema: Option<u32>,
            #[serde(default)]
            checksum: Option<String>,
            #[serde(default)]
            services: Option<serde::de::IgnoredAny>,
        }
        let outline: Outline = serde_json::from_slice(text)?;
        match outline.schema {
            Some(_) => {}
            None if outline.services.is_some() || outline.checksum.is_some() => {
                return Err(StateError::NoSchema);
            }
            // Written by the guide's script: one service, whose name isn't known here.
            None => return Self::parse_guide(text),
        }
        if let Some(found) = outline.checksum {
            let right = checksum(&serde_json::from_slice(text)?)?;
            if found != right {
                return Err(StateError::Checksum { found, right });
            }
        }
        // Fields are only ever added, so the active backends in a newer file are readable, or the file is unusable.
        let newer = outline.schema.filter(|schema| *schema > SCHEMA);
        serde_json::from_slice(text).map_err(|e| newer.map_or(StateError::Malformed(e), StateError::Newer))
    }

    fn parse_guide(text: &[u8]) -> Result<Self, StateError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Guide {
            active: BackendName,
            #[serde(default)]
            previous: Option<BackendName>,
            #[serde(default)]
            last_switch: Option<serde_json::Value>,
        }
        let guide: Guide = serde_json::from_slice(text)?;
        Ok(Self {
            active: guide.active,
            previous: guide.previous,
            last_switch: guide.last_switch.and_then(|value| value.as_str().map(str::to_owned)),
            version: None,
            healthy: false,
            schema: 0,
            generation: 0,
            generation_reserve: None,
            services: BTreeMap::new(),
        })
    }

    /// The entry of a service. `first`: it is the first service in the configuration, to which a file in the guide's
    /// format belongs.
    #[must_use]
    pub fn record(&self, service: &ServiceName, first: bool) -> Option<ServiceRecord> {
        if let Some(entry) = self.services.get(service) {
            return Some(entry.record());
        }
        let of_guide = first && self.services.is_empty();
        of_guide.then(|| ServiceRecord {
            active: self.active.clone(),
            previous: self.previous.clone(),
            last_switch: self.last_switch.as_deref().and_then(|text| text.parse().ok()),
            registered: BTreeMap::new(),
            maintenance: None,
            withdrawn: BTreeSet::new(),
            split: None,
        })
    }
}

impl ServiceEntry {
    fn of(record: ServiceRecord) -> Self {
        let registration = |(name, registration): (BackendName, uh_switching::Registration)| {
            (name, Registration { endpoints: registration.endpoints, version: registration.version })
        };
        Self {
            active: record.active,
            previous: record.previous,
            last_switch: record.last_switch.map(iso_seconds),
            registered: record.registered.into_iter().map(registration).collect(),
            maintenance: record.maintenance.map(|maintenance| MaintenanceEntry {
                since: iso_seconds(maintenance.since),
                message: maintenance.message,
                retry_after_s: maintenance.retry_after_s,
            }),
            withdrawn: record.withdrawn,
            split: record.split.as_ref().map(SplitEntry::of),
        }
    }

    /// The restored state of its service.
    #[must_use]
    pub fn record(&self) -> ServiceRecord {
        let registration = |(name, registration): (&BackendName, &Registration)| {
            let Registration { endpoints, version } = registration.clone();
            (name.clone(), uh_switching::Registration { endpoints, version })
        };
        ServiceRecord {
            active: self.active.clone(),
            previous: self.previous.clone(),
            last_switch: self.last_switch.as_deref().and_then(|text| text.parse().ok()),
            registered: self.registered.iter().map(registration).collect(),
            maintenance: self.maintenance.as_ref().map(|maintenance| Maintenance {
                since: maintenance.since.parse().unwrap_or(Timestamp::UNIX_EPOCH),
                message: maintenance.message.clone(),
                retry_after_s: maintenance.retry_after_s,
            }),
            withdrawn: self.withdrawn.clone(),
            split: self.split.as_ref().and_then(SplitEntry::record),
        }
    }
}

/// The checksum of everything in a state file except the checksum itself, including fields of other versions. Layout
/// and order of the fields don't matter.
fn checksum(file: &serde_json::Value) -> Result<String, serde_json::Error> {
    // `Value` keeps its fields in alphabetical order.
    let mut file = file.clone();
    if let Some(fields) = file.as_object_mut() {
        fields.remove("checksum");
    }
    Ok(format!("{:08x}", crc32fast::hash(&serde_json::to_vec(&file)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_the_guide_is_understood() {
        let text = br#"{"active":"green","previous":"blue","lastSwitch":"2025-12-03T10:30:00Z","version":"1.0.1","healthy":true}"#;
        let state = StateFile::parse(text).unwrap();
        assert_eq!(state.active.as_str(), "green");
        assert_eq!(state.last_switch.as_deref(), Some("2025-12-03T10:30:00Z"));
    }

    #[test]
    fn damage_and_newer_versions_are_distinguished() {
        assert!(matches!(StateFile::parse(b""), Err(StateError::Malformed(_))));
        assert!(matches!(StateFile::parse(b"{\"active\":\"No Name\"}"), Err(StateError::Malformed(_))));
        assert!(matches!(StateFile::parse(b"{\"schema\":2}"), Err(StateError::Newer(2))));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic_the_parser(text in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = StateFile::parse(&text);
        }
    }
}
