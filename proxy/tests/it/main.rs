//! uh-proxy as a process, with real sockets, files and exit codes.
#![allow(missing_docs, clippy::type_complexity, reason = "it is a test")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests may fail by panicking"
)]
#![allow(clippy::needless_pass_by_value, reason = "helpers of tests read better that way")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what is skipped or measured is reported")]

mod acme;
mod admin;
mod answers;
mod broken;
mod browser;
mod buffering;
mod closed;
mod compress;
mod config_files;
mod connecting;
mod continues;
#[cfg(feature = "fault-points")]
mod crash;
mod damage;
mod endpoints;
mod exchanges;
mod files;
mod floods;
mod forwarding;
mod framing;
mod fuzz;
mod harness;
mod hostile;
mod http;
mod http2;
mod import;
mod invariants;
mod keeper;
mod leaving;
mod lifecycle;
mod limits;
mod maintenance;
mod observed;
mod old_tabs;
mod paths;
mod preview;
mod proxy_protocol;
mod rate;
mod recorder;
mod release;
mod reload;
mod routing;
mod shells;
mod signals;
mod split;
mod stale;
mod sticky;
mod stopping;
mod streams;
mod switch_probe;
mod systemd;
mod take_over;
mod tls;
mod truth;
mod tunnels;
mod upgrade;
mod wire;
mod withdraw;
