//! Serves the admin API on the Unix socket, and the metrics on their own listener, both by hyper on the admin thread.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::process::geteuid;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uh_protocol::{Code, Problem};

use super::api;
use super::control::Control;
use super::socket::Peer;

/// The largest request body: the largest call registers 64 endpoints.
pub const MAX_BODY_BYTES: usize = 64 << 10;

/// How long a request body may take.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a request head may take. Idle callers are shown out after this.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest request head.
const MAX_HEAD_BYTES: usize = 16 << 10;

/// Calls at the same time, waiting drains among them.
const MAX_CALLS: usize = 256;

/// After `accept` failed, so that a lack of descriptors does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Refusals at the same time. Callers beyond that, who have no right to call, are not even told.
const MAX_REFUSALS: usize = 16;

/// Serves the admin API for ever.
pub async fn serve_admin(listener: UnixListener, control: Arc<Control>, users: Vec<u32>) {
    let (calls, refusals) = (Arc::new(Semaphore::new(MAX_CALLS)), Arc::new(Semaphore::new(MAX_REFUSALS)));
    loop {
        let Some(stream) = accepted(listener.accept().await).await else { continue };
        let admitted = admit(&stream, &users, &calls);
        let refusal = if admitted.is_err() { Arc::clone(&refusals).try_acquire_owned().ok() } else { None };
        if admitted.is_err() && refusal.is_none() {
            continue;
        }
        let control = Arc::clone(&control);
        tokio::spawn(async move {
            let (control, admitted) = (&control, &admitted);
            let service = service_fn(|request: Request<Incoming>| async move {
                Ok::<_, Infallible>(match admitted {
                    Ok((peer, _)) => api::answer(control, request, *peer).await,
                    Err(problem) => api::problem_response(problem),
                })
            });
            serve(stream, service).await;
            drop(refusal);
        });
    }
}

/// Whether a caller may call, and if so, its place among the calls. Who has no right to call takes nobody's place.
fn admit(
    stream: &UnixStream,
    users: &[u32],
    calls: &Arc<Semaphore>,
) -> Result<(Peer, OwnedSemaphorePermit), Problem> {
    let unknown = |error| Problem::new(Code::Forbidden, format!("the caller is unknown: {error}"));
    let peer = peer_of(stream).map_err(unknown)?;
    if !may_call(peer, users) {
        tracing::warn!(target: "audit", %peer, result = "forbidden", "a user without the right to do so called the admin socket");
        let detail = format!("user {} may not use the admin socket: add it to server.admin_users", peer.uid);
        return Err(Problem::new(Code::Forbidden, detail));
    }
    let busy = |_| Problem::new(Code::Busy, format!("more than {MAX_CALLS} calls at once: try again"));
    let permit = Arc::clone(calls).try_acquire_owned().map_err(busy)?;
    Ok((peer, permit))
}

/// Serves the metrics for ever.
pub async fn serve_metrics(listener: TcpListener, control: Arc<Control>) {
    let calls = Arc::new(Semaphore::new(MAX_CALLS));
    loop {
        let Some(stream) = accepted(listener.accept().await).await else { continue };
        // Beyond the limit, the connection is simply closed: a scrape is made again.
        let Ok(permit) = Arc::clone(&calls).try_acquire_owned() else { continue };
        let control = Arc::clone(&control);
        tokio::spawn(async move {
            let control = &control;
            let service = service_fn(|request: Request<Incoming>| async move {
                Ok::<_, Infallible>(api::answer_metrics(control, &request))
            });
            serve(stream, service).await;
            drop(permit);
        });
    }
}

async fn accepted<S, A>(result: io::Result<(S, A)>) -> Option<S> {
    match result {
        Ok((stream, _)) => Some(stream),
        Err(error) => {
            tracing::warn!(%error, "cannot accept an admin connection");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

/// One call a connection: callers are few, and an idle connection is one thing less to reason about.
async fn serve<S, F>(stream: impl AsyncRead + AsyncWrite + Unpin, service: F)
where
    F: hyper::service::HttpService<Incoming, ResBody = S, Error = Infallible>,
    S: hyper::body::Body<Error = Infallible> + 'static,
    S::Data: Send,
{
    let result = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = result {
        tracing::debug!(%error, "an admin connection broke off");
    }
}

fn peer_of(stream: &UnixStream) -> io::Result<Peer> {
    let credentials = stream.peer_cred()?;
    Ok(Peer { uid: credentials.uid(), pid: credentials.pid() })
}

fn may_call(peer: Peer, users: &[u32]) -> bool {
    peer.uid == 0 || peer.uid == geteuid().as_raw() || users.contains(&peer.uid)
}
