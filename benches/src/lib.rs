//! The demo and the load programs: the real binaries, started for real, under load that records every answer.
//!
//! A program here starts the stage (apps and front door), puts load on, switches, and lets the judgement say
//! what went wrong. Nothing but other tests depends on this crate, and nothing in it may hide a failure: an answer that can't
//! be explained is one.

pub mod compare;
pub mod http;
pub mod judgement;
pub mod load;
pub mod percentiles;
pub mod picture;
pub mod watcher;
pub mod websocket;

pub mod faults;
pub mod series;

pub mod controller;
pub mod fickle;
pub mod front_door;
pub mod mounts;
pub mod process;
pub mod sample_app;
pub mod workdir;
