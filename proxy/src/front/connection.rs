//! One client connection: reads a head, runs the exchange, and repeats until either side closes.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use pingora::protocols::Stream;
use tokio::io::AsyncWrite as _;
use tokio::time::Instant;

use super::admission::{ConnectionSlot, Refused};
use super::answer::{Answer, Form};
use super::broadcast::{StopStage, Subscription};
use super::exchange;
use super::lazy_timer::LazyTimer;
use super::pool::millis;
use super::pump::{give_way, poll_fill};
use super::reset;
use super::scratch::Scratch;
use super::settings::Settings;
use super::worker::Worker;
use crate::observe::line::AccessLine;
use crate::observe::termination::Termination;
use crate::tls::TlsSession;
use uh_http1::buffer::Buffer;
use uh_http1::field::HeadScanner;
use uh_http1::forwarded::{Caller, Scheme};
use uh_http1::request::{self, BadRequest, RequestId};

/// After the last answer, how long to keep reading while the client sends nothing, so that the answer isn't lost to a
/// reset (RFC 9112 §9.6).
const LINGER_TIME: Duration = Duration::from_secs(2);

/// And how long to keep reading what a client sends if there is no minimum rate (`limits.min_body_rate = 0`). A client
/// that keeps the rate is read until it ends: it may read the answer only after it has written its whole upload.
const LINGER_AT_MOST: Duration = Duration::from_secs(300);

/// The minimum rate if the service isn't known: the default of `limits.min_body_rate`.
const BODY_RATE: u64 = 500;

/// After an idle connection was closed, how long a request that crossed the close may still arrive. It is left
/// unanswered without a reset: the client sees an orderly close before any response, and can safely retry.
const DISMISS_TIME: Duration = Duration::from_secs(1);

/// How much of that is read before other tasks on this thread get their turn.
const LINGER_TURN_BYTES: usize = 128 << 10;

/// How long the rest of a request head may take once the process is stopping.
const HURRIED_HEAD_TIME: Duration = Duration::from_secs(1);

/// What happens to a connection after an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterExchange {
    /// It takes another request.
    KeepAlive,
    /// It is closed in good order.
    Close,
    /// It is closed in the middle of a response: over TLS without a word, so that the client can tell that what it was
    /// reading is not whole.
    Abandon,
    /// It is closed after the client has had time to read the answer.
    Linger,
    /// It was idle for too long: it is closed so that a request on its way doesn't cause a reset.
    Dismiss,
    /// It is reset: only then can the client tell that the response was incomplete.
    Reset,
}

/// A client that was accepted: counted as a connection, and admitted or not, before anything is read from it.
pub struct Arrival {
    pub(crate) worker: Arc<Worker>,
    /// In force when it came.
    pub(crate) settings: Arc<Settings>,
    ip: IpAddr,
    /// Its address as text.
    pub(crate) address: Box<str>,
    /// Its place among the open connections, or why it has none.
    pub(crate) place: Result<ConnectionSlot, Refused>,
    open: OpenGuard,
}

impl Arrival {
    /// Counts a connection, and takes a place for it if there is one.
    #[must_use]
    pub fn new(worker: Arc<Worker>, address: SocketAddr) -> Self {
        let open = OpenGuard::new(&worker);
        let ip = address.ip().to_canonical();
        let settings = worker.settings();
        // A trusted proxy stands for all the clients behind it, and a load balancer still has to name the client.
        let counted = (!settings.headers.trusts(ip) && !settings.expects_proxy_header(ip)).then_some(ip);
        let place = worker.admission.admit(&settings.limits, counted, worker.index);
        Self { settings, ip, address: ip.to_string().into_boxed_str(), place, open, worker }
    }

    /// Whether its peer is a load balancer that names the client in a PROXY header.
    pub(super) fn expects_proxy_header(&self) -> bool {
        self.settings.expects_proxy_header(self.ip)
    }

    /// Makes it a connection of the client that the PROXY header names, and counts it for that address.
    pub(super) fn set_client(&mut self, client: IpAddr) {
        self.ip = client.to_canonical();
        self.address = self.ip.to_string().into_boxed_str();
        if let Ok(place) = &mut self.place
            && !self.settings.headers.trusts(self.ip)
            && let Err(reason) = place.count_for(&self.settings.limits, self.ip)
        {
            self.place = Err(reason);
        }
    }
}

/// One client connection.
pub struct Connection {
    pub(super) worker: Arc<Worker>,
    pub(super) client: Stream,
    /// What the TLS handshake has agreed on; `None`: the client speaks plain HTTP.
    pub(super) tls: Option<Box<TlsSession>>,
    /// The settings of the current or last request.
    pub(super) settings: Arc<Settings>,
    /// The peer: the client, or a proxy in front of uh-proxy.
    ip: IpAddr,
    /// The same as text.
    pub(super) address: Box<str>,
    /// Its slot among the open connections, or why it has none.
    place: Result<ConnectionSlot, Refused>,
    /// Bytes read beyond the last message.
    pub(super) input: Option<Buffer>,
    pub(super) scratch: Option<Scratch>,
    pub(super) subscription: Subscription,
    pub(super) timer: LazyTimer,
    exchanges: u32,
    /// The minimum rate of a request body, in bytes per second, from the service of the last request.
    pub(super) body_rate: u64,
    _open: OpenGuard,
}

enum HeadRead {
    Complete,
    Closed,
    Dismissed,
    Evicted,
    TimedOut,
    Bad(BadRequest),
}

impl Connection {
    /// Takes over an accepted connection, after its TLS handshake if there is one.
    #[must_use]
    pub fn new(arrival: Arrival, client: Stream, tls: Option<Box<TlsSession>>) -> Self {
        let Arrival { worker, settings, ip, address, place, open } = arrival;
        let subscription = Subscription::new(Arc::clone(&worker.broadcast));
        Self {
            settings,
            worker,
            client,
            tls,
            ip,
            address,
            place,
            input: None,
            scratch: None,
            subscription,
            timer: LazyTimer::default(),
            exchanges: 0,
            body_rate: BODY_RATE,
            _open: open,
        }
    }

    /// Serves the connection until it closes.
    pub async fn serve(mut self) {
        if let Err(reason) = self.place {
            self.worker.admission.refuse(reason, &self.address);
            return Box::pin(self.turn_away(reason)).await;
        }
        loop {
            let next = match self.read_head().await {
                HeadRead::Closed => AfterExchange::Close,
                HeadRead::Dismissed => AfterExchange::Dismiss,
                HeadRead::Evicted => return Box::pin(self.make_room()).await,
                HeadRead::TimedOut => {
                    let detail = "the request did not arrive in time";
                    Box::pin(self.refuse(408, detail, Termination::ClientTimeout)).await
                }
                HeadRead::Bad(bad) => Box::pin(self.refuse_bad(bad)).await,
                HeadRead::Complete => self.exchange().await,
            };
            self.exchanges = self.exchanges.saturating_add(1);
            // A waiting connection holds no memory.
            if let Some(scratch) = self.scratch.take() {
                scratch.give_back();
            }
            match next {
                AfterExchange::KeepAlive => {}
                AfterExchange::Close if self.tls.is_some() => return Box::pin(self.end_tls()).await,
                AfterExchange::Close | AfterExchange::Abandon => return,
                AfterExchange::Reset => return reset::at_close(&self.client),
                AfterExchange::Linger => {
                    let most = (self.body_rate == 0).then_some(LINGER_AT_MOST);
                    return Box::pin(self.linger(LINGER_TIME, most)).await;
                }
                AfterExchange::Dismiss => {
                    return Box::pin(self.linger(DISMISS_TIME, Some(DISMISS_TIME))).await;
                }
            }
        }
    }

    /// How the client speaks to us.
    pub(super) fn scheme(&self) -> Scheme {
        if self.tls.is_some() { Scheme::Https } else { Scheme::Http }
    }

    /// Reads a request head into the scratch. The first byte has the idle timeout; the rest has one total deadline.
    async fn read_head(&mut self) -> HeadRead {
        let limits = &self.settings.limits;
        let first_wait = if self.exchanges == 0 { limits.header_timeout } else { limits.idle_timeout };
        let (worker, settings) = (&self.worker, &mut self.settings);
        let now = Instant::now();
        let mut deadline = now + first_wait;
        // Only between two requests can a connection be evicted.
        let mut slot = self.place.as_mut().ok().map(|place| &mut place.slot).filter(|_| self.exchanges > 0);
        let mut resting = false;
        let mut scanner = HeadScanner::default();
        let (client, input, scratch) = (&mut self.client, &mut self.input, &mut self.scratch);
        let (subscription, timer) = (&mut self.subscription, &mut self.timer);
        let (mut begun, mut hurried) = (false, false);
        poll_fn(|cx| {
            subscription.poll(cx);
            loop {
                if let Some(buffer) = input {
                    let head = scratch.get_or_insert_with(Scratch::take).request();
                    let before = head.len();
                    let unseen = buffer.filled();
                    // Before it is split into lines: other protocols, such as a TLS hello, may have a line feed
                    // anywhere.
                    let first = unseen.first().copied().filter(|_| before == 0);
                    if let Some(bad) = first.and_then(BadRequest::by_first_byte) {
                        return Poll::Ready(HeadRead::Bad(bad));
                    }
                    let found = if before == 0 {
                        // Most heads arrive in one piece. What follows, such as a body, isn't copied.
                        let found = scanner.scan(unseen);
                        let end = found
                            .as_ref()
                            .ok()
                            .and_then(Option::as_ref)
                            .map_or(unseen.len(), |range| range.end);
                        head.extend_from_slice(&unseen[..end]);
                        found
                    } else {
                        head.extend_from_slice(unseen);
                        scanner.scan(head)
                    };
                    let Ok(found) = found else {
                        let bad =
                            BadRequest::Malformed("a line of the request head ends in a bare line feed");
                        return Poll::Ready(HeadRead::Bad(bad));
                    };
                    let end = found.as_ref().map_or(head.len(), |range| range.end);
                    if !begun && scanner.has_begun(head.len()) {
                        begun = true;
                        let first = head.get(scanner.start()).copied();
                        if let Some(bad) = first.and_then(BadRequest::by_first_byte) {
                            return Poll::Ready(HeadRead::Bad(bad));
                        }
                        *settings = worker.settings();
                        deadline = Instant::now() + settings.limits.header_timeout;
                    }
                    buffer.consume(end - before);
                    if buffer.is_empty() {
                        *input = None;
                    }
                    if end > settings.limits.header_bytes {
                        return Poll::Ready(HeadRead::Bad(BadRequest::TooLarge));
                    }
                    if scanner.fields() > settings.limits.header_fields {
                        return Poll::Ready(HeadRead::Bad(BadRequest::TooLarge));
                    }
                    if let Some(range) = found {
                        head.truncate(range.end);
                        head.drain(..range.start);
                        return Poll::Ready(HeadRead::Complete);
                    }
                }
                match poll_fill(cx, client, input) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(HeadRead::Closed),
                    Poll::Ready(Ok(_)) if std::mem::take(&mut resting) => {
                        if slot.as_ref().is_some_and(|slot| !slot.set_busy()) {
                            return Poll::Ready(HeadRead::Evicted);
                        }
                    }
                    Poll::Ready(Ok(_)) => {}
                    Poll::Pending => break,
                }
            }
            if let (false, Some(slot)) = (begun, &mut slot) {
                if !std::mem::replace(&mut resting, true) {
                    slot.set_idle(millis(now.into_std()), cx);
                } else if slot.is_evicted() {
                    return Poll::Ready(HeadRead::Evicted);
                }
            }
            let stage = subscription.stage();
            if stage == StopStage::Cutting {
                return Poll::Ready(HeadRead::Closed);
            }
            if let (StopStage::Stopping, Some(timetable)) = (stage, subscription.timetable()) {
                if !begun {
                    deadline = deadline.min(timetable.idle_until);
                } else if !std::mem::replace(&mut hurried, true) {
                    deadline = deadline.min(Instant::now() + HURRIED_HEAD_TIME);
                }
            }
            match timer.poll_expired(cx, deadline) {
                true if begun => Poll::Ready(HeadRead::TimedOut),
                true => Poll::Ready(HeadRead::Dismissed),
                false => Poll::Pending,
            }
        })
        .await
    }

    /// Runs the exchange for the head that was read.
    async fn exchange(&mut self) -> AfterExchange {
        let scheme = self.scheme();
        let Some(scratch) = &mut self.scratch else { return AfterExchange::Close };
        let mut upstream = std::mem::take(scratch.upstream());
        upstream.clear();
        let headers = &self.settings.headers;
        let request_start = headers.request_start.then(milliseconds_since_1970);
        let caller =
            Caller { address: self.ip, text: &self.address, request_start, scheme, http2: false, headers };
        let translated = request::translate(scratch.request_head(), &caller, &mut upstream);
        *scratch.upstream() = upstream;
        match translated {
            Ok(mut request) => {
                request.keep_alive &=
                    self.exchanges.saturating_add(1) < self.settings.limits.requests_per_connection;
                let _active = ActiveGuard::new(&self.worker);
                // Boxed, so that the future of a waiting connection doesn't include the size of an exchange.
                Box::pin(exchange::run(self, request)).await
            }
            Err(bad) => Box::pin(self.refuse_bad(bad)).await,
        }
    }

    async fn refuse_bad(&mut self, bad: BadRequest) -> AfterExchange {
        if bad == BadRequest::Tls {
            self.worker.admission.refuse(Refused::Tls, &self.address);
        }
        let detail = bad.to_string();
        self.refuse(bad.status(), &detail, Termination::BadRequest).await
    }

    /// Answers an invalid request and closes: it isn't certain where the next one would begin.
    async fn refuse(&mut self, status: u16, detail: &str, termination: Termination) -> AfterExchange {
        let id = RequestId::make();
        let head = self.scratch.as_ref().map_or(&[][..], Scratch::request_head);
        let answer = Answer {
            status,
            detail,
            request_id: id.text(b""),
            keep_alive: false,
            head_only: head.starts_with(b"HEAD "),
            form: Form::preferred(head),
            hsts: self.settings.hsts(self.scheme()),
            ..Answer::default()
        };
        let mut out = Vec::new();
        let bytes = answer.write(&self.settings.pages, &mut out);
        let sent = self.send(&out).await;
        self.worker.meters.worker(self.worker.index).unrouted.fetch_add(1, Ordering::Relaxed);
        self.worker.log.write(&AccessLine {
            time: SystemTime::now(),
            client: &self.address,
            method: b"-",
            target: b"-",
            protocol: "-",
            host: b"",
            status,
            bytes,
            request_time: Duration::ZERO,
            upstream_time: None,
            service: None,
            backend: None,
            version: None,
            endpoint: None,
            request_id: id.text(b""),
            referer: b"",
            user_agent: b"",
            termination,
            reason: None,
            tls: self.tls.as_deref().map(TlsSession::fields),
        });
        if sent.is_ok() { AfterExchange::Linger } else { AfterExchange::Close }
    }

    /// Answers that too many connections, and closes. What the client asks is not waited for.
    async fn turn_away(mut self, reason: Refused) {
        let Some(_turn) = self.worker.admission.answer_turn() else { return };
        let (status, detail) = match reason {
            Refused::Full => (503, "too many connections"),
            Refused::Address => (429, "too many connections from this address"),
            Refused::Tls | Refused::NoProxyHeader | Refused::BadProxyHeader | Refused::ProxyHeaderTimeout => {
                return;
            }
        };
        // What the client prefers isn't known yet: text, unless the operator has a page.
        let answer = Answer { status, detail, ..Answer::default() };
        let mut out = Vec::new();
        answer.write(&self.settings.pages, &mut out);
        if self.send(&out).await.is_ok() {
            // It occupies one of few slots for such answers.
            self.linger(LINGER_TIME, Some(LINGER_TIME)).await;
        }
    }

    /// Closes an idle connection that was evicted: in an orderly way, unless there are too many.
    async fn make_room(self) {
        let admission = Arc::clone(&self.worker.admission);
        let Some(_turn) = admission.answer_turn() else { return };
        self.linger(DISMISS_TIME, Some(DISMISS_TIME)).await;
    }

    /// Sends one of uh-proxy's own answers, within the header deadline.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let deadline = Instant::now() + self.settings.limits.header_timeout;
        let mut sent = 0;
        poll_fn(|cx| {
            self.subscription.poll(cx);
            while sent < bytes.len() {
                match Pin::new(&mut self.client).poll_write(cx, &bytes[sent..]) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(n)) => sent += n,
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                    Poll::Pending
                        if self.subscription.stage() == StopStage::Cutting
                            || self.timer.poll_expired(cx, deadline) =>
                    {
                        return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                    }
                    Poll::Pending => return Poll::Pending,
                }
            }
            if self.tls.is_none() {
                return Poll::Ready(Ok(()));
            }
            // What is written may wait in TLS, where the socket didn't take it.
            match Pin::new(&mut self.client).poll_flush(cx) {
                Poll::Pending
                    if self.subscription.stage() == StopStage::Cutting
                        || self.timer.poll_expired(cx, deadline) =>
                {
                    Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
                }
                flushed => flushed,
            }
        })
        .await
    }

    /// Ends TLS, so that the client can tell an end from a cut. A client that takes nothing isn't waited for.
    async fn end_tls(mut self) {
        let deadline = Instant::now() + DISMISS_TIME;
        poll_fn(|cx| {
            self.subscription.poll(cx);
            let ended = Pin::new(&mut self.client).poll_shutdown(cx).is_ready();
            let late =
                self.subscription.stage() == StopStage::Cutting || self.timer.poll_expired(cx, deadline);
            if ended || late { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Answers a client that speaks plain HTTP on a TLS port, in the language that it understands, and closes.
    pub(crate) async fn refuse_plain_http(mut self) {
        let detail = "plain HTTP was sent to an HTTPS port: use https://";
        if self.refuse(400, detail, Termination::BadRequest).await == AfterExchange::Linger {
            self.linger(LINGER_TIME, Some(LINGER_TIME)).await;
        }
    }

    /// Closes the sending side and discards input until the client sends nothing for `quiet`, falls below its minimum
    /// rate, or has been sending for `most`, if there is such a limit.
    async fn linger(mut self, quiet: Duration, most: Option<Duration>) {
        let begun = Instant::now();
        let rate = self.body_rate.max(1);
        let mut until = most.map(|most| begun + most);
        let (mut last_read, mut total) = (begun, 0_u64);
        let (mut shut, mut hurried) = (false, false);
        poll_fn(|cx| {
            self.subscription.poll(cx);
            if !shut {
                match Pin::new(&mut self.client).poll_shutdown(cx) {
                    Poll::Pending => {}
                    Poll::Ready(Ok(())) => shut = true,
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                }
            }
            let mut turn = 0;
            loop {
                self.input = None;
                match poll_fill(cx, &mut self.client, &mut self.input) {
                    Poll::Ready(Ok(n)) if n > 0 => turn += n,
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => break,
                }
                if turn >= LINGER_TURN_BYTES {
                    give_way(cx);
                    break;
                }
            }
            self.input = None;
            if turn > 0 {
                last_read = Instant::now();
                total += turn as u64;
            }
            let stage = self.subscription.stage();
            if stage != StopStage::Running && !std::mem::replace(&mut hurried, true) {
                let hurried = Instant::now() + LINGER_TIME;
                until = Some(until.map_or(hurried, |until| until.min(hurried)));
            }
            let quiet_until = last_read + quiet;
            // A client that sends faster than it must gets no extra time: it ends by itself, or goes quiet.
            let earned = begun.checked_add(quiet + Duration::from_millis(total.saturating_mul(1000) / rate));
            let deadline = [until, earned].into_iter().flatten().fold(quiet_until, Instant::min);
            if stage == StopStage::Cutting || self.timer.poll_expired(cx, deadline) {
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
    }
}

fn milliseconds_since_1970() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Counts a connection as open.
struct OpenGuard(Arc<Worker>);

impl OpenGuard {
    fn new(worker: &Arc<Worker>) -> Self {
        let meters = worker.meters.worker(worker.index);
        meters.client_open.fetch_add(1, Ordering::Relaxed);
        meters.accepted.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(worker))
    }
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        let open = &self.0.meters.worker(self.0.index).client_open;
        if open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.all_gone.notify_waiters();
        }
    }
}

/// Counts a connection as carrying a request.
struct ActiveGuard(Arc<Worker>);

impl ActiveGuard {
    fn new(worker: &Arc<Worker>) -> Self {
        worker.meters.worker(worker.index).client_active.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(worker))
    }
}

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        self.0.meters.worker(self.0.index).client_active.fetch_sub(1, Ordering::Relaxed);
    }
}
