//! One attempt to get a certificate, step by step. After each step, what the next one needs is on disk.
//!
//! ```text
//! place the order ▶ show the proofs ▶ wait until the order is ready ▶ send the request ▶ fetch the certificate ▶ save it
//!    (or resume it)
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use instant_acme::{
    Account, AuthorizationStatus, CertificateIdentifier, ChallengeStatus, ChallengeType, Error, Identifier,
    NewOrder, Order, OrderStatus,
};
use jiff::Timestamp;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use uh_system::plain;

use super::failure::{Cause, Failure, kind, words_of};
use super::hosts::HostSet;
use super::http::CaClient;
use super::patience::patient;
use super::schedule;
use super::store::{PendingOrder, Record, Store};
use crate::config::{self, AcmeChallenge};
use crate::fault;
use crate::tls::challenges::{ALPN, Challenges, Proof, Showing};
use crate::tls::{self, Certificate};

/// How long a CA may take to verify the challenges, and to sign.
const POLL_TIMEOUT: Duration = Duration::from_secs(180);

/// The first and the longest pause between two looks at an order.
const POLL_PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// What an attempt needs.
pub(super) struct Attempt<'a> {
    pub(super) account: &'a Account,
    pub(super) client: &'a CaClient,
    pub(super) store: &'a Store,
    pub(super) settings: &'a config::Acme,
    pub(super) challenges: &'a Arc<Challenges>,
    pub(super) set: &'a HostSet,
    /// The certificate that this one replaces, if the CA wants to know (RFC 9773 §5).
    pub(super) replaces: Option<CertificateIdentifier<'static>>,
}

impl Attempt<'_> {
    /// Gets a certificate, or resumes the attempt that a crash has cut short.
    ///
    /// # Errors
    /// If there is no certificate. `record` says what can be resumed.
    pub(super) async fn run(&self, record: &mut Record) -> Result<Certificate, Failure> {
        let (mut order, pending) = match self.resume(record).await? {
            Some(resumed) => resumed,
            None => self.place(record).await?,
        };
        let result = self.complete(&mut order, &pending).await;
        // Nothing can be done with an invalid order, nor with a certificate that can't be used.
        let is_final = match (order.state().status, &result) {
            (OrderStatus::Invalid, _) => true,
            (OrderStatus::Valid, Err(failure)) => failure.cause == Cause::Refused,
            _ => false,
        };
        if is_final {
            record.order = None;
        }
        result
    }

    async fn complete(&self, order: &mut Order, pending: &PendingOrder) -> Result<Certificate, Failure> {
        if order.state().status == OrderStatus::Pending {
            self.prove(order).await?;
        }
        if order.state().status == OrderStatus::Ready {
            let request = self.request(&pending.key)?;
            let send = async || order.finalize_csr(&request).await;
            patient(send).await.map_err(|error| self.failed("request the certificate", &error))?;
            fault::point("acme_requested");
        }
        self.until(order, &[OrderStatus::Valid, OrderStatus::Invalid]).await?;
        if order.state().status == OrderStatus::Invalid {
            let why = order.state().error.as_ref().map_or_else(|| "it gave no reason".to_owned(), words_of);
            return Err(Failure::refused(format!("the CA didn't issue the certificate: {why}")));
        }
        let fetch = async || order.certificate().await;
        let chain = patient(fetch).await.map_err(|error| self.failed("fetch the certificate", &error))?;
        let chain = chain.ok_or_else(|| Failure::refused("the CA has no certificate for a valid order"))?;
        fault::point("acme_fetched");
        self.save(pending, &chain)
    }

    /// The order that an earlier attempt has left, unless nothing can be done with it.
    async fn resume(&self, record: &mut Record) -> Result<Option<(Order, PendingOrder)>, Failure> {
        let Some(pending) = record.order.clone().filter(|order| order.directory == self.settings.directory)
        else {
            return Ok(None);
        };
        let look = async || self.account.order(pending.url.clone()).await;
        match patient(look).await {
            Ok(mut order) => {
                if order.state().status != OrderStatus::Invalid {
                    tracing::info!(name = self.set.name(), order = pending.url, "resuming an order");
                    return Ok(Some((order, pending)));
                }
                // A crash while the CA checked a challenge makes an order invalid.
                record.order = None;
                if record.failures > schedule::MOST_INTERRUPTED {
                    return Err(Failure::unproven("the interrupted order has failed"));
                }
                Ok(None)
            }
            // A CA forgets old orders.
            Err(Error::Api(problem))
                if kind(&problem) != "rateLimited" && kind(&problem) != "accountDoesNotExist" =>
            {
                record.order = None;
                Ok(None)
            }
            Err(error) => Err(self.failed("look up the order", &error)),
        }
    }

    async fn place(&self, record: &mut Record) -> Result<(Order, PendingOrder), Failure> {
        let profiles: Vec<&str> = self.account.profiles().map(|profile| profile.name).collect();
        if let Some(profile) = &self.settings.profile
            && !profiles.contains(&profile.as_str())
        {
            let known = if profiles.is_empty() { "none".to_owned() } else { profiles.join(", ") };
            return Err(Failure::refused(format!(
                "the CA has no profile {profile:?}; its profiles: {known}"
            )));
        }
        let order = match self.new_order(self.replaces.clone()).await {
            // The CA knows better whether the old certificate was replaced already: order without the hint.
            Err(Error::Api(problem)) if self.replaces.is_some() && kind(&problem) != "rateLimited" => {
                self.new_order(None).await
            }
            Err(Error::Other(_)) if self.replaces.is_some() => self.new_order(None).await,
            other => other,
        };
        let order = order.map_err(|error| self.failed("place an order", &error))?;
        fault::point("acme_ordered");
        let key =
            KeyPair::generate().map_err(|error| Failure::local(format!("cannot make a key: {error}")))?;
        let (url, directory) = (order.url().to_owned(), self.settings.directory.clone());
        let pending = PendingOrder { url, directory, key: key.serialize_pem() };
        record.order = Some(pending.clone());
        self.store
            .save_record(self.set, record)
            .map_err(|error| Failure::local(plain(&error).to_string()))?;
        fault::point("acme_order_saved");
        Ok((order, pending))
    }

    async fn new_order(&self, replaces: Option<CertificateIdentifier<'static>>) -> Result<Order, Error> {
        let hosts: Vec<Identifier> = self.set.hosts().iter().cloned().map(Identifier::Dns).collect();
        patient(async || {
            let mut new = NewOrder::new(&hosts);
            if let Some(profile) = &self.settings.profile {
                new = new.profile(profile);
            }
            if let Some(replaced) = replaces.clone() {
                new = new.replaces(replaced);
            }
            self.account.new_order(&new).await
        })
        .await
    }

    /// Shows the proofs until the CA has checked them all: it looks from several places, and again.
    async fn prove(&self, order: &mut Order) -> Result<(), Failure> {
        let showing = self.challenges.show(self.proofs(order).await?);
        fault::point("acme_proofs_shown");
        self.start_checks(order).await?;
        fault::point("acme_checks_started");
        let pause = self.until(order, &[OrderStatus::Ready, OrderStatus::Valid, OrderStatus::Invalid]).await;
        if pause.is_err() || order.state().status == OrderStatus::Invalid {
            return Err(self.why_unproven(order, &showing, pause.err()).await);
        }
        fault::point("acme_proven");
        Ok(())
    }

    fn kind(&self) -> ChallengeType {
        match self.settings.challenge {
            AcmeChallenge::Http01 => ChallengeType::Http01,
            AcmeChallenge::TlsAlpn01 => ChallengeType::TlsAlpn01,
        }
    }

    async fn proofs(&self, order: &mut Order) -> Result<Vec<Proof>, Failure> {
        let mut authorizations = Vec::new();
        self.for_each_pending(order, async |host, challenge| {
            authorizations.push((host, challenge.token.clone(), challenge.key_authorization()));
            Ok(())
        })
        .await?;
        let proof = |(host, token, authorization): (String, String, instant_acme::KeyAuthorization)| {
            Ok(match self.settings.challenge {
                AcmeChallenge::Http01 => Proof::Http { token, text: authorization.as_str().to_owned() },
                AcmeChallenge::TlsAlpn01 => {
                    let settings = proof_settings(&host, authorization.digest().as_ref())?;
                    Proof::Tls { host, settings: Arc::new(settings) }
                }
            })
        };
        authorizations.into_iter().map(proof).collect()
    }

    async fn start_checks(&self, order: &mut Order) -> Result<(), Failure> {
        self.for_each_pending(order, async |_, challenge| {
            if challenge.status != ChallengeStatus::Pending {
                return Ok(());
            }
            patient(async || challenge.set_ready().await).await
        })
        .await
    }

    /// Calls `act` with each host that isn't proven yet, and its challenge.
    async fn for_each_pending(
        &self,
        order: &mut Order,
        mut act: impl AsyncFnMut(String, &mut instant_acme::ChallengeHandle<'_>) -> Result<(), Error>,
    ) -> Result<(), Failure> {
        // First read all of them, which may have to be repeated; then they are known.
        patient(async || {
            let mut authorizations = order.authorizations();
            while let Some(authorization) = authorizations.next().await {
                authorization?;
            }
            Ok(())
        })
        .await
        .map_err(|error| self.failed("read the challenges", &error))?;
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization =
                authorization.map_err(|error| self.failed("read the challenges", &error))?;
            if authorization.status != AuthorizationStatus::Pending {
                continue;
            }
            let host = authorization.identifier().to_string().to_ascii_lowercase();
            let Some(mut challenge) = authorization.challenge(self.kind()) else {
                let wanted = self.settings.challenge.as_str();
                return Err(Failure::refused(format!(
                    "the CA doesn't offer {wanted} for {host}; set server.acme.challenge"
                )));
            };
            let acted = act(host, &mut challenge).await;
            acted.map_err(|error| self.failed("start the check of a challenge", &error))?;
        }
        Ok(())
    }

    /// Why the CA didn't accept the proofs: for each host, what it saw, and whether it came here at all.
    async fn why_unproven(&self, order: &mut Order, showing: &Showing, late: Option<Failure>) -> Failure {
        let mut reasons = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(Ok(mut authorization)) = authorizations.next().await {
            let _ = patient(async || authorization.refresh().await.map(drop)).await;
            let host = authorization.identifier().to_string();
            let errors = authorization.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
            reasons.extend(errors.map(|problem| format!("{host}: {}", words_of(problem))));
        }
        reasons.sort();
        let (what, port) = match self.settings.challenge {
            AcmeChallenge::Http01 => ("request", "80"),
            AcmeChallenge::TlsAlpn01 => ("handshake", "443"),
        };
        let asked = match showing.asked() {
            0 => format!(
                "; uh-proxy got no {what} for this challenge: check that DNS points here, and that port {port} reaches uh-proxy from the internet"
            ),
            1 => format!("; uh-proxy answered one {what}"),
            times => format!("; uh-proxy answered {times} {what}s"),
        };
        match (reasons.is_empty(), late) {
            (true, Some(late)) => Failure { words: format!("{late}{asked}"), ..late },
            (_, late) => Failure {
                retry_after: late.and_then(|late| late.retry_after),
                ..Failure::unproven(format!(
                    "the CA couldn't verify the challenge: {}{asked}",
                    reasons.join("; ")
                ))
            },
        }
    }

    /// Looks at the order until it has one of these states, in the CA's own time.
    async fn until(&self, order: &mut Order, wanted: &[OrderStatus]) -> Result<(), Failure> {
        let deadline = Instant::now() + POLL_TIMEOUT;
        let mut pause = POLL_PAUSE.0;
        while !wanted.contains(&order.state().status) {
            let asked = self.client.heard.retry_after().map(|at| Timestamp::now().duration_until(at));
            let asked = asked.and_then(|wait| Duration::try_from(wait).ok()).unwrap_or_default();
            let wait = pause.max(asked);
            if Instant::now() + wait > deadline {
                let words = format!("the CA hasn't finished after {} s", POLL_TIMEOUT.as_secs());
                return Err(Failure {
                    retry_after: self.client.heard.retry_after(),
                    cause: Cause::Unproven,
                    ..Failure::local(words)
                });
            }
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(POLL_PAUSE.1);
            let look = async || order.refresh().await.map(drop);
            patient(look).await.map_err(|error| self.failed("look up the order", &error))?;
        }
        Ok(())
    }

    /// The request for a certificate (RFC 2986), signed with its key.
    fn request(&self, key: &str) -> Result<Vec<u8>, Failure> {
        let local = |error| Failure::local(format!("cannot make the request for the certificate: {error}"));
        let key = KeyPair::from_pem(key).map_err(local)?;
        let mut params = CertificateParams::new(self.set.hosts().to_vec()).map_err(local)?;
        params.distinguished_name = DistinguishedName::new();
        Ok(params.serialize_request(&key).map_err(local)?.der().to_vec())
    }

    /// Checks the certificate and saves it. The previous one is overwritten only by one that can be served.
    fn save(&self, pending: &PendingOrder, chain: &str) -> Result<Certificate, Failure> {
        let pem = format!("{}\n{}\n", pending.key.trim(), chain.trim());
        let path = self.store.certificate_path(self.set);
        let certificate =
            Certificate::of_acme(pem.as_bytes(), &path, self.set.name(), &tls::server::provider()).map_err(
                |error| Failure::refused(format!("the CA's certificate can't be used: {}", plain(&error))),
            )?;
        if let Some(host) = self.set.hosts().iter().find(|host| !certificate.covers(host)) {
            return Err(Failure::refused(format!("the CA's certificate doesn't cover {host}")));
        }
        certificate
            .check_dates(Timestamp::now())
            .map_err(|error| Failure::refused(format!("the CA's certificate can't be used: {error}")))?;
        let saved = self.store.save_certificate(self.set, &pem);
        saved.map_err(|error| Failure::local(plain(&error).to_string()))?;
        fault::point("acme_certificate_saved");
        Ok(certificate)
    }

    fn failed(&self, step: &str, error: &Error) -> Failure {
        Failure::of(step, error, &self.client.heard)
    }
}

/// The settings of a handshake that proves control of a host (RFC 8737 §3).
fn proof_settings(host: &str, digest: &[u8]) -> Result<ServerConfig, Failure> {
    let local =
        |error: &dyn std::fmt::Display| Failure::local(format!("cannot make the proof for {host}: {error}"));
    let mut params = CertificateParams::new([host.to_owned()]).map_err(|error| local(&error))?;
    params.custom_extensions.push(CustomExtension::new_acme_identifier(digest));
    let key = KeyPair::generate().map_err(|error| local(&error))?;
    let certificate = params.self_signed(&key).map_err(|error| local(&error))?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|error| local(&error))?;
    let provider = Arc::new(tls::server::provider());
    let key = provider.key_provider.load_private_key(key).map_err(|error| local(&error))?;
    let certified = CertifiedKey::new(vec![certificate.der().clone()], key);
    let mut settings = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| local(&error))?
        .with_no_client_auth()
        // Without the check that rustls makes for other certificates: it rejects the proof's critical extension.
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    settings.alpn_protocols = vec![ALPN.to_vec()];
    Ok(settings)
}
