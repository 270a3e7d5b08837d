//! uh-proxy: a reverse proxy that moves traffic between the backends of a service in one atomic step, without losing a
//! request, and knows exactly how many exchanges each backend holds.
//!
//! In reading order: [`config`] says what there is; [`uh_switching`] decides which backend gets a request, and counts;
//! `tls` holds certificates and speaks TLS; `acme` gets certificates; [`uh_http1`] parses messages; `front`
//! forwards them; `health` probes backends; [`state`] persists the routing; [`observe`] logs and measures; `lock` keeps other processes away from it;
//! [`import`] reads nginx's configuration; `admin` takes orders; `keeper` gets listening sockets from uh-keeper; [`systemd`] speaks with the service manager; [`run`] puts it all together; [`cli`] is what an
//! operator types.

mod acme;
mod admin;
pub mod cli;
pub mod config;
mod fault;
mod front;
mod handover;
mod health;
pub mod import;
mod keeper;
mod lock;
pub mod observe;
mod random;
pub mod run;
pub mod state;
pub mod systemd;
mod tls;

// What a start gets.
pub use handover::parent::{Parent, ParentError};
// Measured by a benchmark.
pub use front::rate::RateLimiter;
