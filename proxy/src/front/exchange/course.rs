//! Who answers a request: the active backend of its service, or uh-proxy itself.

use std::sync::Arc;
use std::time::Instant;

use super::by_rule::{self, ByRule};
use crate::config::{PathSettings, Service};
use crate::front::answer::{Answer, Content};
use crate::front::applied::{Applied, Choice};
use crate::front::bypass::{Pass, pass};
use crate::front::challenge;
use crate::front::client::Client;
use crate::front::error_answer::ErrorAnswer;
use crate::front::pick::{pick, pick_named, pick_preview};
use crate::front::preview::{self, Preview, PreviewLink};
use crate::front::rate::{self, OverRate};
use crate::front::redirect::{self, Redirect};
use crate::front::split;
use crate::front::{Entry, Lease, Named};
use crate::observe::termination::Termination;
use uh_http1::request::RequestHead;
use uh_switching::{Assigned, Maintenance, Side};

/// Who answers a request.
pub(super) enum Course {
    /// A backend. The request counts as in flight there from now on.
    Backend {
        lease: Lease,
        /// Where a split has put the client.
        assigned: Option<Assigned>,
        applied: Applied,
        /// A health check of a service in maintenance: if no backend can answer it, uh-proxy does.
        health_in_maintenance: bool,
    },
    /// uh-proxy, for this service if there is one. No backend is involved.
    Own { applied: Applied, answer: OwnAnswer },
}

/// What uh-proxy answers by itself.
pub(super) enum OwnAnswer {
    /// No service is configured for this host and path.
    NoRoute,
    /// The proof that a certificate authority asks for.
    Proof(String),
    Redirect(Redirect),
    /// The client makes too many requests.
    OverRate(OverRate),
    Maintenance(Arc<Maintenance>),
    ByRule(ByRule),
    /// The request was to be buffered, and didn't arrive.
    NotBuffered(ErrorAnswer),
    /// A preview's link was followed.
    PreviewLink(PreviewLink),
    /// The request can't be a preview.
    NoPreview(NoPreview),
}

/// Why a request that could only be a preview is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoPreview {
    /// Its host is for previews alone, and it has no valid token.
    NoToken,
    /// Its token was valid when it began.
    Expired,
    /// Its backend is withdrawn.
    Withdrawn,
    /// Its backend isn't in the configuration any more.
    Unknown,
}

impl NoPreview {
    fn status(self) -> u16 {
        match self {
            Self::NoToken => 403,
            Self::Expired | Self::Withdrawn | Self::Unknown => 410,
        }
    }

    fn detail(self) -> &'static str {
        match self {
            Self::NoToken => "this address is for previews: use a valid preview link, which may have expired",
            Self::Expired => "the preview link has expired",
            Self::Withdrawn => {
                "this version can't be previewed any more: its backend is withdrawn, and may be stopped"
            }
            Self::Unknown => "this version can't be previewed any more: its backend isn't configured",
        }
    }
}

/// Decides who answers a request that arrived `at` this time.
pub(super) fn decide<L>(client: &Client<L>, request: &RequestHead, at: Instant) -> Course {
    if let Some(proof) = challenge::of(client, request) {
        return Course::Own { applied: Applied::default(), answer: OwnAnswer::Proof(proof) };
    }
    match enter(client, request) {
        Entry::Nowhere => Course::Own { applied: Applied::default(), answer: OwnAnswer::NoRoute },
        Entry::Open(lease, assigned) => open(client, request, (lease, assigned), at),
        Entry::Closed(service, maintenance) => closed(client, request, &service, maintenance, at),
    }
}

/// Decides again for a request whose body has been read meanwhile. Its settings stay the same, unless another service or
/// uh-proxy itself is to answer it now.
pub(super) fn again<L>(
    client: &Client<L>,
    request: &RequestHead,
    mut applied: Applied,
    at: Instant,
) -> Course {
    if let Entry::Open(lease, assigned) = enter(client, request)
        && applied.service().is_some_and(|service| service.name == lease.owner().service.name)
    {
        let was_preview = std::mem::take(&mut applied.choice) == Choice::Preview;
        // A switch may have made its backend active meanwhile, which answers then as for everybody.
        let is_none = || matches!(preview::of(client, request, &lease.owner().service), Preview::None);
        if was_preview && is_none() {
            let answer = OwnAnswer::NoPreview(NoPreview::Expired);
            return Course::Own { applied: applied.without_lease(&lease), answer };
        }
        return by_backend(client, request, (lease, assigned), applied, false);
    }
    decide(client, request, at)
}

/// For a service with an active backend.
fn open<L>(
    client: &Client<L>,
    request: &RequestHead,
    (lease, assigned): (Lease, Option<Assigned>),
    at: Instant,
) -> Course {
    let mut applied = Applied::of_lease(&lease, request, client.request_head());
    let own = match without_backend(client, request, &lease.owner().service, &mut applied) {
        Some(redirect @ OwnAnswer::Redirect(_)) => Some(redirect),
        own => over_rate(client, request, &lease, &applied, at).or(own),
    };
    match own {
        None => by_backend(client, request, (lease, assigned), applied, false),
        Some(answer) => Course::Own { applied: applied.without_lease(&lease), answer },
    }
}

/// For a request that a backend is to answer: the one of the lease, or the one that the request names.
fn by_backend<L>(
    client: &Client<L>,
    request: &RequestHead,
    (lease, assigned): (Lease, Option<Assigned>),
    mut applied: Applied,
    health_in_maintenance: bool,
) -> Course {
    let own = |applied: Applied, lease: &Lease, answer| {
        let mut applied = applied.without_lease(lease);
        applied.choice = Choice::Preview;
        Course::Own { applied, answer }
    };
    match preview::of(client, request, &lease.owner().service) {
        Preview::None => {
            let lease = to_named(client, request, lease, &mut applied);
            Course::Backend { lease, assigned, applied, health_in_maintenance }
        }
        Preview::Refused => own(applied, &lease, OwnAnswer::NoPreview(NoPreview::NoToken)),
        Preview::Link(link) => own(applied, &lease, OwnAnswer::PreviewLink(link)),
        Preview::Of { backend, on_host } => match pick_preview(client, request, backend) {
            // Everybody gets that one, unless a split sends this client elsewhere. A switch may have made it active since the
            // request was routed.
            Named::Active(active) if !on_host => {
                let is_new = assigned.is_some_and(|assigned| assigned.side == Side::New);
                let (lease, assigned) = match is_new || is_same_backend(&lease, &active) {
                    true => (lease, assigned),
                    false => {
                        applied.goes_on(&lease, &active);
                        (active, None)
                    }
                };
                let lease = to_named(client, request, lease, &mut applied);
                Course::Backend { lease, assigned, applied, health_in_maintenance }
            }
            Named::Active(named) | Named::Standby(named) => {
                applied.goes_on(&lease, &named);
                applied.choice = Choice::Preview;
                Course::Backend { lease: named, assigned: None, applied, health_in_maintenance }
            }
            Named::Withdrawn => own(applied, &lease, OwnAnswer::NoPreview(NoPreview::Withdrawn)),
            Named::Unknown => own(applied, &lease, OwnAnswer::NoPreview(NoPreview::Unknown)),
        },
    }
}

fn is_same_backend(a: &Lease, b: &Lease) -> bool {
    a.owner().backend.name() == b.owner().backend.name()
}

/// The lease on the previous backend instead, if the request names that one's deployment id.
fn to_named<L>(client: &Client<L>, request: &RequestHead, lease: Lease, applied: &mut Applied) -> Lease {
    let ids = applied.settings(&lease).previous.named.as_deref();
    let named = ids.and_then(|ids| pick_named(client, request, &lease, ids));
    let Some(named) = named else { return lease };
    applied.choice = Choice::Named;
    applied.goes_on(&lease, &named);
    named
}

/// The answer for a client that makes too many requests, whether a backend or a path rule would answer them.
fn over_rate<L>(
    client: &Client<L>,
    request: &RequestHead,
    lease: &Lease,
    applied: &Applied,
    at: Instant,
) -> Option<OwnAnswer> {
    let rate = applied.settings(lease).rate.as_ref()?;
    rate::check(client, request, lease, rate, at).map(OwnAnswer::OverRate)
}

/// What uh-proxy answers whether or not there is a backend.
fn without_backend<L>(
    client: &Client<L>,
    request: &RequestHead,
    service: &Service,
    applied: &mut Applied,
) -> Option<OwnAnswer> {
    if let Some(redirect) = redirect::of(client, request, service) {
        return Some(OwnAnswer::Redirect(redirect));
    }
    by_rule::of(client, request, &service.rules, &mut applied.path).map(OwnAnswer::ByRule)
}

fn enter<L>(client: &Client<L>, request: &RequestHead) -> Entry {
    let head = client.request_head();
    let (host, path) = (request.host.of_head(head), request.path.of_head(head));
    client.worker.board.enter(host, path, client.worker.index, |service| split::key(client, request, service))
}

/// For a service in maintenance.
fn closed<L>(
    client: &Client<L>,
    request: &RequestHead,
    service: &Arc<Service>,
    maintenance: Arc<Maintenance>,
    at: Instant,
) -> Course {
    let head = client.request_head();
    let mut applied = Applied::of_service(Arc::clone(service), request, head);
    let (answer, lease) = match without_backend(client, request, service, &mut applied) {
        // Rejected requests count for the active backend.
        Some(answer @ OwnAnswer::ByRule(_)) => (answer, pick(client, request)),
        Some(answer) => (answer, None),
        None => match pass_through(client, request, service) {
            None => (OwnAnswer::Maintenance(maintenance), None),
            Some((pass, (lease, assigned))) => match over_rate(client, request, &lease, &applied, at) {
                Some(over) => (over, None),
                None => {
                    let health_in_maintenance = pass == Pass::Health;
                    return by_backend(client, request, (lease, assigned), applied, health_in_maintenance);
                }
            },
        },
    };
    let over = lease.and_then(|(lease, _)| over_rate(client, request, &lease, &applied, at));
    Course::Own { applied, answer: over.unwrap_or(answer) }
}

/// A lease on a backend of a service in maintenance, for a request that bypasses it.
fn pass_through<L>(
    client: &Client<L>,
    request: &RequestHead,
    service: &Service,
) -> Option<(Pass, (Lease, Option<Assigned>))> {
    let head = client.request_head();
    let address = request.client_address(head, &client.address);
    let pass = pass(service, head, request.method.is_read(), request.path.of_head(head), address)?;
    Some((pass, pick(client, request)?))
}

impl OwnAnswer {
    /// The answer, and how it is logged.
    pub(super) fn answer<'a>(&'a self, settings: Option<&'a PathSettings>) -> (Answer<'a>, Termination) {
        let plain = |status, detail| Answer { status, detail, ..Answer::default() };
        match self {
            Self::NoRoute => {
                (plain(404, "no service is configured for this host and path"), Termination::NoRoute)
            }
            Self::Proof(text) => (
                Answer { status: 200, content: Some(Content::plain(text)), ..Answer::default() },
                Termination::Done,
            ),
            Self::Redirect(Redirect::To(location)) => {
                let moved = plain(308, "the page has moved to the address in Location");
                (Answer { location: Some(location), ..moved }, Termination::Redirect)
            }
            Self::Redirect(Redirect::Impossible) => {
                let detail = "plain HTTP isn't allowed here, and this host isn't available over HTTPS";
                (plain(421, detail), Termination::NoRoute)
            }
            Self::OverRate(OverRate { retry_after_s }) => {
                let over = plain(429, "too many requests; try again later");
                (Answer { retry_after_s: Some(*retry_after_s), ..over }, Termination::RateLimited)
            }
            Self::ByRule(by_rule) => by_rule.answer(settings),
            Self::PreviewLink(PreviewLink { clean, cookie }) => {
                let moved = plain(303, "the preview is at the address in Location");
                let set_cookie = Some(cookie.as_str());
                (Answer { location: Some(clean), set_cookie, ..moved }, Termination::Preview)
            }
            Self::NoPreview(why) => (plain(why.status(), why.detail()), Termination::Preview),
            Self::NotBuffered(refusal) => (plain(refusal.status, refusal.detail), refusal.termination),
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
