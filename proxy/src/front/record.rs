//! The record of an exchange: its access log line and counts.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::Backend;
use super::client::Client;
use crate::config::Service;
use crate::observe::line::AccessLine;
use crate::observe::termination::Termination;
use crate::tls::TlsSession;
use uh_http1::request::RequestHead;

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

    /// From the request head to the last byte of the response, or to now.
    pub(super) fn took(&self) -> Duration {
        self.ended.unwrap_or_else(Instant::now).saturating_duration_since(self.started)
    }

    /// Writes the exchange's line to the access log.
    pub(super) fn log<L>(
        &self,
        client: &Client<L>,
        request: &RequestHead,
        service: Option<&Service>,
        backend: Option<&Backend>,
    ) {
        let (true, Some(scratch)) = (client.worker.log.is_on(), &client.scratch) else { return };
        let head = scratch.request_head();
        let endpoint = backend.and_then(|backend| backend.endpoints.get(self.endpoint.unwrap_or(0)));
        let reported = endpoint.map(|endpoint| endpoint.reported_version());
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
            version: backend.and_then(|backend| backend.version()).or(reported),
            request_id: request.id.text(head),
            referer: request.referer.of_head(head),
            user_agent: request.user_agent.of_head(head),
            termination: self.termination,
            reason: self.reason,
            tls: client.tls.as_deref().map(TlsSession::fields),
        });
    }
}
