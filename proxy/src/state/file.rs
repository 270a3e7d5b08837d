//! The format of the state file. Its first five fields are the guide's, for the first service, so that
//! `jq -r .active` in old scripts keeps working.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uh_protocol::{Address, BackendName, ServiceName};
use uh_switching::{Maintenance, RoutingView, ServiceRecord, ServiceView};

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
    /// No generation beyond this was handed out before a state that says more was on disk; `None`: unknown, as written by
    /// an older version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation_reserve: Option<u64>,
    /// Every service, the first one too.
    pub services: BTreeMap<ServiceName, ServiceEntry>,
}

/// What is kept of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEntry {
    /// The active backend.
    pub active: BackendName,
    /// The one before it.
    pub previous: Option<BackendName>,
    /// When it became active.
    pub last_switch: Option<String>,
    /// Backends that were registered at run time, and so are not as the configuration has them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub registered: BTreeMap<BackendName, Registration>,
    /// The maintenance it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<MaintenanceEntry>,
    /// Standbys that can't become active until they are registered again.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub withdrawn: BTreeSet<BackendName>,
}

/// The maintenance that a service is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MaintenanceEntry {
    /// When it began: ISO 8601, UTC.
    pub since: String,
    /// For people.
    pub message: String,
    /// When to come back, in seconds.
    pub retry_after_s: u32,
}

/// A backend as it was registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Its endpoints; at least one. One that is no endpoint is damage: without it, traffic would go to those of the
    /// configuration.
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
            return Err(D::Error::custom("a registration without an endpoint"));
        }
        texts.iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
    }
}

/// Why a text is not a state file.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Not JSON, or not with these fields.
    #[error("not a state file: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Some of it is not what was written.
    #[error(
        "damaged, or changed by hand: its checksum is {found}, and should be {right} (a file without one is taken as it is)"
    )]
    Checksum {
        /// As the file has it.
        found: String,
        /// That of what the file says.
        right: String,
    },
    /// Ours, but without what says so.
    #[error("damaged: it has no schema, but more than the old scripts wrote")]
    NoSchema,
    /// Written by a newer version, in a way that this one can't read.
    #[error("schema {0} is newer than this version of uh-proxy knows ({SCHEMA})")]
    Newer(u32),
}

impl StateFile {
    /// The state to write for the routing now. `None`: there is no service.
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

    /// The text of the file, with a checksum: JSON alone does not tell if a letter of a name is another one.
    ///
    /// # Errors
    /// Never, for values that JSON can hold.
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

    /// Reads a state file. One without a checksum is taken as it is: an operator may have to write one by hand.
    ///
    /// # Errors
    /// It is damaged, or newer than we are.
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
            // Written by the guide's script: one service, whose name is not known here.
            None => return Self::parse_guide(text),
        }
        if let Some(found) = outline.checksum {
            let right = checksum(&serde_json::from_slice(text)?)?;
            if found != right {
                return Err(StateError::Checksum { found, right });
            }
        }
        // Fields are only ever added: a newer file says what serves as this version does, or it is none that we can use.
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

    /// What it says of a service. `first`: it is the first one of the configuration, to which a file of the guide's
    /// belongs.
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
        }
    }

    /// What it says of its service.
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
        }
    }
}

/// Of everything that a state file says but the checksum itself, also what only another version understands. Layout and
/// order of the fields don't matter.
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
    fn damage_and_the_future_are_told_apart() {
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
