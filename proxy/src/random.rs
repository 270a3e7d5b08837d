//! Random numbers that nobody can guess.

use std::sync::LazyLock;

use rustls::crypto::{SecureRandom, aws_lc_rs};

static SOURCE: LazyLock<&'static dyn SecureRandom> =
    LazyLock::new(|| aws_lc_rs::default_provider().secure_random);

/// 128 random bits; `None`: the system has none.
pub(crate) fn bits() -> Option<u128> {
    let mut bits = [0; 16];
    SOURCE.fill(&mut bits).ok()?;
    Some(u128::from_le_bytes(bits))
}
