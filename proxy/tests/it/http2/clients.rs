//! A client that speaks HTTP/2, over plain TCP or TLS.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response, StatusCode};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use crate::harness::{Home, Proxy, SampleApp, soon};
use crate::tls::certificates::Site;
use crate::tls::clients::Rustls;

/// A connection.
pub(crate) struct Client {
    pub(crate) requests: SendRequest<Bytes>,
    /// How the connection has ended.
    pub(crate) ended: JoinHandle<Result<(), h2::Error>>,
}

/// A complete response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// The URL of a path on `app.test`.
pub(crate) fn url(path: &str) -> String {
    format!("https://app.test{path}")
}

pub(crate) fn get(path: &str) -> Request<()> {
    Request::get(url(path)).body(()).unwrap()
}

impl Client {
    pub(crate) async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(1 << 20).initial_connection_window_size(16 << 20);
        Self::with(&builder, stream).await
    }

    pub(crate) async fn with(
        builder: &h2::client::Builder,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Self {
        let handshake = builder.handshake::<_, Bytes>(stream);
        let (requests, connection) = soon("a handshake", handshake).await.unwrap();
        Self { requests, ended: tokio::spawn(connection) }
    }

    pub(crate) async fn plain(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap()).await
    }

    /// Over TLS, for `app.test`.
    pub(crate) async fn tls(site: &Site) -> Self {
        Self::over(tls_stream(site, "app.test").await).await
    }

    /// Opens a stream. `ends`: without a body.
    pub(crate) async fn open(&self, request: Request<()>, ends: bool) -> (ResponseFuture, SendStream<Bytes>) {
        let mut requests = soon("a free stream", self.requests.clone().ready()).await.unwrap();
        requests.send_request(request, ends).unwrap()
    }

    pub(crate) async fn send(&self, request: Request<()>) -> Result<Answer, h2::Error> {
        let (response, _) = self.open(request, true).await;
        complete(soon("a response", response).await?).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(get(path)).await.unwrap()
    }

    /// Sends a body as the window allows.
    pub(crate) async fn post(&self, path: &str, body: &[u8]) -> Result<Answer, h2::Error> {
        let request = Request::post(url(path)).body(()).unwrap();
        let (response, mut stream) = self.open(request, false).await;
        let sent = send_body(&mut stream, body).await;
        let response = soon("a response", response).await?;
        sent?;
        complete(response).await
    }
}

/// Sends a body and ends it.
pub(crate) async fn send_body(stream: &mut SendStream<Bytes>, body: &[u8]) -> Result<(), h2::Error> {
    let mut rest = body;
    while !rest.is_empty() {
        stream.reserve_capacity(rest.len());
        let capacity = soon("window", std::future::poll_fn(|cx| stream.poll_capacity(cx))).await;
        let Some(capacity) = capacity.transpose()? else { break };
        let (now, later) = rest.split_at(capacity.min(rest.len()));
        stream.send_data(Bytes::copy_from_slice(now), false)?;
        rest = later;
    }
    stream.send_data(Bytes::new(), true)
}

/// Reads a response to its end.
pub(crate) async fn complete(response: Response<RecvStream>) -> Result<Answer, h2::Error> {
    let (parts, mut stream) = response.into_parts();
    let mut body = Vec::new();
    while let Some(data) = soon("more of a response", stream.data()).await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    let trailers = soon("trailers", stream.trailers()).await?;
    Ok(Answer { status: parts.status, headers: parts.headers, body, trailers })
}

/// A TLS connection on which HTTP/2 was agreed on.
pub(crate) async fn tls_stream(site: &Site, sni: &str) -> tokio_rustls::client::TlsStream<TcpStream> {
    let rustls = Rustls::with(&site.authority, rustls::ALL_VERSIONS, |config| {
        config.alpn_protocols = vec![b"h2".to_vec()];
    });
    let stream = TcpStream::connect(site.address).await.unwrap();
    let name = ServerName::try_from(sni.to_owned()).unwrap();
    let connector = TlsConnector::from(Arc::clone(&rustls.0));
    let stream = soon("a handshake", connector.connect(name, stream)).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    stream
}

/// Adds a listener for HTTP/2 without TLS.
pub(crate) const H2C: &str = "listen_h2c = [\"127.0.0.1:0\"]";

/// Its address.
pub(crate) async fn h2c(proxy: &Proxy) -> SocketAddr {
    proxy.status().await.proxy.listen_h2c[0].parse().unwrap()
}

/// Two sample apps behind uh-proxy, and its address for HTTP/2.
pub(crate) async fn pair(server: &str, service: &str) -> (Home, Proxy, SocketAddr, (SampleApp, SampleApp)) {
    let apps = (SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await);
    let home = Home::new(apps.0.address, apps.1.address).server(H2C).server(server).service(service);
    let proxy = home.start().await;
    proxy.until_healthy().await;
    let address = h2c(&proxy).await;
    (home, proxy, address, apps)
}

/// One app that is no real one.
pub(crate) async fn before(app: SocketAddr, server: &str, service: &str) -> (Home, Proxy, SocketAddr) {
    let home = Home::new(app, "127.0.0.1:9").server(H2C).server(server).service(service);
    let home = if server.contains("threads") { home } else { home.server("threads = 1") };
    let proxy = home.start().await;
    let address = h2c(&proxy).await;
    (home, proxy, address)
}

/// The value of a metric.
pub(crate) async fn metric(proxy: &Proxy, name: &str) -> u64 {
    let text = proxy.client.metrics().await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0, |value| value.parse().unwrap())
}
