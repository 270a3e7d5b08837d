//! Decides which certificate to get next, and when. One attempt at a time: a CA is asked for nothing twice, and what it
//! checks is never mixed up.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use instant_acme::{Account, Error};
use jiff::Timestamp;
use tokio::sync::watch;
use uh_system::plain;

use super::failure::{Cause, Failure};
use super::http::CaClient;
use super::managed::{Managed, fingerprint, identifier, load};
use super::order::Attempt;
use super::schedule::{self, CHECK_EVERY};
use super::store::{Record, Store};
use super::{Plan, SetStatus, Shared, account};
use crate::config;
use crate::fault;
use crate::tls::challenges::Challenges;
use crate::tls::{self, Certificate};

/// The longest sleep: the clock may be set, or the machine suspended.
const LONGEST_SLEEP: Duration = Duration::from_secs(60 * 60);

/// The acme thread's work.
pub(super) struct Renewal {
    server: Arc<tls::Server>,
    shared: Arc<Shared>,
    plans: watch::Receiver<Option<Arc<Plan>>>,
}

impl Renewal {
    pub(super) fn new(
        server: Arc<tls::Server>,
        shared: Arc<Shared>,
        plans: watch::Receiver<Option<Arc<Plan>>>,
    ) -> Self {
        Self { server, shared, plans }
    }

    /// Works until the process ends.
    pub(super) async fn run(mut self) {
        loop {
            let plan = self.plans.borrow_and_update().clone();
            let (server, shared) = (Arc::clone(&self.server), Arc::clone(&self.shared));
            let work = async {
                match plan.as_deref().map(|plan| {
                    super::open(&plan.settings).map(|store| Work::load(store, plan, &server.challenges))
                }) {
                    Some(Ok(work)) => work.carry_out(&server, &shared).await,
                    // It was fine when the plan was checked.
                    Some(Err(error)) => {
                        tracing::error!(error = %plain(&error), "cannot use the ACME state; certificates aren't renewed until a reload");
                        std::future::pending::<()>().await;
                    }
                    None => {
                        server.install_acme(Vec::new());
                        shared.sets.lock().clear();
                        std::future::pending::<()>().await;
                    }
                }
            };
            // A new plan interrupts an attempt, which is then resumed as after a crash.
            tokio::select! {
                () = work => {}
                changed = self.plans.changed() => if changed.is_err() { return },
            }
        }
    }
}

/// Everything that a plan needs.
pub(super) struct Work {
    store: Store,
    settings: config::Acme,
    sets: Vec<Managed>,
    /// Certificates on disk for other sets of hosts. While a new set has none, they stand in for it.
    others: Vec<Arc<Certificate>>,
    account: Option<(Account, CaClient)>,
    challenges: Arc<Challenges>,
}

impl Work {
    /// Reads the state directory.
    pub(super) fn load(store: Store, plan: &Plan, challenges: &Arc<Challenges>) -> Self {
        let sets: Vec<Managed> =
            plan.sets.iter().map(|set| Managed::load(&store, set, &plan.settings)).collect();
        let now = Timestamp::now();
        let own: Vec<_> = plan.sets.iter().map(|set| store.certificate_path(set)).collect();
        let files = store.certificate_files().into_iter().filter(|path| !own.contains(path));
        let others = files
            .filter_map(|path| {
                let certificate = load(&path, "")?;
                let name = certificate.names.first()?.clone();
                certificate.check_dates(now).ok()?;
                load(&path, &name)
            })
            .collect();
        let (settings, challenges) = (plan.settings.clone(), Arc::clone(challenges));
        Self { store, settings, sets, others, account: None, challenges }
    }

    /// The certificates to serve.
    pub(super) fn served(&self) -> Vec<Arc<Certificate>> {
        let own = self.sets.iter().filter_map(|managed| managed.certificate.clone());
        let stands_in = |other: &&Arc<Certificate>| {
            let without = self.sets.iter().filter(|managed| managed.certificate.is_none());
            without.flat_map(|managed| managed.set.hosts()).any(|host| other.covers(host))
        };
        own.chain(self.others.iter().filter(stands_in).cloned()).collect()
    }

    pub(super) fn statuses(&self) -> Vec<SetStatus> {
        self.sets.iter().map(|managed| managed.status(&self.store)).collect()
    }

    /// Gets and renews certificates, indefinitely.
    async fn carry_out(mut self, server: &tls::Server, shared: &Shared) {
        server.install_acme(self.served());
        self.log_missing();
        loop {
            *shared.sets.lock() = self.statuses();
            let now = Timestamp::now();
            if let Some(index) = self.next_due(now) {
                self.attempt(index, server, shared).await;
                continue;
            }
            if let Some(index) =
                self.sets.iter().position(|one| one.certificate.is_some() && one.check_at <= now)
            {
                self.check_renewal(index).await;
                continue;
            }
            tokio::time::sleep(self.pause(now)).await;
        }
    }

    fn log_missing(&self) {
        for managed in self.sets.iter().filter(|managed| managed.certificate.is_none()) {
            tracing::warn!(
                hosts = managed.set.hosts().join(", "),
                "no certificate yet; until the certificate authority issues one, HTTPS connections to these hosts are rejected"
            );
        }
    }

    /// The set that has been due for the longest time.
    fn next_due(&self, now: Timestamp) -> Option<usize> {
        let due = self.sets.iter().enumerate().filter(|(_, managed)| managed.due() <= now);
        due.min_by_key(|(_, managed)| managed.due()).map(|(index, _)| index)
    }

    fn pause(&self, now: Timestamp) -> Duration {
        let moments = self.sets.iter().flat_map(|managed| {
            let check = managed.certificate.as_ref().map(|_| managed.check_at);
            [Some(managed.due()), check].into_iter().flatten()
        });
        let next = moments.min().map(|next| now.duration_until(next));
        let next = next.and_then(|wait| Duration::try_from(wait).ok()).unwrap_or(LONGEST_SLEEP);
        next.clamp(Duration::from_millis(100), LONGEST_SLEEP)
    }

    /// Tries to get one certificate. The attempt is on disk before the CA is asked.
    async fn attempt(&mut self, index: usize, server: &tls::Server, shared: &Shared) {
        let began = Instant::now();
        let record = &mut self.sets[index].record;
        record.failures = record.failures.saturating_add(1);
        record.trying = true;
        record.tried_with = fingerprint(&self.settings);
        let next =
            schedule::back_off(Timestamp::now(), Cause::Refused, record.failures, None, fastrand::f64());
        record.next_try = Some(next.as_second());
        let result = match self.save(index) {
            Ok(()) => {
                fault::point("acme_attempt_saved");
                self.obtain(index).await
            }
            Err(failure) => Err(failure),
        };
        let settings = &self.settings;
        let managed = &mut self.sets[index];
        let name = managed.set.name().to_owned();
        managed.record.trying = false;
        match result {
            Ok(certificate) => {
                let expires = Timestamp::from_second(certificate.not_after).unwrap_or_default();
                let hosts = managed.record.hosts.clone();
                let (issuer, issued_at) = (Some(settings.directory.clone()), Timestamp::now().as_second());
                managed.record = Record { hosts, issuer, issued_at, ..Record::default() };
                managed.takes(Some(Arc::new(certificate)), settings);
                shared.issued.fetch_add(1, Ordering::Relaxed);
                server.install_acme(self.served());
                let took_s = began.elapsed().as_secs();
                tracing::info!(name, %expires, took_s, "certificate issued");
            }
            Err(failure) => {
                let record = &mut managed.record;
                let next = schedule::back_off(
                    Timestamp::now(),
                    failure.cause,
                    record.failures,
                    failure.retry_after,
                    fastrand::f64(),
                );
                record.next_try = Some(next.as_second());
                record.problem = Some(failure.words.clone());
                shared.failed[failure.cause as usize].fetch_add(1, Ordering::Relaxed);
                let next_try = Timestamp::from_second(next.as_second()).unwrap_or_default();
                let serving = match &managed.certificate {
                    Some(current) => format!(
                        "the current certificate is valid until {}",
                        Timestamp::from_second(current.not_after).unwrap_or_default()
                    ),
                    None => "HTTPS connections to its hosts are rejected until then".to_owned(),
                };
                tracing::error!(name, error = failure.words, %next_try, "cannot get a certificate; {serving}");
                self.account = None;
            }
        }
        if let Err(failure) = self.save(index) {
            tracing::error!(name, error = %failure, "cannot save the state of a certificate; a restart repeats the attempt");
        }
        fault::point("acme_attempt_ended");
    }

    async fn obtain(&mut self, index: usize) -> Result<Certificate, Failure> {
        let first = self.obtain_with_account(index).await;
        match first {
            Err(failure) if failure.unknown_account => {
                tracing::warn!(
                    directory = self.settings.directory,
                    "the certificate authority doesn't know our account any more; registering it again"
                );
                account::forget(&self.store, &self.settings.directory)?;
                self.account = None;
                self.sets[index].record.order = None;
                self.obtain_with_account(index).await
            }
            other => other,
        }
    }

    async fn obtain_with_account(&mut self, index: usize) -> Result<Certificate, Failure> {
        let (account, client) = self.account().await?;
        let managed = &mut self.sets[index];
        let replaces = managed.window.and(managed.certificate.as_deref()).and_then(identifier);
        let attempt = Attempt {
            account: &account,
            client: &client,
            store: &self.store,
            settings: &self.settings,
            challenges: &self.challenges,
            set: &managed.set,
            replaces,
        };
        attempt.run(&mut managed.record).await
    }

    async fn account(&mut self) -> Result<(Account, CaClient), Failure> {
        if let Some(known) = &self.account {
            return Ok(known.clone());
        }
        let client = CaClient::new(self.settings.ca_file.as_deref())
            .map_err(|error| Failure::local(plain(&error).to_string()))?;
        let account = account::open(&self.store, &self.settings, &client).await?;
        Ok(self.account.insert((account, client)).clone())
    }

    /// Asks the CA when to renew a certificate (RFC 9773). If it doesn't know, the date decides.
    async fn check_renewal(&mut self, index: usize) {
        let asked = self.renewal_info(index).await;
        let (managed, now) = (&mut self.sets[index], Timestamp::now());
        managed.check_at = schedule::next_check(now, CHECK_EVERY);
        match asked {
            Ok(Some((window, wait))) => {
                managed.check_at = schedule::next_check(now, wait);
                if managed.window != Some(window)
                    && let Some(certificate) = &managed.certificate
                {
                    managed.window = Some(window);
                    let lifetime = certificate.not_after - certificate.not_before;
                    let (earliest, latest) =
                        schedule::bounds(managed.record.issued_at, lifetime, certificate.not_after);
                    let at = schedule::within_window(window, fastrand::f64());
                    managed.renew_at = at.max(earliest).min(latest);
                    tracing::info!(name = managed.set.name(), at = %managed.renew_at, "renewal planned as the certificate authority suggests");
                }
            }
            Ok(None) => {}
            Err(failure) => {
                tracing::info!(name = managed.set.name(), error = %failure, "no renewal information; planning the renewal by the certificate's dates");
                self.account = None;
            }
        }
    }

    async fn renewal_info(&mut self, index: usize) -> Result<Option<((i64, i64), Duration)>, Failure> {
        let from_here = self.sets[index].record.issuer.as_deref() == Some(self.settings.directory.as_str());
        let certificate = self.sets[index].certificate.clone().filter(|_| from_here);
        let Some(identifier) = certificate.as_deref().and_then(identifier) else { return Ok(None) };
        let (account, client) = self.account().await?;
        match account.renewal_info(&identifier).await {
            Ok((info, wait)) => {
                let window = &info.suggested_window;
                Ok(Some(((window.start.unix_timestamp(), window.end.unix_timestamp()), wait)))
            }
            Err(Error::Unsupported(_)) => Ok(None),
            Err(error) => Err(Failure::of("ask when to renew", &error, &client.heard)),
        }
    }

    fn save(&self, index: usize) -> Result<(), Failure> {
        let managed = &self.sets[index];
        let saved = self.store.save_record(&managed.set, &managed.record);
        saved.map_err(|error| Failure::local(plain(&error).to_string()))
    }
}
