//! The record of an exchange, and its end: every exchange is counted and logged here, whoever answered it.

use std::borrow::Cow;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::Lease;
use super::applied::Applied;
use super::bypass::is_health_check;
use super::client::Client;
use super::error_answer::ErrorAnswer;
use super::fittings::Fittings;
use super::pool::millis;
use super::preview;
use super::relay::ClosedByApp;
use super::trial::{FailureKind, ForTrial, InSplit};
use crate::config::PathSettings;
use crate::observe::broken::Broken;
use crate::observe::line::AccessLine;
use crate::observe::meters::BackendLane;
use crate::observe::termination::Termination;
use crate::tls::TlsSession;
use uh_http1::request::RequestHead;
use uh_protocol::BackendName;
use uh_switching::{ActivationInfo, Assigned};

/// nginx's status for a client that left before it was answered. Only seen in the log and the counters.
const CLIENT_GONE: u16 = 499;

/// A tunnel that the app closes sooner than this was never usable.
const TUNNEL_USABLE_AFTER: Duration = Duration::from_secs(1);

/// What is logged and counted about an exchange.
#[derive(Debug)]
pub(super) struct ExchangeRecord {
    pub started: Instant,
    /// When a backend was first to be asked: later if the request was buffered before.
    pub asked: Instant,
    /// When the last byte of a complete response was written.
    pub ended: Option<Instant>,
    /// 0 until a response head was passed on.
    pub status: u16,
    pub bytes: u64,
    pub upstream_time: Option<Duration>,
    pub termination: Termination,
    /// The endpoint that answered, or was tried last.
    pub endpoint: Option<usize>,
    /// Where a split has put the client, and what is known for the trial of that split, or the next one.
    pub trial: ForTrial,
    /// The backend on the new side of a split, if the old side has answered instead.
    pub rescued_from: Option<BackendName>,
    /// Why connecting to the backend failed, or its response was invalid.
    pub reason: Option<&'static str>,
    /// A health check of a service in maintenance: if no backend can answer it, uh-proxy does.
    pub health_in_maintenance: bool,
}

/// What is known of a request on the side of a split where it has failed.
pub(super) struct FailedSide {
    at: Instant,
    endpoint: Option<usize>,
    trial: ForTrial,
}

impl ExchangeRecord {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            started: now,
            asked: now,
            ended: None,
            status: 0,
            bytes: 0,
            upstream_time: None,
            termination: Termination::Done,
            endpoint: None,
            trial: ForTrial::default(),
            rescued_from: None,
            reason: None,
            health_in_maintenance: false,
        }
    }

    /// The response's head has arrived.
    pub(super) fn answered(&mut self, status: u16, at: Instant) {
        self.status = status;
        self.upstream_time = Some(at.saturating_duration_since(self.asked));
    }

    /// The exchange is over: counts it and writes its line to the access log. `lease`: a backend was to answer.
    pub(super) fn close<L>(
        &mut self,
        client: &Client<L>,
        request: &RequestHead,
        lease: Option<&Lease>,
        applied: &Applied,
    ) {
        // One reading of the clock for all that follows.
        self.ended.get_or_insert_with(Instant::now);
        let logged = applied.any_settings(lease).is_none_or(|settings| settings.access_log);
        let Some(lease) = lease else {
            client.worker.meters.worker(client.worker.index).unrouted.fetch_add(1, Ordering::Relaxed);
            if logged {
                self.log(client, request, applied, None);
            }
            return;
        };
        self.count(client, request, lease, applied);
        if logged {
            self.log(client, request, applied, Some(lease));
        }
    }

    /// Counts it for the backend of this lease.
    fn count<L>(&mut self, client: &Client<L>, request: &RequestHead, lease: &Lease, applied: &Applied) {
        let info = lease.owner();
        let meters = info.meters.lane(lease.worker());
        // A tunnel may last for days: its duration is the time until it was open.
        let took = if self.status == 101 { self.upstream_time } else { None };
        let took = took.unwrap_or_else(|| self.took());
        meters.exchange(request.method.index(), self.status, took);
        match applied.is_preview() || self.rescued_from.is_some() {
            false => self.count_for_trials(meters, took, (client, request, info), applied.settings(lease)),
            true => meters.history.left_out(took),
        }
        if self.is_cut() {
            meters.was_cut();
        }
    }

    /// The request has failed on the new side of a split, `at` this time, and the old side is asked. Whether it is the new
    /// side's failure is counted when that has answered, or else at the end.
    pub(super) fn leave_new_side(&mut self, at: Instant) -> FailedSide {
        // A file of the old side comes from none of its endpoints.
        let split = self.trial.assigned().map(|assigned| Box::new(InSplit { assigned, part: None }));
        let trial = std::mem::replace(&mut self.trial, ForTrial { split, failure: None });
        FailedSide { at, endpoint: self.endpoint.take(), trial }
    }

    /// The old side has no answer.
    pub(super) fn return_to_new_side(&mut self, failed: FailedSide) {
        self.endpoint = failed.endpoint;
        self.trial = failed.trial;
    }

    /// The old side has answered: counts the failure of the new one, which `lease` is on. From now on the record is about
    /// the old side.
    pub(super) fn was_rescued<L>(
        &mut self,
        failed: FailedSide,
        (client, request): (&Client<L>, &RequestHead),
        (lease, applied): (&Lease, &Applied),
        reached: Result<u16, &ErrorAnswer>,
    ) {
        let FailedSide { at, endpoint, trial } = failed;
        let of_old_side = (self.endpoint, std::mem::replace(&mut self.trial, trial));
        (self.endpoint, self.ended) = (endpoint, Some(at));
        match reached {
            Ok(status) => self.answered(status, at),
            Err(refusal) => {
                self.status = refusal.status;
                self.note_broken(lease, refusal, refusal.broken);
            }
        }
        self.count(client, request, lease, applied);
        (self.endpoint, self.trial) = of_old_side;
        (self.ended, self.status, self.upstream_time, self.reason) = (None, 0, None, None);
        self.rescued_from = Some(lease.owner().backend.name().clone());
    }

    /// Counts it in its trial, and for trials to come.
    fn count_for_trials<L>(
        &mut self,
        meters: &BackendLane,
        took: Duration,
        (client, request, info): (&Client<L>, &RequestHead, &ActivationInfo<Fittings>),
        settings: &PathSettings,
    ) {
        let head = client.request_head();
        // Health checks have no part in a trial.
        if self.trial.part().is_none() && is_health_check(&info.service, settings, request, head) {
            meters.history.health_check(took);
            return;
        }
        let (failure, left) = (self.failure(), self.client_left_unanswered());
        if failure.is_some() {
            meters.history.has_failed();
        } else if left {
            meters.history.client_left(took);
        }
        let Some(mut part) = self.trial.take_part() else { return };
        let slow = part.was_slow(self.ended.unwrap_or_else(Instant::now).into_std());
        if let Some(failure) = failure.or((left && slow).then_some(FailureKind::Left)) {
            part.has_failed(failure, request, head);
        }
        part.ended();
    }

    /// How the version failed, if it did.
    fn failure(&self) -> Option<FailureKind> {
        let app_failed = self.upstream_time.is_some() && (500..600).contains(&self.status);
        self.trial.failure.or(app_failed.then_some(FailureKind::Status))
    }

    /// Whether the client has left before it got an answer.
    fn client_left_unanswered(&self) -> bool {
        self.termination == Termination::ClientGone && self.upstream_time.is_none()
    }

    /// The app has closed a tunnel, before its client began to.
    pub(super) fn tunnel_closed_by_app(&mut self, closed: ClosedByApp) {
        let opened = self.upstream_time.map(|took| self.asked + took);
        let usable = opened.is_some_and(|opened| closed.at >= opened + TUNNEL_USABLE_AFTER);
        if !usable || closed.internal_error {
            self.trial.failure = Some(FailureKind::Tunnel);
        }
    }

    /// The request is tried again, perhaps on the other side of a split.
    pub(super) fn assigned_again(&mut self, assigned: Option<Assigned>) {
        let part = self.trial.take_part();
        self.trial.split = assigned.map(|assigned| {
            let part = part.and_then(|part| part.goes_on(assigned));
            Box::new(InSplit { assigned, part })
        });
    }

    /// Whether it was cut by a drain or at shutdown.
    pub(super) fn is_cut(&self) -> bool {
        matches!(self.termination, Termination::Drain | Termination::Stop)
    }

    /// The client left. If it had closed its side before it was answered, it isn't counted as answered.
    pub(super) fn client_gone(&mut self, ended_first: bool) {
        self.termination = Termination::ClientGone;
        if ended_first {
            self.status = CLIENT_GONE;
        }
    }

    /// Counts what the backend broke, before the client gets an error, and records why. A backend in maintenance that
    /// doesn't answer a health check doesn't count.
    pub(super) fn note_broken(&mut self, lease: &Lease, refusal: &ErrorAnswer, broken: Option<Broken>) {
        let info = lease.owner();
        self.reason = refusal.reason;
        let (Some(broken), false) = (broken, self.health_in_maintenance) else { return };
        info.meters.lane(lease.worker()).broke(broken);
        self.trial.failure = Some(FailureKind::Broken);
        let Some(reason) = refusal.reason else { return };
        let Some(left_out) = info.meters.may_warn(millis(std::time::Instant::now())) else { return };
        let endpoint = self.endpoint.and_then(|at| info.backend.endpoints.get(at));
        let endpoint = endpoint.map_or("-", |endpoint| endpoint.text());
        let (service, backend) = (&info.service.name, info.backend.name());
        let what = match broken {
            Broken::Unreachable => "cannot connect to the backend; clients get 502 or 504",
            _ => "invalid response from the backend; the client gets 502 or a truncated response",
        };
        tracing::warn!(%service, %backend, endpoint, reason, left_out, "{what}");
    }

    /// From the request head to the last byte of the response, or to now.
    fn took(&self) -> Duration {
        self.ended.unwrap_or_else(Instant::now).saturating_duration_since(self.started)
    }

    /// Writes the exchange's line to the access log.
    fn log<L>(&self, client: &Client<L>, request: &RequestHead, applied: &Applied, lease: Option<&Lease>) {
        let (true, Some(scratch)) = (client.worker.log.is_on(), &client.scratch) else { return };
        let head = scratch.request_head();
        let info = lease.map(Lease::owner);
        let service = info.map_or_else(|| applied.service(), |info| Some(&*info.service));
        let backend = info.map(|info| &*info.backend);
        let in_use = client.worker.cookies.in_use();
        let logged = |text| if in_use { preview::logged(text) } else { Cow::Borrowed(text) };
        let target = logged(request.target.of_head(head));
        let referer = logged(request.referer.of_head(head));
        let endpoint = backend.and_then(|backend| backend.endpoints.get(self.endpoint.unwrap_or(0)));
        // Only looked up where it is written.
        let version = backend.and_then(|backend| backend.version());
        let asks = version.is_none() && client.worker.log.names_version();
        let reported = endpoint.filter(|_| asks).map(|endpoint| endpoint.reported_version());
        let reported = reported.as_ref().and_then(|version| version.as_deref().map(String::as_str));
        client.worker.log.write(&AccessLine {
            time: SystemTime::now(),
            client: request.client_address(head, &client.address),
            method: request.method_text.of_head(head),
            target: &target,
            protocol: request.version.as_str(),
            host: request.host.of_head(head),
            status: self.status,
            bytes: self.bytes,
            request_time: self.took(),
            upstream_time: self.upstream_time,
            service: service.map(|service| service.name.as_str()),
            backend: backend.map(|backend| backend.name().as_str()),
            endpoint: endpoint.filter(|_| self.endpoint.is_some()).map(|endpoint| endpoint.text()),
            version: version.or(reported),
            request_id: request.id.text(head),
            referer: &referer,
            user_agent: request.user_agent.of_head(head),
            termination: self.termination,
            preview: applied.is_preview(),
            rescued_from: self.rescued_from.as_ref().map(BackendName::as_str),
            reason: self.reason,
            tls: client.tls.as_deref().map(TlsSession::fields),
        });
    }
}
