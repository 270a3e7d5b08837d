//! HTTP/2 with a real client, and with frames of our own for what no client sends.

mod attacks;
mod bodies;
pub(crate) mod clients;
mod endings;
mod floods;
mod fuzz;
pub(crate) mod raw;
mod refused;
mod requests;
mod same;
mod spec;
mod switching;
