//! Who answers a request: the active backend of its service, or uh-proxy itself.

use std::sync::Arc;

use crate::config::Service;
use crate::front::answer::Answer;
use crate::front::bypass::{Pass, pass};
use crate::front::challenge;
use crate::front::client::Client;
use crate::front::reach::pick;
use crate::front::redirect::{self, Redirect};
use crate::front::{Entry, Lease};
use crate::observe::termination::Termination;
use uh_http1::request::RequestHead;
use uh_switching::Maintenance;

/// Who answers a request.
pub(super) enum Course {
    /// A backend. The request counts as in flight there from now on.
    Backend {
        lease: Lease,
        /// A health check of a service in maintenance: if no backend can answer it, uh-proxy does.
        health_in_maintenance: bool,
    },
    /// uh-proxy, for this service if there is one. No backend is involved.
    Own { service: Option<Arc<Service>>, answer: OwnAnswer },
}

/// What uh-proxy answers by itself.
pub(super) enum OwnAnswer {
    /// No service is configured for this host and path.
    NoRoute,
    /// The proof that a certificate authority asks for.
    Proof(String),
    Redirect(Redirect),
    Maintenance(Arc<Maintenance>),
}

/// Decides who answers.
pub(super) fn decide<L>(client: &Client<L>, request: &RequestHead) -> Course {
    if let Some(proof) = challenge::of(client, request) {
        return Course::Own { service: None, answer: OwnAnswer::Proof(proof) };
    }
    match enter(client, request) {
        Entry::Nowhere => Course::Own { service: None, answer: OwnAnswer::NoRoute },
        Entry::Open(lease) => match redirect::of(client, request, &lease.owner().service) {
            None => Course::Backend { lease, health_in_maintenance: false },
            Some(redirect) => {
                let service = Some(Arc::clone(&lease.owner().service));
                Course::Own { service, answer: OwnAnswer::Redirect(redirect) }
            }
        },
        Entry::Closed(service, maintenance) => closed(client, request, service, maintenance),
    }
}

fn enter<L>(client: &Client<L>, request: &RequestHead) -> Entry {
    let head = client.request_head();
    client.worker.board.enter(request.host.of_head(head), request.path.of_head(head), client.worker.index)
}

/// For a service in maintenance.
fn closed<L>(
    client: &Client<L>,
    request: &RequestHead,
    service: Arc<Service>,
    maintenance: Arc<Maintenance>,
) -> Course {
    if let Some(redirect) = redirect::of(client, request, &service) {
        return Course::Own { service: Some(service), answer: OwnAnswer::Redirect(redirect) };
    }
    match pass_through(client, request, &service) {
        Some((pass, lease)) => Course::Backend { lease, health_in_maintenance: pass == Pass::Health },
        None => Course::Own { service: Some(service), answer: OwnAnswer::Maintenance(maintenance) },
    }
}

/// A lease on the active backend of a service in maintenance, for a request that bypasses it.
fn pass_through<L>(client: &Client<L>, request: &RequestHead, service: &Service) -> Option<(Pass, Lease)> {
    let head = client.request_head();
    let address = request.client_address(head, &client.address);
    let pass = pass(service, head, request.method.is_read(), request.path.of_head(head), address)?;
    Some((pass, pick(client, request)?))
}

impl OwnAnswer {
    /// The answer, and how it is logged.
    pub(super) fn answer(&self) -> (Answer<'_>, Termination) {
        let plain = |status, detail| Answer { status, detail, ..Answer::default() };
        match self {
            Self::NoRoute => {
                (plain(404, "no service is configured for this host and path"), Termination::NoRoute)
            }
            Self::Proof(text) => {
                (Answer { status: 200, text: Some(text), ..Answer::default() }, Termination::Done)
            }
            Self::Redirect(Redirect::To(location)) => {
                let moved = plain(308, "the page has moved to the address in Location");
                (Answer { location: Some(location), ..moved }, Termination::Redirect)
            }
            Self::Redirect(Redirect::Impossible) => {
                let detail = "plain HTTP isn't allowed here, and this host isn't available over HTTPS";
                (plain(421, detail), Termination::NoRoute)
            }
            Self::Maintenance(maintenance) => {
                let closed = Answer {
                    retry_after_s: Some(maintenance.retry_after_s),
                    maintenance: true,
                    ..plain(503, &maintenance.message)
                };
                (closed, Termination::Maintenance)
            }
        }
    }
}
