//! The operating system as all programs see it: its errors in words ([`plain`]), and who has a port ([`ports`]).

mod plain;
pub mod ports;

pub use plain::{plain, without_numbers};
