//! Where an instance is reached: the front door's own type and rules.

pub use uh_protocol::Address as Endpoint;
