//! A relay that holds bytes back for a while, as a long line does. It keeps their order and loses none.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

/// Pieces on their way at once, in each direction of a connection.
const ON_THE_WAY: usize = 64;

/// A relay before an app. It ends with the runtime.
#[derive(Debug)]
pub struct Late {
    /// Where it listens.
    pub address: SocketAddr,
    by: Arc<watch::Sender<Duration>>,
}

impl Late {
    /// Starts it on the current runtime; at first it holds nothing back.
    ///
    /// # Errors
    /// When it can't listen.
    pub async fn before(app: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let by = Arc::new(watch::Sender::new(Duration::ZERO));
        let late = Arc::clone(&by);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(client, app, Arc::clone(&late)));
            }
        });
        Ok(Self { address, by })
    }

    /// From now on bytes are this late, each way.
    pub fn hold(&self, by: Duration) {
        self.by.send_replace(by);
    }
}

/// Until both sides are done. If one side can't be reached, or breaks, the other's connection is closed.
async fn relay(client: TcpStream, app: SocketAddr, by: Arc<watch::Sender<Duration>>) -> Option<()> {
    let app = TcpStream::connect(app).await.ok()?;
    for side in [&client, &app] {
        side.set_nodelay(true).ok()?;
    }
    let (from_client, to_client) = client.into_split();
    let (from_app, to_app) = app.into_split();
    tokio::try_join!(carry(from_client, to_app, &by), carry(from_app, to_client, &by)).ok()?;
    Some(())
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    by: &watch::Sender<Duration>,
) -> std::io::Result<()> {
    let (due, mut pieces) = mpsc::channel(ON_THE_WAY);
    let reading = async move {
        loop {
            let mut piece = Vec::with_capacity(16 << 10);
            let count = from.read_buf(&mut piece).await?;
            let at = Instant::now() + *by.borrow();
            // An error: nobody takes it any more, and the writing has said why.
            if due.send((at, piece)).await.is_err() || count == 0 {
                return Ok(());
            }
        }
    };
    let writing = async move {
        while let Some((at, piece)) = pieces.recv().await {
            sleep_until(at).await;
            to.write_all(&piece).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(reading, writing).map(|_| ())
}
