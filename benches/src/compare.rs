//! The comparison: every proxy that is installed, side by side in one run, on equal terms.
//!
//! One worker each, pinned to core 0; the load and the backends share core 1. A row of a table is measured for one
//! proxy after the other, several rounds of it, so that what disturbs the machine disturbs all of them. CPU time is
//! what the kernel charges to the proxy's processes between two instants at which nothing is in flight.
//!
//! In reading order: [`backend`] and [`clients`] (the two ends of the load), [`accounts`] (CPU time and memory),
//! [`proxies`] (what is compared), [`rows`] (what is measured), [`secure`] (TLS and HTTP/2), [`switches`] (what a switch costs), [`tables`] and
//! [`report`] (Markdown).

pub mod accounts;
pub mod answer;
pub mod backend;
pub mod clients;
pub mod poll;
pub mod proxies;
pub mod report;
pub mod rows;
pub mod secure;
pub mod switches;
pub mod tables;
