//! How a connection ends: politely where the client may still read or send, and soon in any case.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::{AfterExchange, Connection};
use crate::front::admission::Refused;
use crate::front::answer::Answer;
use crate::front::broadcast::StopStage;
use crate::front::client::Client;
use crate::front::client::http1::Http1;
use crate::front::pump::ends::PumpSource as _;
use crate::front::pump::give_way;
use crate::observe::termination::Termination;

/// After the last answer, how long to keep reading while the client sends nothing, so that the answer isn't lost to a
/// reset (RFC 9112 §9.6).
const LINGER_TIME: Duration = Duration::from_secs(2);

/// And how long to keep reading what a client sends if there is no minimum rate (`limits.min_body_rate = 0`). A client
/// that keeps the rate is read until it ends: it may read the answer only after it has written its whole upload.
const LINGER_AT_MOST: Duration = Duration::from_secs(300);

/// After an idle connection was closed, how long a request that crossed the close may still arrive. It is left
/// unanswered without a reset: the client sees an orderly close before any response, and can safely retry.
const DISMISS_TIME: Duration = Duration::from_secs(1);

/// How much is read before other tasks on this thread get their turn.
const LINGER_TURN_BYTES: usize = 128 << 10;

impl Connection {
    /// Answers that too many connections, and closes. What the client asks is not waited for.
    pub(super) async fn turn_away(mut self, reason: Refused) {
        let admission = Arc::clone(&self.client.worker.admission);
        let Some(_turn) = admission.answer_turn() else { return };
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
        let content = answer.write(&self.client.settings.pages, &mut out);
        if self.client.send_answer(&out, content).await.is_ok() {
            // It occupies one of few slots for such answers.
            self.linger(LINGER_TIME, Some(LINGER_TIME)).await;
        }
    }

    /// Closes an idle connection that was evicted: in an orderly way, unless there are too many.
    pub(super) async fn make_room(self) {
        let admission = Arc::clone(&self.client.worker.admission);
        let Some(_turn) = admission.answer_turn() else { return };
        self.dismiss().await;
    }

    /// Answers a client that speaks plain HTTP on a TLS port, in the language that it understands, and closes.
    pub(crate) async fn refuse_plain_http(mut self) {
        let detail = "plain HTTP was sent to an HTTPS port: use https://";
        if self.client.refuse(400, detail, Termination::BadRequest).await == AfterExchange::Linger {
            self.linger(LINGER_TIME, Some(LINGER_TIME)).await;
        }
    }

    /// Ends TLS, so that the client can tell an end from a cut. A client that takes nothing isn't waited for.
    pub(super) async fn end_tls(mut self) {
        let deadline = Instant::now() + DISMISS_TIME;
        let client = &mut self.client;
        poll_fn(|cx| {
            client.subscription.poll(cx);
            let ended = client.link.poll_shutdown(cx).is_ready();
            let late =
                client.subscription.stage() == StopStage::Cutting || client.timer.poll_expired(cx, deadline);
            if ended || late { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Gives the client time to read its answer.
    pub(super) async fn linger_for_answer(self) {
        let most = (self.client.body_rate == 0).then_some(LINGER_AT_MOST);
        self.linger(LINGER_TIME, most).await;
    }

    /// Closes an idle connection.
    pub(super) async fn dismiss(self) {
        self.linger(DISMISS_TIME, Some(DISMISS_TIME)).await;
    }

    /// Closes the sending side and discards input until the client sends nothing for `quiet`, falls below its minimum
    /// rate, or has been sending for `most`, if there is such a limit.
    async fn linger(mut self, quiet: Duration, most: Option<Duration>) {
        let mut lingering = Lingering::new(quiet, most, self.client.body_rate);
        poll_fn(|cx| lingering.poll(cx, &mut self.client)).await;
    }
}

/// A connection that was answered for the last time.
struct Lingering {
    begun: Instant,
    quiet: Duration,
    /// The client's minimum rate, in bytes per second.
    rate: u64,
    /// It ends then at the latest, if there is such a limit.
    until: Option<Instant>,
    last_read: Instant,
    /// Bytes read.
    total: u64,
    /// The sending side is closed.
    shut: bool,
    /// The process is stopping, and the time is limited accordingly.
    hurried: bool,
}

impl Lingering {
    fn new(quiet: Duration, most: Option<Duration>, rate: u64) -> Self {
        let begun = Instant::now();
        let until = most.map(|most| begun + most);
        let rate = rate.max(1);
        Self { begun, quiet, rate, until, last_read: begun, total: 0, shut: false, hurried: false }
    }

    fn poll(&mut self, cx: &mut Context<'_>, client: &mut Client<Http1>) -> Poll<()> {
        client.subscription.poll(cx);
        if !self.shut {
            match client.link.poll_shutdown(cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => self.shut = true,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
            }
        }
        if self.poll_discard(cx, client).is_ready() {
            return Poll::Ready(());
        }
        let stage = client.subscription.stage();
        if stage != StopStage::Running && !std::mem::replace(&mut self.hurried, true) {
            let hurried = Instant::now() + LINGER_TIME;
            self.until = Some(self.until.map_or(hurried, |until| until.min(hurried)));
        }
        if stage == StopStage::Cutting || client.timer.poll_expired(cx, self.deadline()) {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Discards input. Ready when there is no more.
    fn poll_discard(&mut self, cx: &mut Context<'_>, client: &mut Client<Http1>) -> Poll<()> {
        let mut turn = 0;
        loop {
            client.input = None;
            match client.link.poll_fill(cx, &mut client.input) {
                Poll::Ready(Ok(n)) if n > 0 => turn += n,
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => break,
            }
            if turn >= LINGER_TURN_BYTES {
                give_way(cx);
                break;
            }
        }
        client.input = None;
        if turn > 0 {
            self.last_read = Instant::now();
            self.total += turn as u64;
        }
        Poll::Pending
    }

    fn deadline(&self) -> Instant {
        // A client that sends faster than it must gets no extra time: it ends by itself, or goes quiet.
        let earned = Duration::from_millis(self.total.saturating_mul(1000) / self.rate);
        let earned = self.begun.checked_add(self.quiet + earned);
        [self.until, earned].into_iter().flatten().fold(self.last_read + self.quiet, Instant::min)
    }
}
