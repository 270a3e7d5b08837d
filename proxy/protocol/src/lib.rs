//! The wire types shared by all programs: names, endpoints' addresses, admin requests and replies, errors, the
//! health body, and (feature `client`) a client for uh-proxy's admin socket and one for health probes.
//!
//! Types here are wire types: plain data with `serde`, no behaviour beyond validation. The admin API is stable: fields
//! may be added, but never changed or removed.

pub mod address;
pub mod health;
pub mod name;
pub mod problem;
pub mod request;
pub mod status;
mod unique;

#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "client")]
pub mod probe;

/// The default path of the admin socket.
pub const DEFAULT_ADMIN_SOCKET: &str = "/run/uh-proxy/admin.sock";

pub use address::{Address, AddressError};
pub use name::{BackendName, NameError, ServiceName};
pub use problem::{Code, Problem};
