//! The name of an instance.

use std::fmt;

use serde::{Deserialize, Serialize};
use uh_protocol::{BackendName, ServiceName};

/// The name of one instance: `SERVICE.BACKEND.OPERATION`, where the operation is the deploy or rollback that started
/// it. Valid as a container name, a label and a file name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(String);

impl InstanceId {
    /// The name of the instance that an operation starts.
    #[must_use]
    pub fn new(service: &ServiceName, backend: &BackendName, operation: &str) -> Self {
        Self(format!("{}{operation}", Self::prefix(service, backend)))
    }

    /// The prefix of all instances of a backend. Service and backend names have no dots, so it is unique.
    #[must_use]
    pub fn prefix(service: &ServiceName, backend: &BackendName) -> String {
        format!("{service}.{backend}.")
    }

    /// Parses the name of an instance of this backend. Names sort by the time of the operation.
    #[must_use]
    pub fn of(service: &ServiceName, backend: &BackendName, text: &str) -> Option<Self> {
        let operation = text.strip_prefix(&Self::prefix(service, backend))?;
        let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        (!operation.is_empty() && operation.bytes().all(fits)).then(|| Self(text.to_owned()))
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_belongs_to_one_backend_of_one_service() {
        let (app, blue) = ("app".parse().unwrap(), "blue".parse().unwrap());
        let id = InstanceId::new(&app, &blue, "20261125t101500-4f2a");
        assert_eq!(InstanceId::of(&app, &blue, id.as_str()), Some(id));
        for other in
            ["app.blue.", "app.green.1", "app-blue.1", "app.blue.1.2", "app.blue.1/..", "xapp.blue.1"]
        {
            assert_eq!(InstanceId::of(&app, &blue, other), None, "{other}");
        }
    }
}
