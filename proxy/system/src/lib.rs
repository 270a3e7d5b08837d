//! Operating system helpers for all programs: error texts ([`plain`]), and the holder of a port ([`ports`]).

mod plain;
pub mod ports;

pub use plain::{plain, without_numbers};
