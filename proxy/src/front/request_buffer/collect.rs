//! Reads a body from a client until it is complete, or doesn't fit. No backend is involved, and nothing is counted as in
//! flight: a client may take as long as its timeouts and minimum rate allow.

use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use uh_system::plain;

use super::budget::{BufferBudgets, Share};
use super::replay::BufferedBody;
use super::spool::{Spool, Written};
use crate::config::{PathSettings, RequestBuffer, RequestBuffers};
use crate::front::broadcast::StopStage;
use crate::front::client::{Client, ClientLink};
use crate::front::pace::Pace;
use crate::front::pump::ends::Parts;
use crate::front::pump::give_way;
use crate::front::relay::ExchangeFailure;
use crate::observe::buffered::Buffered;
use crate::observe::termination::Termination;
use uh_http1::body::{BodyScanner, Framing};
use uh_http1::buffer::Buffer;
use uh_http1::request::RequestHead;
use uh_http1::response::Coding;

/// How much is read before other tasks of the thread get their turn: as in a pump.
const TURN_BYTES: usize = 128 << 10;

/// What is gathered in memory for a file's next write.
const WRITE_BYTES: u64 = 128 << 10;

/// How long one write may take. A disk that takes longer hangs.
const WRITE_TIME: Duration = Duration::from_secs(30);

/// Sent to a client that waits for it before it sends its body.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Reads the body of a request. Returns it, complete or not, and how it is counted.
///
/// # Errors
/// The client left or is too slow, its body is broken or too large, the process stops, or the disk hangs.
pub(crate) async fn collect<L: ClientLink>(
    client: &mut Client<L>,
    request: &RequestHead,
    settings: &PathSettings,
    rules: RequestBuffer,
) -> Result<(BufferedBody, Buffered), ExchangeFailure> {
    let (framing, coding) = L::request_body(request);
    let input = client.input.take();
    if request.expects_continue && input.is_none() {
        send_continue(client).await?;
    }
    let budgets = &client.worker.admission.buffers;
    let now = Instant::now();
    let mut collector = Collector {
        scanner: BodyScanner::new(framing),
        settings,
        rules,
        memory: Vec::new(),
        share: budgets.of_memory(),
        spool: None,
        writing: None,
        input,
        cleared: 0,
        stored: 0,
        received: 0,
        moved: now,
        pace: Pace::default(),
    };
    let ended = poll_fn(|cx| {
        client.subscription.poll(cx);
        collector.poll(cx, client)
    });
    let ended = ended.await?;
    collector.finish(ended, framing, coding)
}

/// Sends `100 Continue`, within the time that a client has for its next request's head.
async fn send_continue<L: ClientLink>(client: &mut Client<L>) -> Result<(), ExchangeFailure> {
    let deadline = Instant::now() + client.settings.limits.header_timeout;
    let mut left = CONTINUE;
    poll_fn(|cx| {
        client.subscription.poll(cx);
        let gone = || Poll::Ready(Err(ExchangeFailure::Client(Termination::ClientGone)));
        while !left.is_empty() {
            match client.link.poll_write(cx, Parts { head: left, last: false, ..Parts::LAST }) {
                Poll::Ready(Ok(written @ 1..)) => left = &left[written..],
                Poll::Ready(_) => return gone(),
                Poll::Pending => return pending(cx, client, deadline),
            }
        }
        match client.link.poll_flush(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Ready(Err(_)) => gone(),
            Poll::Pending => pending(cx, client, deadline),
        }
    })
    .await
}

/// The client doesn't take what it is sent.
fn pending<L: ClientLink>(
    cx: &mut Context<'_>,
    client: &mut Client<L>,
    deadline: Instant,
) -> Poll<Result<(), ExchangeFailure>> {
    if let Err(failure) = check_end(cx, client) {
        return Poll::Ready(Err(failure));
    }
    match client.timer.poll_expired(cx, deadline) {
        true => Poll::Ready(Err(ExchangeFailure::Client(Termination::ClientTimeout))),
        false => Poll::Pending,
    }
}

/// Whether the process stops now, or the client has cancelled its request.
fn check_end<L: ClientLink>(cx: &mut Context<'_>, client: &mut Client<L>) -> Result<(), ExchangeFailure> {
    if client.subscription.stage() == StopStage::Cutting {
        Err(ExchangeFailure::Cut(Termination::Stop))
    } else if client.link.poll_cancelled(cx) {
        Err(ExchangeFailure::Client(Termination::ClientGone))
    } else {
        Ok(())
    }
}

/// A body that is being read.
struct Collector<'a> {
    scanner: BodyScanner,
    settings: &'a PathSettings,
    rules: RequestBuffer,
    memory: Vec<u8>,
    share: Share,
    spool: Option<Spool>,
    writing: Option<Writing>,
    /// What was read and isn't stored.
    input: Option<Buffer>,
    /// How much of it belongs to the body.
    cleared: usize,
    /// Bytes in memory and on disk.
    stored: u64,
    /// Bytes read.
    received: u64,
    /// When a byte last moved.
    moved: Instant,
    pace: Pace,
}

/// A write to the disk.
struct Writing {
    task: JoinHandle<Written>,
    since: Instant,
    /// The bytes are those of the memory, and not a copy of the input.
    of_memory: bool,
}

/// How reading a body has ended.
#[derive(Clone, Copy)]
enum Ended {
    Complete,
    /// It can't be buffered any further.
    Full(Buffered),
}

impl Collector<'_> {
    fn poll<L: ClientLink>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Client<L>,
    ) -> Poll<Result<Ended, ExchangeFailure>> {
        let mut turn = 0;
        loop {
            if let Some(writing) = &mut self.writing {
                let Poll::Ready(written) = Pin::new(&mut writing.task).poll(cx) else {
                    return self.check_disk(cx, client);
                };
                // A panic there has already been logged.
                let written = written.map_err(|_| ExchangeFailure::Storage)?;
                if let Some(full) = self.wrote(written, &client.worker.admission.buffers) {
                    return Poll::Ready(Ok(full));
                }
            }
            match self.store(&client.worker.admission.buffers, &client.settings.request_buffers)? {
                Stored::Writes => continue,
                Stored::Full(reason) => return Poll::Ready(Ok(Ended::Full(reason))),
                Stored::All if self.scanner.is_done() => return Poll::Ready(Ok(Ended::Complete)),
                Stored::All => {}
            }
            if turn >= TURN_BYTES {
                give_way(cx);
                return Poll::Pending;
            }
            let gone = ExchangeFailure::Client(Termination::ClientGone);
            match client.link.poll_fill(cx, &mut self.input) {
                Poll::Ready(Ok(0)) => self.scanner.end_of_input().map_err(|_| gone)?,
                Poll::Ready(Ok(read)) => {
                    turn += read;
                    self.received += read as u64;
                    self.moved = Instant::now();
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Err(gone)),
                Poll::Pending => return self.check_client(cx, client),
            }
        }
    }

    /// Stores what was read, as far as it belongs to the body.
    fn store(&mut self, budgets: &BufferBudgets, limits: &RequestBuffers) -> Result<Stored, ExchangeFailure> {
        let Some(input) = &mut self.input else { return Ok(Stored::All) };
        if self.cleared == 0 {
            let bad = |_| ExchangeFailure::Client(Termination::BadRequest);
            self.cleared = self.scanner.take(input.filled()).map_err(bad)?;
            if self.settings.limits.body_bytes.is_some_and(|most| self.scanner.content() > most) {
                return Err(ExchangeFailure::Client(Termination::TooLarge));
            }
        }
        let bytes = self.cleared as u64;
        if bytes == 0 {
            return Ok(Stored::All);
        }
        if self.stored.saturating_add(bytes) > self.rules.max_bytes {
            return Ok(Stored::Full(Buffered::TooLarge));
        }
        let most = match &self.spool {
            None => self.rules.memory_bytes,
            Some(_) => self.rules.memory_bytes.min(WRITE_BYTES),
        };
        let wanted = self.memory.len() as u64 + bytes;
        if wanted <= most && reserve(&mut self.memory, &mut self.share, (wanted, most), limits.memory_bytes) {
            self.memory.extend_from_slice(&input.filled()[..self.cleared]);
            self.take_input();
            return Ok(Stored::All);
        }
        let Some(directory) = &limits.directory else {
            return Ok(Stored::Full(if wanted <= most { Buffered::MemoryFull } else { Buffered::TooLarge }));
        };
        let of_memory = !self.memory.is_empty();
        let bytes = if of_memory { self.memory.len() as u64 } else { bytes };
        let mut spool = self.spool.take().unwrap_or_else(|| Spool::new(directory.clone(), budgets.of_disk()));
        if !spool.share.grow(bytes, limits.disk_bytes) {
            self.spool = Some(spool);
            return Ok(Stored::Full(Buffered::DiskFull));
        }
        let bytes = if of_memory {
            std::mem::take(&mut self.memory)
        } else {
            input.filled()[..self.cleared].to_vec()
        };
        self.writing = Some(Writing { task: spool.append(bytes), since: Instant::now(), of_memory });
        Ok(Stored::Writes)
    }

    /// The input's part of the body is stored.
    fn take_input(&mut self) {
        let bytes = std::mem::take(&mut self.cleared);
        self.stored += bytes as u64;
        if let Some(input) = &mut self.input {
            input.consume(bytes);
        }
        self.input = self.input.take().filter(|input| !input.is_empty());
    }

    /// A write has ended. `Some`: it failed, so what wasn't written stays in memory, or is the input still.
    fn wrote(&mut self, written: Written, budgets: &BufferBudgets) -> Option<Ended> {
        let of_memory = self.writing.take().is_some_and(|writing| writing.of_memory);
        let Written { spool, mut bytes, written, failed } = written;
        self.moved = Instant::now();
        self.spool = Some(spool);
        if of_memory {
            bytes.drain(..written);
            if bytes.is_empty() {
                self.share.clear();
            } else {
                self.memory = bytes;
            }
        } else if failed.is_none() {
            self.take_input();
        } else if let Some(input) = &mut self.input {
            input.consume(written);
            self.cleared -= written;
            self.stored += written as u64;
        }
        let error = std::io::Error::from(failed?);
        if let Some(more_since_last_line) = budgets.logged.allows() {
            let error = plain(&error);
            tracing::warn!(
                error,
                more_since_last_line,
                "cannot write a request body to server.request_buffers.directory; the request is streamed to the app instead"
            );
        }
        Some(Ended::Full(Buffered::DiskError))
    }

    /// The client has sent nothing more.
    fn check_client<L: ClientLink>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Client<L>,
    ) -> Poll<Result<Ended, ExchangeFailure>> {
        check_end(cx, client)?;
        let slow = || ExchangeFailure::Client(Termination::ClientTimeout);
        let limits = &self.settings.limits;
        loop {
            let deadline = self.moved + self.settings.timeouts.client;
            let mut next = deadline;
            if limits.min_body_rate > 0 {
                let now = Instant::now();
                let received = || self.received;
                let paced = self.pace.waits(now, limits.min_body_rate, limits.rate_window, received);
                next = next.min(paced.map_err(|_| slow())?);
            }
            if !client.timer.poll_expired(cx, next) {
                return Poll::Pending;
            }
            if Instant::now() >= deadline {
                return Poll::Ready(Err(slow()));
            }
        }
    }

    /// The disk has not taken everything yet. The client isn't waited for meanwhile.
    fn check_disk<L: ClientLink>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Client<L>,
    ) -> Poll<Result<Ended, ExchangeFailure>> {
        self.pace.stop(Instant::now());
        check_end(cx, client)?;
        let since = self.writing.as_ref().map_or(self.moved, |writing| writing.since);
        match client.timer.poll_expired(cx, since + WRITE_TIME) {
            true => Poll::Ready(Err(ExchangeFailure::Storage)),
            false => Poll::Pending,
        }
    }

    /// The body, ready to be sent.
    fn finish(
        self,
        ended: Ended,
        framing: Framing,
        coding: Coding,
    ) -> Result<(BufferedBody, Buffered), ExchangeFailure> {
        let spooled = self.spool.as_ref().is_some_and(|spool| !spool.is_empty());
        let (complete, counted) = match ended {
            Ended::Complete if spooled => (true, Buffered::File),
            Ended::Complete => (true, Buffered::Memory),
            Ended::Full(reason) => (false, reason),
        };
        // The head of a complete body says how long it is.
        let length = (complete && !matches!(framing, Framing::Length(_))).then(|| self.scanner.content());
        let form = match (complete, framing) {
            (true, Framing::Chunked) => (framing, Coding::Unchunk),
            (true, _) => (Framing::Length(self.scanner.content()), Coding::AsItIs),
            (false, _) => (framing, coding),
        };
        let file = self.spool.map(Spool::into_source).transpose().map_err(|_| ExchangeFailure::Storage)?;
        let body = BufferedBody {
            file: file.flatten(),
            memory: self.memory,
            read: 0,
            memory_share: self.share,
            rest: self.input,
            complete,
            length,
            form,
            broken: false,
        };
        Ok((body, counted))
    }
}

/// What [`Collector::store`] has done.
enum Stored {
    /// Everything that was read is stored.
    All,
    /// It is being written to the disk.
    Writes,
    /// It can't be stored.
    Full(Buffered),
}

/// Makes room in memory for so many bytes in all, if they may have it. It grows as the body arrives: a length that a client
/// only announces takes none.
fn reserve(memory: &mut Vec<u8>, share: &mut Share, (wanted, most): (u64, u64), most_of_all: u64) -> bool {
    let has = memory.capacity() as u64;
    if wanted <= has {
        return true;
    }
    let mut capacity = wanted.max(has.saturating_mul(2)).min(most);
    if !share.grow(capacity - has, most_of_all) {
        capacity = wanted;
        if !share.grow(capacity - has, most_of_all) {
            return false;
        }
    }
    memory.reserve_exact(usize::try_from(capacity).unwrap_or(usize::MAX) - memory.len());
    true
}
