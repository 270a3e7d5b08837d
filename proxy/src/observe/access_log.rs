//! The access log, off the path of requests: a worker appends lines to a buffer of its own; full buffers go to one
//! writer thread through a bounded queue. If the disk can't keep up, lines are dropped and counted; requests never
//! wait.
//!
//! [`LogControl`] changes format and file at run time, for reloads and log rotation.

mod queue;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::OFlags;
use uh_system::plain;

use super::line::{AccessLine, Clock};
use super::meters::Meters;
use crate::config::{AccessLog, AccessLogFormat};
pub(crate) use queue::Pending;
use queue::{Batch, HAND_OVER_BYTES, KEPT_BYTES, LAST_LINE_BYTES, Spares};

/// How long a line may wait in a worker's buffer.
pub(crate) const HAND_OVER_AFTER: Duration = Duration::from_millis(100);

/// Buffers queued between the workers and the writer thread.
const QUEUE_BUFFERS: usize = 128;

/// Opening a pipe without a reader must fail, not block indefinitely.
const NONBLOCK: i32 = OFlags::NONBLOCK.bits().cast_signed();

/// One worker's end of the access log. Only used by its own thread, so its lock is never contended.
pub(crate) struct LogLane {
    format: Arc<SharedFormat>,
    buffer: Mutex<LaneBuffer>,
    queue: SyncSender<Batch>,
    pending: Arc<Pending>,
    spares: Arc<Spares>,
    meters: Arc<Meters>,
    worker: usize,
}

#[derive(Default)]
struct LaneBuffer {
    bytes: Vec<u8>,
    lines: u64,
    clock: Clock,
}

impl LogLane {
    /// Whether the access log is on.
    pub(crate) fn is_on(&self) -> bool {
        self.format.get() != AccessLogFormat::Off
    }

    /// Whether its lines have the backend's version.
    pub(crate) fn names_version(&self) -> bool {
        self.format.get() == AccessLogFormat::Json
    }

    /// Appends a line.
    pub(crate) fn write(&self, line: &AccessLine<'_>) {
        let mut buffer = self.buffer.lock();
        let buffer = &mut *buffer;
        // In one step, or a buffer that is half full would be copied to grow.
        if buffer.bytes.len() > KEPT_BYTES && buffer.bytes.capacity() < HAND_OVER_BYTES {
            buffer.bytes.reserve_exact(HAND_OVER_BYTES + LAST_LINE_BYTES - buffer.bytes.len());
        }
        line.write(self.format.get(), &mut buffer.clock, &mut buffer.bytes);
        buffer.lines += 1;
        if buffer.bytes.len() >= HAND_OVER_BYTES {
            self.hand_over(buffer);
        }
    }

    /// Flushes the buffer.
    pub(crate) fn flush(&self) {
        let mut buffer = self.buffer.lock();
        if !buffer.bytes.is_empty() {
            self.hand_over(&mut buffer);
        } else if buffer.bytes.capacity() > KEPT_BYTES {
            buffer.bytes = self.spares.take();
        }
    }

    fn hand_over(&self, buffer: &mut LaneBuffer) {
        let bytes = std::mem::replace(&mut buffer.bytes, self.spares.take());
        let batch = Batch { bytes, lines: std::mem::take(&mut buffer.lines) };
        // Before it is sent, or the writer thread could subtract first.
        let sent = if self.pending.add(&batch) {
            self.queue.try_send(batch)
        } else {
            Err(TrySendError::Full(batch))
        };
        if let Err(TrySendError::Full(batch) | TrySendError::Disconnected(batch)) = sent {
            self.pending.subtract(&batch);
            self.meters.worker(self.worker).log_lines_lost.fetch_add(batch.lines, Ordering::Relaxed);
            self.spares.put(batch.bytes);
        }
    }
}

/// Where lines go.
pub(crate) struct Sink {
    out: Box<dyn Write + Send>,
    /// The file, if it is one.
    path: Option<PathBuf>,
    /// Whether the file ends in a partial line, as after a full disk. It is terminated before anything else is written,
    /// so that it doesn't corrupt the next line.
    torn: bool,
}

impl Sink {
    fn to(out: impl Write + Send + 'static) -> Self {
        Self { out: Box::new(out), path: None, torn: false }
    }

    /// Checks how the file ends: an earlier process may have left a partial line.
    fn look(&mut self) {
        self.torn = self.path.as_deref().is_some_and(|path| ends_in_half_a_line(path).unwrap_or(false));
    }
}

fn ends_in_half_a_line(path: &Path) -> io::Result<bool> {
    let file = OpenOptions::new().read(true).custom_flags(NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    let mut last = [b'\n'];
    if metadata.is_file() && metadata.len() > 0 {
        file.read_exact_at(&mut last, metadata.len() - 1)?;
    }
    Ok(last != [b'\n'])
}

/// The current format. Read for each line, written by a reload.
#[derive(Debug)]
struct SharedFormat(AtomicU8);

impl SharedFormat {
    fn get(&self) -> AccessLogFormat {
        const ALL: [AccessLogFormat; 4] = [
            AccessLogFormat::Json,
            AccessLogFormat::Combined,
            AccessLogFormat::TimedCombined,
            AccessLogFormat::Off,
        ];
        let format = self.0.load(Ordering::Relaxed);
        ALL.into_iter().find(|known| *known as u8 == format).unwrap_or(AccessLogFormat::Off)
    }
}

/// Changes the file and format of the access log.
#[derive(Clone)]
pub(crate) struct LogControl {
    format: Arc<SharedFormat>,
    next: Arc<Mutex<PendingChange>>,
}

/// A change that the writer thread applies before its next batch.
struct PendingChange {
    /// Where lines go from then on; `None`: no change.
    sink: Option<Sink>,
    /// The current configuration.
    config: AccessLog,
}

/// The result of [`LogControl::reopen`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reopened {
    /// Lines now go to the file with this name.
    File(PathBuf),
    /// The log isn't a file, or is off.
    NoFile,
}

impl LogControl {
    /// Lines that are handed over from now on go to `sink`, which was opened for `config`. This never waits for a disk:
    /// the writer thread checks for a change before it writes.
    pub(crate) fn redirect(&self, config: AccessLog, sink: Sink) {
        let mut next = self.next.lock();
        self.format.0.store(config.format as u8, Ordering::Relaxed);
        *next = PendingChange { sink: Some(sink), config };
    }

    /// Reopens the file under its configured name, after a log rotation has renamed it. May wait for a disk.
    ///
    /// # Errors
    /// If it can't be opened; lines continue to go to the old file then.
    pub(crate) fn reopen(&self) -> io::Result<Reopened> {
        let config = self.next.lock().config.clone();
        let Some(path) = config.path.clone().filter(|_| config.format != AccessLogFormat::Off) else {
            return Ok(Reopened::NoFile);
        };
        let sink = open(&config)?;
        let mut next = self.next.lock();
        // A reload has opened a newer file meanwhile.
        if next.config == config {
            next.sink = Some(sink);
        }
        Ok(Reopened::File(path))
    }
}

/// A running access log.
pub(crate) struct Started {
    /// One lane for each worker.
    pub lanes: Vec<LogLane>,
    /// Changes it.
    pub log_control: LogControl,
    /// The writer thread. It ends when the last lane is gone.
    pub writer: JoinHandle<()>,
    /// What it hasn't written yet.
    pub pending: Arc<Pending>,
}

/// Starts the access log.
///
/// # Errors
/// The file can't be opened, or the thread can't be started.
pub(crate) fn start(config: &AccessLog, workers: usize, meters: &Arc<Meters>) -> io::Result<Started> {
    let (queue, batches) = sync_channel(QUEUE_BUFFERS);
    let format = Arc::new(SharedFormat(AtomicU8::new(config.format as u8)));
    let next = PendingChange { sink: Some(open(config)?), config: config.clone() };
    let log_control = LogControl { format: Arc::clone(&format), next: Arc::new(Mutex::new(next)) };
    let pending = Arc::<Pending>::default();
    let spares = Arc::new(Spares::new(workers));
    let from =
        Written { pending: Arc::clone(&pending), spares: Arc::clone(&spares), meters: Arc::clone(meters) };
    let next = Arc::clone(&log_control.next);
    let writer = std::thread::Builder::new()
        .name("access-log".to_owned())
        .spawn(move || write_all(&next, batches, &from))?;
    let lane = |worker| LogLane {
        format: Arc::clone(&format),
        buffer: Mutex::default(),
        queue: queue.clone(),
        pending: Arc::clone(&pending),
        spares: Arc::clone(&spares),
        meters: Arc::clone(meters),
        worker,
    };
    Ok(Started { lanes: (0..workers).map(lane).collect(), log_control, writer, pending })
}

/// Opens the log of a configuration.
///
/// # Errors
/// The file can't be opened.
pub(crate) fn open(config: &AccessLog) -> io::Result<Sink> {
    Ok(match (&config.path, config.format) {
        (_, AccessLogFormat::Off) => Sink::to(io::sink()),
        (Some(path), _) => Sink { path: Some(path.clone()), ..Sink::to(open_file(path)?) },
        (None, _) => Sink::to(io::stdout()),
    })
}

fn open_file(path: &Path) -> io::Result<File> {
    let open = || {
        let file = OpenOptions::new().append(true).create(true).custom_flags(NONBLOCK).open(path)?;
        // From then on blocking is fine: only the writer thread waits.
        rustix::fs::fcntl_setfl(&file, OFlags::APPEND)?;
        Ok(file)
    };
    open().map_err(|e: io::Error| {
        let pipe = if e.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) {
            " (a pipe without a reader)"
        } else {
            ""
        };
        io::Error::new(
            e.kind(),
            format!("cannot open the access log {}: {}{pipe}", path.display(), plain(&e)),
        )
    })
}

/// What the writer thread reports and gives back.
struct Written {
    pending: Arc<Pending>,
    spares: Arc<Spares>,
    meters: Arc<Meters>,
}

fn write_all(next: &Mutex<PendingChange>, batches: Receiver<Batch>, from: &Written) {
    let mut failing = false;
    let mut sink = Sink::to(io::sink());
    for batch in batches {
        let other = next.lock().sink.take();
        if let Some(other) = other {
            sink = other;
            sink.look();
        }
        let (lost, error) = write_batch(&mut sink, &batch);
        from.pending.subtract(&batch);
        from.spares.put(batch.bytes);
        from.meters.worker(0).log_lines_lost.fetch_add(lost, Ordering::Relaxed);
        match error {
            None => failing = false,
            // Logged once per series of failures, not once per batch.
            Some(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(error = %plain(&error), "cannot write the access log; lost lines are counted");
                }
            }
        }
    }
}

/// Writes a batch, and returns how many of its lines were lost, and why.
fn write_batch(sink: &mut Sink, batch: &Batch) -> (u64, Option<io::Error>) {
    if sink.torn {
        match sink.out.write_all(b"\n") {
            Ok(()) => sink.torn = false,
            Err(error) => return (batch.lines, Some(error)),
        }
    }
    let mut written = 0;
    let error = loop {
        match sink.out.write(&batch.bytes[written..]) {
            _ if written == batch.bytes.len() => break sink.out.flush().err(),
            Ok(0) => break Some(io::ErrorKind::WriteZero.into()),
            Ok(some) => written += some,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Some(error),
        }
    };
    // The usual case isn't worth a look at every byte.
    if written == batch.bytes.len() {
        sink.torn = false;
        return (0, error);
    }
    let done = &batch.bytes[..written];
    sink.torn = done.last().is_some_and(|&last| last != b'\n');
    let whole = done.iter().filter(|&&byte| byte == b'\n').count() as u64;
    (batch.lines.saturating_sub(whole), error)
}

#[cfg(test)]
mod tests;
