//! uh-keeper: owns listening sockets and passes duplicates of them to uh-proxy, so that the ports stay open while
//! uh-proxy crashes, restarts or is replaced. Clients that connect meanwhile wait in the kernel's queue.
//!
//! It never accepts a connection, reads no configuration file, and is meant to run unchanged for years: what it does is
//! little, so that there is little to upgrade.
//!
//! In reading order: [`wire`] is what it and uh-proxy send each other; `sockets` are those that it holds; `serve` answers
//! callers; [`cli`] is what an operator types.

pub mod cli;
mod serve;
mod sockets;
pub mod wire;
