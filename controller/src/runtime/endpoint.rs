//! The address of an instance, with uh-proxy's own type and rules.

pub use uh_protocol::Address as Endpoint;
