//! The record of an exchange, and its end: every exchange is counted and logged here, whoever answered it.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::client::Client;
use super::error_answer::ErrorAnswer;
use super::pool::millis;
use super::{Backend, Lease};
use crate::config::Service;
use crate::observe::broken::Broken;
use crate::observe::line::AccessLine;
use crate::observe::termination::Termination;
use crate::tls::TlsSession;
use uh_http1::request::RequestHead;

/// nginx's status for a client that left before it was answered. Only seen in the log and the counters.
const CLIENT_GONE: u16 = 499;

/// What is logged and counted about an exchange.
#[derive(Debug)]
pub(super) struct ExchangeRecord {
    pub started: Instant,
    /// When the last byte of a complete response was written.
    pub ended: Option<Instant>,
    /// 0 until a response head was passed on.
    pub status: u16,
    pub bytes: u64,
    pub upstream_time: Option<Duration>,
    pub termination: Termination,
    /// The endpoint that answered, or was tried last.
    pub endpoint: Option<usize>,
    /// Why connecting to the backend failed, or its response was invalid.
    pub reason: Option<&'static str>,
    /// A health check of a service in maintenance: if no backend can answer it, uh-proxy does.
    pub health_in_maintenance: bool,
}

impl ExchangeRecord {
    pub(super) fn new() -> Self {
        Self {
            started: Instant::now(),
            ended: None,
            status: 0,
            bytes: 0,
            upstream_time: None,
            termination: Termination::Done,
            endpoint: None,
            reason: None,
            health_in_maintenance: false,
        }
    }

    /// The response's head has arrived.
    pub(super) fn answered(&mut self, status: u16, at: Instant) {
        self.status = status;
        self.upstream_time = Some(at.saturating_duration_since(self.started));
    }

    /// The exchange is over: counts it and writes its line to the access log. `lease`: a backend was to answer; otherwise,
    /// `service` is the one that the request was for.
    pub(super) fn close<L>(
        &self,
        client: &Client<L>,
        request: &RequestHead,
        lease: Option<&Lease>,
        service: Option<&Service>,
    ) {
        let Some(lease) = lease else {
            client.worker.meters.worker(client.worker.index).unrouted.fetch_add(1, Ordering::Relaxed);
            return self.log(client, request, service, None);
        };
        let info = lease.owner();
        let meters = info.meters.lane(lease.worker());
        // A tunnel may last for days: its duration is the time until it was open.
        let took = if self.status == 101 { self.upstream_time } else { None };
        meters.exchange(request.method.index(), self.status, took.unwrap_or_else(|| self.took()));
        if self.is_cut() {
            meters.was_cut();
        }
        self.log(client, request, Some(&info.service), Some(&info.backend));
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
    fn log<L>(
        &self,
        client: &Client<L>,
        request: &RequestHead,
        service: Option<&Service>,
        backend: Option<&Backend>,
    ) {
        let (true, Some(scratch)) = (client.worker.log.is_on(), &client.scratch) else { return };
        let head = scratch.request_head();
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
            target: request.target.of_head(head),
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
            referer: request.referer.of_head(head),
            user_agent: request.user_agent.of_head(head),
            termination: self.termination,
            reason: self.reason,
            tls: client.tls.as_deref().map(TlsSession::fields),
        });
    }
}
