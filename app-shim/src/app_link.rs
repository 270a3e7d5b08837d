//! Opens byte streams to the app, for requests, for probes, and to find out whether it accepts connections at all.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hyper::rt::{Read, Write};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::settings::AppAddress;

/// How long the app may take to accept a connection. It is on this machine, so only a full backlog takes longer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A byte stream to the app, TCP or Unix.
pub(crate) trait AppStream: Read + Write + Unpin + Send {}

impl<T: Read + Write + Unpin + Send> AppStream for T {}

/// Opens a byte stream to the app.
pub(crate) async fn connect(app: &AppAddress) -> io::Result<Box<dyn AppStream>> {
    let connecting = async {
        match app {
            AppAddress::Tcp(address) => tcp(*address).await,
            AppAddress::Localhost(port) => match tcp((Ipv4Addr::LOCALHOST, *port).into()).await {
                Ok(stream) => Ok(stream),
                // Report the IPv4 error: hardly any app listens on ::1 only.
                Err(error) => tcp((Ipv6Addr::LOCALHOST, *port).into()).await.map_err(|_| error),
            },
            AppAddress::Unix(path) => {
                Ok(Box::new(TokioIo::new(UnixStream::connect(path).await?)) as Box<dyn AppStream>)
            }
        }
    };
    timeout(CONNECT_TIMEOUT, connecting).await?
}

async fn tcp(address: SocketAddr) -> io::Result<Box<dyn AppStream>> {
    let stream = TcpStream::connect(address).await?;
    // Send each piece immediately. If this fails, pieces are only delayed.
    let _ = stream.set_nodelay(true);
    Ok(Box::new(TokioIo::new(stream)))
}
