//! Messages: one JSON object a line.

use std::io;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use uh_protocol::{BackendName, ServiceName};
use uh_switching::Holding;

use crate::state::file::StateFile;

/// The longest message: a state file, whose size is limited to 4 MiB.
pub(crate) const MAX_MESSAGE_BYTES: u64 = 5 << 20;

/// Messages that wait to be read by their receiver.
const QUEUE: usize = 16;

/// How long the other process may take to read a message.
const SEND_WITHIN: Duration = Duration::from_secs(1);

/// What a successor says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(crate) enum FromSuccessor {
    /// It wants to take over.
    Join {
        /// Its version.
        version: String,
        /// It is the one that the other one has replaced, and was sent [`FromSuccessor::Back`].
        #[serde(default)]
        back: bool,
    },
    /// It knows enough: refuse changes and release the locks.
    Yield {
        /// The endpoints that it doesn't find healthy. If the other one does, it answers [`FromPredecessor::NotYet`].
        #[serde(default)]
        unhealthy: Vec<EndpointName>,
    },
    /// It accepts connections: stop doing so.
    Leading,
    /// It takes changes, and answers on the admin socket.
    Ready,
    /// The routing that is in force from now on.
    Follow {
        /// Increases with every message.
        seq: u64,
        /// The routing, as it is on disk.
        state: Box<StateFile>,
    },
    /// Cut what a standby still holds.
    Cut {
        /// The service.
        service: ServiceName,
        /// The backend.
        backend: BackendName,
    },
    /// Close a standby's tunnels, one after the other.
    CloseTunnels {
        /// The service.
        service: ServiceName,
        /// The backend.
        backend: BackendName,
        /// How long that takes.
        over_ms: u64,
    },
    /// Take the lead back: join this process as one that takes over.
    Back,
    /// Don't lead again, even if this process ends.
    Leave,
    /// What a later version says, and this one ignores.
    #[serde(other)]
    Unknown,
}

/// What a predecessor says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(crate) enum FromPredecessor {
    /// It leads, and this is what it knows.
    Joined {
        /// Its version.
        version: String,
        /// Its process id.
        pid: u32,
        /// The routing.
        state: Box<StateFile>,
        /// The endpoints that pass its probes.
        healthy: Vec<EndpointName>,
    },
    /// It goes on leading.
    Refused {
        /// Why.
        reason: String,
    },
    /// It finds endpoints healthy that the other one doesn't.
    NotYet {
        /// All that it finds healthy now.
        healthy: Vec<EndpointName>,
    },
    /// It has released the locks.
    Yielded {
        /// The generation of the routing on disk.
        generation: u64,
    },
    /// What it still holds.
    Counts(Counts),
    /// What a later version says, and this one ignores.
    #[serde(other)]
    Unknown,
}

/// An endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EndpointName {
    pub(crate) service: ServiceName,
    pub(crate) backend: BackendName,
    pub(crate) address: String,
}

/// What a predecessor still holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Counts {
    /// The last routing that it follows.
    pub(crate) seq: u64,
    /// It doesn't lead again, as it was ordered.
    pub(crate) leaves: bool,
    /// Every backend.
    pub(crate) backends: Vec<BackendCounts>,
}

/// What a predecessor holds on a backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BackendCounts {
    pub(crate) service: ServiceName,
    pub(crate) backend: BackendName,
    /// In all its activations.
    #[serde(default)]
    pub(crate) holding: InFlight,
    /// In those that get no new requests; `None`: it gets new requests.
    #[serde(default)]
    pub(crate) past: Option<InFlight>,
    /// Whether the past ones are drained, exactly.
    #[serde(default)]
    pub(crate) drained: bool,
    /// Requests that were cut there since the process started.
    #[serde(default)]
    pub(crate) cut: u64,
}

/// Requests and tunnels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct InFlight {
    pub(crate) requests: u64,
    pub(crate) tunnels: u64,
}

impl From<Holding> for InFlight {
    fn from(Holding { requests, tunnels }: Holding) -> Self {
        Self { requests, tunnels }
    }
}

impl From<InFlight> for Holding {
    fn from(InFlight { requests, tunnels }: InFlight) -> Self {
        Self { requests, tunnels }
    }
}

/// A message as a line.
///
/// # Errors
/// Never for these values.
pub(crate) fn line(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// Where messages are sent to.
pub(crate) struct Sender(OwnedWriteHalf);

impl Sender {
    /// Sends a message.
    ///
    /// # Errors
    /// The other process is gone, or doesn't read.
    pub(crate) async fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        let line = line(message)?;
        tokio::time::timeout(SEND_WITHIN, self.0.write_all(&line)).await?
    }
}

/// Splits a connection into received messages, whose end is that of the connection, and where to send some.
pub(crate) fn messages<T: DeserializeOwned + Send + 'static>(
    stream: UnixStream,
) -> (mpsc::Receiver<T>, Sender) {
    let (from, to) = stream.into_split();
    let (queue, received) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let mut from = BufReader::new(from);
        loop {
            let message = tokio::select! {
                message = next(&mut from) => message,
                () = queue.closed() => return,
            };
            match message {
                Ok(Some(message)) => {
                    if queue.send(message).await.is_err() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(error = %uh_system::plain(&error), "cannot read a message of the other uh-proxy");
                    return;
                }
            }
        }
    });
    (received, Sender(to))
}

async fn next<T: DeserializeOwned>(from: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    from.take(MAX_MESSAGE_BYTES).read_until(b'\n', &mut line).await?;
    match line.last() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(serde_json::from_slice(&line)?)),
        Some(_) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_arrive_in_order_and_end_with_the_connection() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut received, _to) = messages::<FromSuccessor>(there);
        let (_from, mut sender) = messages::<FromPredecessor>(here);
        sender.send(&FromSuccessor::Join { version: "1".to_owned(), back: false }).await.unwrap();
        sender.send(&FromSuccessor::Yield { unhealthy: Vec::new() }).await.unwrap();
        assert!(matches!(received.recv().await, Some(FromSuccessor::Join { .. })));
        assert!(matches!(received.recv().await, Some(FromSuccessor::Yield { .. })));
        drop((_from, sender));
        assert!(received.recv().await.is_none());
    }

    #[tokio::test]
    async fn half_a_message_is_none() {
        let (mut here, there) = UnixStream::pair().unwrap();
        let (mut received, _to) = messages::<FromSuccessor>(there);
        here.write_all(b"{\"say\":\"yield\"}\n{\"say\":\"lead").await.unwrap();
        drop(here);
        assert!(matches!(received.recv().await, Some(FromSuccessor::Yield { .. })));
        assert!(received.recv().await.is_none());
    }

    #[test]
    fn counts_are_one_message() {
        let counts = FromPredecessor::Counts(Counts { seq: 1, ..Counts::default() });
        let text = String::from_utf8(line(&counts).unwrap()).unwrap();
        assert!(
            matches!(serde_json::from_str(&text), Ok(FromPredecessor::Counts(Counts { seq: 1, .. }))),
            "{text}"
        );
    }

    #[test]
    fn what_another_version_says_more_or_less_is_no_error() {
        let read = |text| serde_json::from_str::<FromPredecessor>(text).unwrap();
        assert!(matches!(read(r#"{"say":"farewell","until":1}"#), FromPredecessor::Unknown));
        let text = r#"{"say":"counts","more":1,"backends":[{"service":"app","backend":"blue","more":[]}]}"#;
        let FromPredecessor::Counts(counts) = read(text) else { panic!("no counts") };
        assert_eq!(counts.seq, 0);
        assert!(!counts.backends[0].drained && counts.backends[0].past.is_none());
        let order: FromSuccessor = serde_json::from_str(r#"{"say":"pause"}"#).unwrap();
        assert!(matches!(order, FromSuccessor::Unknown));
        let order: FromSuccessor = serde_json::from_str(r#"{"say":"yield"}"#).unwrap();
        assert!(matches!(order, FromSuccessor::Yield { unhealthy } if unhealthy.is_empty()));
    }
}
