//! uh-proxy's own answers to a client: sending one, and refusing what isn't a request.

use std::future::poll_fn;
use std::io;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::{Client, ClientLink};
use crate::front::admission::Refused;
use crate::front::answer::{Answer, Form};
use crate::front::broadcast::StopStage;
use crate::front::connection::AfterExchange;
use crate::front::pump::ends::Parts;
use crate::observe::line::AccessLine;
use crate::observe::termination::Termination;
use crate::tls::TlsSession;
use uh_http1::request::{BadRequest, RequestId};

impl<L: ClientLink> Client<L> {
    /// Sends one of uh-proxy's own answers, within the header deadline: a head and its content.
    ///
    /// # Errors
    /// The client has left, or takes nothing.
    pub(crate) async fn send(&mut self, head: &[u8], content: &[u8]) -> io::Result<()> {
        let deadline = Instant::now() + self.settings.limits.header_timeout;
        let mut sent = 0;
        poll_fn(|cx| {
            self.subscription.poll(cx);
            match poll_send(&mut self.link, cx, head, content, &mut sent) {
                Poll::Pending
                    if self.subscription.stage() == StopStage::Cutting
                        || self.timer.poll_expired(cx, deadline) =>
                {
                    Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
                }
                polled => polled,
            }
        })
        .await
    }

    /// Answers a head that isn't a request.
    pub(crate) async fn refuse_bad(&mut self, bad: BadRequest) -> AfterExchange {
        if bad == BadRequest::Tls {
            self.worker.admission.refuse(Refused::Tls, &self.address);
        }
        let detail = bad.to_string();
        self.refuse(bad.status(), &detail, Termination::BadRequest).await
    }

    /// Answers an invalid request and closes: it isn't certain where the next one would begin.
    pub(crate) async fn refuse(
        &mut self,
        status: u16,
        detail: &str,
        termination: Termination,
    ) -> AfterExchange {
        let id = RequestId::make();
        let head = self.request_head();
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
        let content = answer.write(&self.settings.pages, &mut out);
        let sent = self.send_answer(&out, content).await;
        self.worker.meters.worker(self.worker.index).unrouted.fetch_add(1, Ordering::Relaxed);
        self.worker.log.write(&AccessLine {
            time: SystemTime::now(),
            client: &self.address,
            method: b"-",
            target: b"-",
            protocol: "-",
            host: b"",
            status,
            bytes: content,
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
            preview: false,
            rescued_from: None,
            reason: None,
            tls: self.tls.as_deref().map(TlsSession::fields),
        });
        if sent.is_ok() { AfterExchange::Linger } else { AfterExchange::Close }
    }

    /// Sends an answer as [`Answer::write`] has written it, with so many bytes of content.
    ///
    /// # Errors
    /// See [`Client::send`].
    pub(crate) async fn send_answer(&mut self, written: &[u8], content: u64) -> io::Result<()> {
        let content = usize::try_from(content).unwrap_or(0).min(written.len());
        let (head, content) = written.split_at(written.len() - content);
        self.send(head, content).await
    }
}

fn poll_send<L: ClientLink>(
    link: &mut L,
    cx: &mut Context<'_>,
    head: &[u8],
    content: &[u8],
    sent: &mut usize,
) -> Poll<io::Result<()>> {
    while *sent < head.len() + content.len() {
        let of_head = (*sent).min(head.len());
        let parts = Parts { head: &head[of_head..], content: &content[*sent - of_head..], ..Parts::LAST };
        match link.poll_write(cx, parts) {
            Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Poll::Ready(Ok(n)) => *sent += n,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => return Poll::Pending,
        }
    }
    // What is written may wait in TLS, where the socket didn't take it.
    if link.buffers() && link.poll_flush(cx)?.is_pending() {
        return Poll::Pending;
    }
    link.poll_end(cx, b"")
}
