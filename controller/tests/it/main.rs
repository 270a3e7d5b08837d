//! The controller as a process, over real sockets, files and exit codes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests may fail by panicking"
)]

mod config_files;
