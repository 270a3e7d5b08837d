//! Repeats what a CA asks to repeat.

use instant_acme::Error;

use super::failure::kind;

/// How often a request is repeated with a new nonce. The protocol's library gives up after three rejected nonces, which
/// happens with CAs that keep few of them.
const MOST: u32 = 30;

/// Repeats a call as long as the CA rejects nothing but its nonce (RFC 8555 §6.5).
pub(super) async fn patient<T>(mut call: impl AsyncFnMut() -> Result<T, Error>) -> Result<T, Error> {
    for _ in 0..MOST {
        match call().await {
            Err(Error::Api(problem)) if kind(&problem) == "badNonce" => {}
            other => return other,
        }
    }
    call().await
}
