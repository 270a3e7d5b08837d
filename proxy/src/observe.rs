//! Counters, Prometheus metrics and the access log.

pub(crate) mod access_log;
pub(crate) mod broken;
pub mod buffered;
pub(crate) mod compressed;
pub(crate) mod history;
pub(crate) mod http2;
pub mod line;
pub(crate) mod log_rate_limit;
pub mod meters;
pub(crate) mod metrics;
pub(crate) mod previous;
pub mod stuck;
pub mod termination;
