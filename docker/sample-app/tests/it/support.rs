//! An app in this process, a client for it, and a deadline for every wait.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use uh_app_shim::drain::Drain;
use uh_sample_app::server::Server;

/// Waits for something that must happen.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    uh_testkit::wait::soon(what, future).await.unwrap()
}

/// An app serving in this process as `green 1.2.3`.
pub(crate) struct TestApp {
    pub(crate) address: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Arc<Drain>>,
}

impl TestApp {
    pub(crate) async fn start(variables: &[(&str, &str)]) -> Self {
        let fixed = [("DEPLOYMENT_ENV", "green"), ("APP_VERSION", "1.2.3")];
        let server = Server::bind_free(&[variables, &fixed].concat()).await.unwrap();
        let address = server.local_addr();
        let (stop, stopped) = oneshot::channel();
        Self { address, stop, serving: tokio::spawn(server.serve_until(stopped)) }
    }

    /// Starts the drain.
    pub(crate) async fn stop(self) -> Arc<Drain> {
        self.stop.send(()).unwrap();
        within("the listener to close", self.serving).await.unwrap()
    }

    pub(crate) async fn get(&self, target: &str) -> Answer {
        self.fetch(request("GET", target, empty())).await
    }

    /// One exchange on a new connection, with the whole body.
    pub(crate) async fn fetch(&self, request: Request<ClientBody>) -> Answer {
        let (head, body) = self.send(request).await.into_parts();
        let body = within("the body", body.collect()).await.unwrap().to_bytes();
        Answer { status: head.status, headers: head.headers, body }
    }

    /// One exchange on a new connection, with the body left to the caller.
    pub(crate) async fn send(&self, request: Request<ClientBody>) -> Response<Incoming> {
        let mut connection = connect(self.address).await;
        within("an answer", connection.send_request(request)).await.unwrap()
    }
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

pub(crate) type ClientBody = UnsyncBoxBody<Bytes, std::io::Error>;

pub(crate) fn empty() -> ClientBody {
    http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> ClientBody {
    http_body_util::Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn request(method: &str, target: &str, body: ClientBody) -> Request<ClientBody> {
    Request::builder().method(method).uri(target).header("host", "app.test").body(body).unwrap()
}

pub(crate) async fn connect(address: SocketAddr) -> http1::SendRequest<ClientBody> {
    let stream = within("a connection", TcpStream::connect(address)).await.unwrap();
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    sender
}

/// The next piece of a streamed body; `None` at its end.
pub(crate) async fn next_chunk(body: &mut Incoming) -> Option<Bytes> {
    let frame = within("the next chunk", body.frame()).await?;
    Some(frame.unwrap().into_data().unwrap())
}
