//! uh-proxy: a reverse proxy that moves traffic between the backends of a service in one atomic step, without losing a
//! request, and knows exactly how many exchanges each backend holds.
//!
//! In reading order: [`config`] says what there is; [`uh_switching`] decides which backend gets a request, and counts;
//! [`tls`] holds certificates and speaks TLS; [`acme`] gets certificates; [`uh_http1`] parses messages; [`front`]
//! forwards them; [`health`] probes backends; [`state`] persists the routing; [`observe`] logs and measures; [`lock`] keeps other processes away from it;
//! [`admin`] takes orders; [`systemd`] speaks with the service manager; [`run`] puts it all together; [`cli`] is what an
//! operator types.

pub mod acme;
pub mod admin;
pub mod cli;
pub mod config;
pub mod fault;
pub mod front;
pub mod health;
pub mod lock;
pub mod observe;
pub mod run;
pub mod state;
pub mod systemd;
pub mod tls;
