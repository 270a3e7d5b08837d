//! What an operator sees: counters, the Prometheus text made from them, and the access log.

pub mod access_log;
pub mod broken;
pub mod line;
pub mod meters;
pub mod metrics;
pub mod seldom;
pub mod termination;
