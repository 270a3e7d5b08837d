//! The proofs that uh-proxy shows the certificate authority (CA): a text at a path (HTTP-01, RFC 8555 §8.3), or a
//! certificate in a handshake (TLS-ALPN-01, RFC 8737).
//!
//! All workers read them. Outside an order there are none, and a request costs one comparison of its path.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::server::ClientHello;

/// The directory of HTTP-01 challenges (RFC 8555 §8.3).
pub(crate) const PREFIX: &[u8] = b"/.well-known/acme-challenge/";

/// The protocol that a CA asks for in a TLS-ALPN-01 handshake, and in no other (RFC 8737 §4).
pub(crate) const ALPN: &[u8] = b"acme-tls/1";

/// What proves control of one host.
pub(crate) enum Proof {
    /// The key authorization for a token.
    Http {
        /// The last part of the path.
        token: String,
        /// The body.
        text: String,
    },
    /// The settings for the handshake, with the certificate that holds the proof.
    Tls {
        /// The host, in lower case.
        host: String,
        /// Offers [`ALPN`] and nothing else.
        settings: Arc<ServerConfig>,
    },
}

/// A proof, and how often a client has asked for it.
struct Shown {
    proof: Proof,
    asked: Arc<AtomicU64>,
}

/// The proofs by token and by host.
#[derive(Default)]
struct Board {
    by_token: HashMap<String, Arc<Shown>>,
    by_host: HashMap<String, Arc<Shown>>,
}

/// The proofs that are shown now.
#[derive(Default)]
pub(crate) struct Challenges(ArcSwap<Board>);

impl fmt::Debug for Challenges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Challenges").finish_non_exhaustive()
    }
}

/// Shows proofs until it is dropped.
#[must_use]
pub(crate) struct Showing {
    challenges: Arc<Challenges>,
    asked: Arc<AtomicU64>,
}

impl Showing {
    /// How often clients have asked for these proofs.
    pub(crate) fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Showing {
    fn drop(&mut self) {
        self.challenges.0.store(Arc::default());
    }
}

impl Challenges {
    /// Shows these proofs instead of any other: there is one order at a time.
    pub(crate) fn show(self: &Arc<Self>, proofs: Vec<Proof>) -> Showing {
        let asked = Arc::new(AtomicU64::new(0));
        let mut board = Board::default();
        for proof in proofs {
            let shown = Arc::new(Shown { proof, asked: Arc::clone(&asked) });
            match &shown.proof {
                Proof::Http { token, .. } => board.by_token.insert(token.clone(), Arc::clone(&shown)),
                Proof::Tls { host, .. } => board.by_host.insert(host.clone(), Arc::clone(&shown)),
            };
        }
        self.0.store(Arc::new(board));
        Showing { challenges: Arc::clone(self), asked }
    }

    /// The body for a request's path, if it is that of a proof.
    #[must_use]
    pub(crate) fn text(&self, path: &[u8]) -> Option<String> {
        let token = str::from_utf8(path.strip_prefix(PREFIX)?).ok()?;
        let board = self.0.load();
        let shown = board.by_token.get(token)?;
        let Proof::Http { text, .. } = &shown.proof else { return None };
        shown.asked.fetch_add(1, Ordering::Relaxed);
        Some(text.clone())
    }

    /// The settings for a handshake in which a CA asks for a proof; `None` for any other handshake.
    #[must_use]
    pub(crate) fn handshake(&self, hello: &ClientHello<'_>) -> Option<Arc<ServerConfig>> {
        let mut offered = hello.alpn()?;
        // RFC 8737 §3: it is the only protocol that the CA offers.
        if offered.next() != Some(ALPN) || offered.next().is_some() {
            return None;
        }
        let board = self.0.load();
        let shown = board.by_host.get(&hello.server_name()?.to_ascii_lowercase())?;
        let Proof::Tls { settings, .. } = &shown.proof else { return None };
        shown.asked.fetch_add(1, Ordering::Relaxed);
        Some(Arc::clone(settings))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_shown_only_during_its_order_and_only_at_its_path() {
        let challenges = Arc::new(Challenges::default());
        let path = |token: &str| [PREFIX, token.as_bytes()].concat();
        assert_eq!(challenges.text(&path("abc")), None);
        let proof = Proof::Http { token: "abc".to_owned(), text: "abc.key".to_owned() };
        let showing = challenges.show(vec![proof]);
        assert_eq!(challenges.text(&path("abc")).as_deref(), Some("abc.key"));
        for other in [path("abcd"), path(""), path("abc/"), path("abc?x"), b"/abc".to_vec(), path("\u{e9}")] {
            assert_eq!(challenges.text(&other), None, "{other:?}");
        }
        assert_eq!(showing.asked(), 1, "only requests for the proof count");
        drop(showing);
        assert_eq!(challenges.text(&path("abc")), None);
    }
}
