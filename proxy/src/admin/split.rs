//! `POST /v1/services/{s}/split`: check → probe → check again and swap → persist → reply, and one audit line.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use uh_protocol::request::{DrainRequest, MAX_WARM_UP_MS, MIN_SPLIT_TTL_MS, SplitReply, SplitRequest};
use uh_protocol::status::Suspect;
use uh_protocol::{BackendName, Code, Problem, ServiceName};
use uh_switching::board::{SplitEnd, SplitOrder, SplitOutcome};
use uh_switching::{Judging, Salt, Side, Split, Term, Weight};

use super::audit::{Audit, Changed, Did, Wait};
use super::control::{Control, internal};
use super::socket::Peer;
use super::status::split_status;
use crate::fault;
use crate::health::fresh::{SwitchVerdict, probe_now};
use crate::random;
use crate::state::time::iso_millis;

/// What a request asks for.
enum Wanted {
    Split { to: BackendName, weight: Weight },
    End { to: Option<BackendName> },
}

impl Control {
    /// Sends a part of the traffic to another backend, changes how much, renews that, or ends it.
    ///
    /// # Errors
    /// If refused; nothing has changed then.
    pub(crate) async fn split(
        self: &Arc<Self>,
        service: &str,
        request: SplitRequest,
        peer: Peer,
    ) -> Result<SplitReply, Problem> {
        let to = request.to.clone();
        let audit = Audit { to: to.as_ref(), ..Audit::new(peer, "split", service) };
        let refused = |problem: Problem| {
            audit.refused(&problem);
            problem
        };
        let done = match wanted(&request).map_err(refused)? {
            Wanted::End { to } => {
                let expect_generation = request.expect_generation;
                self.board.end_split(service, &SplitEnd { to, expect_generation, only: None })
            }
            Wanted::Split { to, weight } => {
                let order = SplitOrder {
                    to,
                    weight,
                    salt: new_salt().map_err(refused)?,
                    term: self.term(service, request.ttl_ms).map_err(refused)?,
                    judging: judging(&request).map_err(refused)?,
                    expect_generation: request.expect_generation,
                };
                self.probe_before(service, &order, audit).await?;
                self.prepare_cookies(service).await;
                fault::point("before_split");
                self.board.split(service, &order, Timestamp::now())
            }
        };
        let done = done.map_err(|refusal| self.refuse(audit, &refusal))?;
        fault::point("split");
        let reply = self.settle_split(audit, &done).await?;
        self.close_tunnels_of(service, &done);
        Ok(reply)
    }

    /// Completes a change of a split: waits for the disk, logs it, and explains it.
    pub(super) async fn settle_split(
        &self,
        audit: Audit<'_>,
        done: &SplitOutcome,
    ) -> Result<SplitReply, Problem> {
        let service: ServiceName = audit
            .service
            .and_then(|service| service.parse().ok())
            .ok_or_else(|| internal("the service name isn't valid"))?;
        let ended = done.before.as_ref().filter(|_| done.now.is_none());
        let until = done.now.as_ref().map(|split| iso_millis(split.until));
        let split_ended = ended.map(in_words);
        let did = Did {
            changed: Changed::Whether(done.moved),
            generation: Some(done.generation),
            weight: Some(done.now.as_ref().map_or(0.0, |split| split.assignment.weight.percent())),
            until: until.as_deref(),
            split_ended: split_ended.as_deref(),
            requests_in_flight: ended.map(|_| done.holding.requests),
            tunnels: ended.map(|_| done.holding.tunnels),
            ..Did::default()
        };
        let persisted = self.settle(Wait::after(done.changed), audit, did).await;
        Ok(SplitReply {
            service,
            active: done.active.clone(),
            changed: done.moved,
            generation: done.generation,
            split: done.now.as_ref().map(split_status),
            ended: ended.map(split_status),
            remaining: done.holding.into(),
            persisted: persisted.is_ok(),
            persist_error: persisted.error(),
        })
    }

    /// Tunnels that a split has left open on its backend are treated as in a drain. Nobody waits for that.
    pub(super) fn close_tunnels_of(self: &Arc<Self>, service: &str, done: &SplitOutcome) {
        let Some(ended) = done.before.as_ref().filter(|_| done.now.is_none()) else { return };
        if done.holding.tunnels == 0 {
            return;
        }
        let (control, service, backend) = (Arc::clone(self), service.to_owned(), ended.new.backend.clone());
        tokio::spawn(async move {
            let audit = Audit { backend: Some(&backend), ..Audit::split_ended("split", &service) };
            // If it is refused, the backend gets requests again.
            let _ = control
                .drain_for(audit, &service, &backend, DrainRequest { timeout_ms: None, cut: None })
                .await;
        });
    }

    /// Makes the key of the cookies that clients are recognised by, before the first one is set.
    async fn prepare_cookies(&self, service: &str) {
        let snapshot = self.board.snapshot();
        if !snapshot.service(service).is_some_and(|state| state.config.split.cookie) || self.cookies.in_use()
        {
            return;
        }
        let cookies = Arc::clone(&self.cookies);
        // Without a key, addresses decide.
        let _ = tokio::task::spawn_blocking(move || cookies.prepare()).await;
    }

    /// Before more clients go to a backend, it is probed once more, as before a switch.
    async fn probe_before(&self, service: &str, order: &SplitOrder, audit: Audit<'_>) -> Result<(), Problem> {
        let target = self.board.try_split(service, order, Timestamp::now());
        let Some(target) = target.map_err(|refusal| self.refuse(audit, &refusal))? else { return Ok(()) };
        let fresh = probe_now(&target.service, &target.backend).await;
        if fresh.verdict != SwitchVerdict::Bad {
            return Ok(());
        }
        let error = fresh.bad.iter().map(|(_, error)| error.as_str()).collect::<Vec<_>>().join("; ");
        let detail = format!(
            "{} failed a probe right before it was to get {} of the traffic: {error}; nothing was changed",
            order.to, order.weight
        );
        let problem = Problem::new(Code::BackendUnhealthy, detail);
        audit.refused(&problem);
        Err(problem)
    }

    /// How long a split lasts.
    fn term(&self, service: &str, ttl_ms: Option<u64>) -> Result<Term, Problem> {
        let snapshot = self.board.snapshot();
        // Without such a service, the split is refused for that.
        let hold = snapshot.service(service).map(|state| state.config.split.hold_timeout);
        let (Some(ttl_ms), Some(hold)) = (ttl_ms, hold) else {
            return Ok(Term::Hold(hold.unwrap_or_default()));
        };
        let ttl = Duration::from_millis(ttl_ms);
        if ttl_ms < MIN_SPLIT_TTL_MS || ttl > hold {
            let most = hold.as_millis();
            return Err(invalid(format!(
                "ttl_ms is {ttl_ms}: use {MIN_SPLIT_TTL_MS} to {most}, the service's split.hold_timeout"
            )));
        }
        Ok(Term::Lease(ttl))
    }
}

fn wanted(request: &SplitRequest) -> Result<Wanted, Problem> {
    let weight = Weight::from_percent(request.weight).map_err(|e| invalid(format!("weight: {e}")))?;
    match (weight, &request.to) {
        (Some(weight), Some(to)) => Ok(Wanted::Split { to: to.clone(), weight }),
        (Some(_), None) => {
            Err(invalid("to: missing: name the backend that gets a part of the traffic".to_owned()))
        }
        (None, _) if request.ttl_ms.is_some() => {
            Err(invalid("ttl_ms is only valid with a weight above 0".to_owned()))
        }
        (None, _) if request.warm_up_ms.is_some() || !request.suspect.is_default() => {
            Err(invalid("warm_up_ms and suspect are only valid with a weight above 0".to_owned()))
        }
        (None, to) => Ok(Wanted::End { to: to.clone() }),
    }
}

fn judging(request: &SplitRequest) -> Result<Judging, Problem> {
    if let Some(ms) = request.warm_up_ms.filter(|ms| *ms > MAX_WARM_UP_MS) {
        return Err(invalid(format!("warm_up_ms is {ms}: use 0 to {MAX_WARM_UP_MS}")));
    }
    let suspect = match request.suspect {
        Suspect::Split => Side::New,
        Suspect::Active => Side::Old,
    };
    Ok(Judging { suspect, warm_up: request.warm_up_ms.map(Duration::from_millis) })
}

/// `10 % to green`
pub(super) fn in_words(split: &Split) -> String {
    format!("{} to {}", split.assignment.weight, split.new.backend)
}

fn new_salt() -> Result<Salt, Problem> {
    random::bits().map(Salt::new).ok_or_else(|| internal("the system has no random numbers"))
}

fn invalid(detail: String) -> Problem {
    Problem::with_status(Code::InvalidRequest, 422, detail)
}
