//! Certificates by ACME (RFC 8555).

pub mod challenges;
