//! uh-deploy as a process, with real sockets, files and exit codes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "it is a test: helpers may fail by panicking, and figures are printed"
)]
#![allow(clippy::needless_pass_by_value, reason = "helpers of tests read better that way")]

mod bad_versions;
mod canary;
mod config_files;
mod container_deploys;
mod containers;
mod cross_checks;
mod deploys;
mod failing_apps;
mod files;
mod final_look;
mod front_door_gone;
mod full_disk;
mod harness;
mod hooks;
mod image_pruning;
mod images;
mod interruptions;
#[cfg(feature = "fault-points")]
mod patience;
mod pipelines;
mod reboots;
mod redaction;
mod registries;
#[cfg(feature = "fault-points")]
mod release_sweep;
mod release_watch;
mod releases;
mod rivals;
mod rollback_time;
mod seams;
#[cfg(feature = "fault-points")]
mod splits;
mod status;
mod supervision;
#[cfg(feature = "fault-points")]
mod sweep;
mod systemd;
#[cfg(feature = "fault-points")]
mod undo;
mod validation;
mod verdicts;
mod watching;
