//! What the parts of the system say to each other: names, endpoints' addresses, admin requests and replies, errors, the
//! health body, and (feature `client`) the client that talks to a front door over its admin socket.
//!
//! Types here are wire types: plain data with `serde`, no behaviour beyond validation. The admin API
//! is fixed: fields may be added, none may change or go.

pub mod address;
pub mod health;
pub mod name;
pub mod problem;
pub mod request;
pub mod status;

#[cfg(feature = "client")]
pub mod client;

/// Where the admin socket is unless told otherwise.
pub const DEFAULT_ADMIN_SOCKET: &str = "/run/uh-proxy/admin.sock";

pub use address::{Address, AddressError};
pub use name::{BackendName, NameError, ServiceName};
pub use problem::{Code, Problem};
