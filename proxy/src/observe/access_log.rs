//! The access log, off the path of requests: a worker appends lines to a buffer of its own; full buffers go to one
//! writing thread through a bounded queue. If the disk can't keep up, lines are lost and counted; requests never wait.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use super::line::{Clock, Line};
use super::meters::Meters;
use crate::config::{AccessLog, AccessLogFormat};

/// A worker hands its buffer over when it holds this much.
const HAND_OVER_BYTES: usize = 32 << 10;

/// How long a line may wait in a worker's buffer.
pub const HAND_OVER_AFTER: Duration = Duration::from_millis(100);

/// Buffers between the workers and the writing thread: 4 MiB of lines, some 15,000 of them.
const QUEUE_BUFFERS: usize = 128;

struct Batch {
    bytes: Vec<u8>,
    lines: u64,
}

/// One worker's end of the access log. Used by its own thread alone, so its lock is never waited for.
pub struct LogLane {
    format: AccessLogFormat,
    buffer: Mutex<LaneBuffer>,
    queue: SyncSender<Batch>,
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
    /// Whether lines are wanted at all.
    pub fn is_on(&self) -> bool {
        self.format != AccessLogFormat::Off
    }

    /// Appends a line.
    pub fn write(&self, line: &Line<'_>) {
        let mut buffer = self.buffer.lock();
        let buffer = &mut *buffer;
        line.write(self.format, &mut buffer.clock, &mut buffer.bytes);
        buffer.lines += 1;
        if buffer.bytes.len() >= HAND_OVER_BYTES {
            self.hand_over(buffer);
        }
    }

    /// Hands over what there is.
    pub fn flush(&self) {
        let mut buffer = self.buffer.lock();
        if !buffer.bytes.is_empty() {
            self.hand_over(&mut buffer);
        }
    }

    fn hand_over(&self, buffer: &mut LaneBuffer) {
        let bytes = std::mem::replace(&mut buffer.bytes, Vec::with_capacity(HAND_OVER_BYTES + 1024));
        let lines = std::mem::take(&mut buffer.lines);
        if self.queue.try_send(Batch { bytes, lines }).is_err() {
            self.meters.worker(self.worker).log_lines_lost.fetch_add(lines, Ordering::Relaxed);
        }
    }
}

/// Starts the access log: one lane for each worker, and the writing thread, which ends when the last lane is gone.
///
/// # Errors
/// The file can't be opened, or the thread can't be started.
pub fn start(
    config: &AccessLog,
    workers: usize,
    meters: &Arc<Meters>,
) -> io::Result<(Vec<LogLane>, JoinHandle<()>)> {
    let (queue, batches) = sync_channel(QUEUE_BUFFERS);
    let sink: Box<dyn Write + Send> = match (&config.path, config.format) {
        (_, AccessLogFormat::Off) => Box::new(io::sink()),
        (Some(path), _) => Box::new(open(path)?),
        (None, _) => Box::new(io::stdout()),
    };
    let writer_meters = Arc::clone(meters);
    let writer = std::thread::Builder::new()
        .name("access-log".to_owned())
        .spawn(move || write_all(sink, &batches, &writer_meters))?;
    let lane = |worker| LogLane {
        format: config.format,
        buffer: Mutex::default(),
        queue: queue.clone(),
        meters: Arc::clone(meters),
        worker,
    };
    Ok(((0..workers).map(lane).collect(), writer))
}

fn open(path: &std::path::Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .map_err(|e| io::Error::new(e.kind(), format!("cannot open the access log {}: {e}", path.display())))
}

fn write_all(mut sink: Box<dyn Write + Send>, batches: &Receiver<Batch>, meters: &Meters) {
    let mut failing = false;
    for batch in batches {
        let result = sink.write_all(&batch.bytes).and_then(|()| sink.flush());
        match result {
            Ok(()) => failing = false,
            Err(error) => {
                meters.worker(0).log_lines_lost.fetch_add(batch.lines, Ordering::Relaxed);
                // Said once for each stretch of failures, not once a batch.
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "cannot write the access log; lines are lost and counted");
                }
            }
        }
    }
}
