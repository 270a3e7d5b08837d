//! Counters, Prometheus metrics and the access log.

pub mod access_log;
pub mod broken;
pub mod http2;
pub mod line;
pub mod log_rate_limit;
pub mod meters;
pub mod metrics;
pub mod termination;
