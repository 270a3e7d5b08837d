//! Serves the admin API on the Unix socket and the metrics on their own listener, both with hyper on the admin thread.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustix::process::geteuid;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore};
use tokio::task::AbortHandle;
use uh_protocol::{Code, Problem};
use uh_system::plain;

use super::api;
use super::control::Control;
use super::socket::{AdminSocket, Peer, SocketFile};
use crate::front::listener::{self, Holder, UNBLOCK_EVERY};

/// How long a request head may take. Idle connections are closed after this.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest request head.
const MAX_HEAD_BYTES: usize = 16 << 10;

/// Concurrent calls, including waiting drains.
const MAX_CALLS: usize = 256;

/// The pause after a failed `accept`, so that a lack of file descriptors doesn't cause a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Concurrent refusals. Beyond that, unauthorised connections are closed without an answer.
const MAX_REFUSALS: usize = 16;

/// How long a caller may take to read its reply, in addition to the call itself.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How often the socket's file is checked.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Serves the admin API indefinitely. If the socket's file is removed, it is recreated: operators must always have
/// access.
pub(crate) async fn serve_admin(socket: Arc<Mutex<AdminSocket>>, control: Arc<Control>, users: Vec<u32>) {
    let (mut callers, refusals) = (Callers::default(), Arc::new(Semaphore::new(MAX_REFUSALS)));
    let mut watch = SocketWatch { socket, before: SocketFile::Ours };
    let mut look = tokio::time::interval(LOOK_EVERY);
    let mut listener = None;
    loop {
        let Some(listening) = &listener else {
            listener = watch.listener().await;
            continue;
        };
        let connected = tokio::select! {
            connected = listening.accept() => accepted(connected).await,
            _ = look.tick() => {
                if watch.has_renewed() {
                    listener = None;
                }
                continue;
            }
        };
        let Some(stream) = connected else { continue };
        let admitted = admit(&stream, &users, &mut callers);
        let refusal = if admitted.is_err() { Arc::clone(&refusals).try_acquire_owned().ok() } else { None };
        if admitted.is_err() && refusal.is_none() {
            continue;
        }
        let asked = Arc::new(AtomicBool::new(false));
        let (control, has_asked) = (Arc::clone(&control), Arc::clone(&asked));
        let is_caller = admitted.is_ok();
        let task = tokio::spawn(async move {
            let (control, admitted, has_asked) = (&control, &admitted, &has_asked);
            // Until the reply has been sent.
            let call = &OnceLock::new();
            let service = service_fn(|request: Request<Incoming>| async move {
                has_asked.store(true, Ordering::Relaxed);
                call.get_or_init(|| control.end.call());
                Ok::<_, Infallible>(match admitted {
                    Ok(peer) => api::answer(control, request, *peer).await,
                    Err(problem) => api::problem_response(problem),
                })
            });
            serve(stream, service).await;
            drop(refusal);
        });
        if is_caller {
            callers.0.push_back(AdminCaller { asked, task: task.abort_handle() });
        }
    }
}

/// Makes sure that the socket can be found.
struct SocketWatch {
    socket: Arc<Mutex<AdminSocket>>,
    before: SocketFile,
}

impl SocketWatch {
    /// Checks the socket's file, and returns whether it had to be recreated.
    fn has_renewed(&mut self) -> bool {
        let mut socket = self.socket.lock();
        if socket.has_returned() {
            return true;
        }
        if socket.is_removed() || socket.is_released() {
            return false;
        }
        let place = socket.place();
        let news = std::mem::replace(&mut self.before, place) != place;
        let path = socket.path().display().to_string();
        match place {
            SocketFile::Ours => false,
            SocketFile::Foreign => {
                if news {
                    tracing::error!(
                        path,
                        "the admin socket was replaced by another file, so the admin API is unavailable; remove the file and uh-proxy will recreate the socket"
                    );
                }
                false
            }
            SocketFile::Empty => match socket.renew() {
                Ok(()) => {
                    tracing::warn!(path, "the admin socket was removed; recreated it");
                    self.before = SocketFile::Ours;
                    true
                }
                Err(error) => {
                    if news {
                        tracing::error!(path, error = %plain(&error), "the admin socket was removed and cannot be recreated; retrying");
                    }
                    false
                }
            },
        }
    }

    async fn listener(&self) -> Option<UnixListener> {
        let listener = self.socket.lock().listener().and_then(UnixListener::from_std);
        match listener {
            Ok(listener) => Some(listener),
            Err(error) => {
                tracing::warn!(error = %plain(&error), "cannot listen on the admin socket; retrying");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                None
            }
        }
    }
}

/// Who is connected, oldest first.
#[derive(Default)]
struct Callers(VecDeque<AdminCaller>);

struct AdminCaller {
    /// Whether its request has arrived.
    asked: Arc<AtomicBool>,
    task: AbortHandle,
}

impl Callers {
    /// Makes room for one more connection. If all slots are in use, the oldest connection that has sent no request is
    /// dropped: operators send their request immediately, so idle connections can't lock them out.
    fn make_room(&mut self) -> Result<(), Problem> {
        self.0.retain(|caller| !caller.task.is_finished());
        if self.0.len() < MAX_CALLS {
            return Ok(());
        }
        let idle = self.0.iter().position(|caller| !caller.asked.load(Ordering::Relaxed));
        match idle.and_then(|at| self.0.remove(at)) {
            Some(caller) => {
                caller.task.abort();
                Ok(())
            }
            None => {
                Err(Problem::new(Code::Busy, format!("more than {MAX_CALLS} concurrent calls: try again")))
            }
        }
    }
}

/// Whether a caller has permission, and there is room. An unauthorised caller takes no slot.
fn admit(stream: &UnixStream, users: &[u32], callers: &mut Callers) -> Result<Peer, Problem> {
    let unknown =
        |error| Problem::new(Code::Forbidden, format!("cannot identify the caller: {}", plain(&error)));
    let peer = peer_of(stream).map_err(unknown)?;
    if !may_call(peer, users) {
        tracing::warn!(target: "audit", %peer, result = "forbidden", "rejected a call on the admin socket: this user isn't allowed to use it");
        let detail =
            format!("user ID {} may not use the admin socket: add it to server.admin_users", peer.uid);
        return Err(Problem::new(Code::Forbidden, detail));
    }
    callers.make_room()?;
    Ok(peer)
}

/// Serves the metrics indefinitely.
pub(crate) async fn serve_metrics(mut listener: TcpListener, mut holder: Holder, control: Arc<Control>) {
    let calls = Arc::new(Semaphore::new(MAX_CALLS));
    let is_shared = holder.is_shared();
    let mut check = tokio::time::interval(UNBLOCK_EVERY);
    loop {
        let connected = tokio::select! {
            connected = listener.accept() => connected,
            _ = check.tick(), if is_shared => {
                listener::unblock(&listener);
                continue;
            }
            renewed = holder.renewed() => {
                match renewed {
                    Ok(renewed) => listener = renewed,
                    Err(error) => {
                        tracing::error!(error = %plain(&error), "cannot use a new socket of uh-keeper for metrics");
                    }
                }
                continue;
            }
        };
        let Some(stream) = accepted(connected).await else { continue };
        // Beyond the limit, the connection is closed: Prometheus scrapes again.
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
            tracing::warn!(error = %plain(&error), "cannot accept an admin connection");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

/// One call per connection: there are few callers, and no idle connections to reason about. A caller that doesn't read
/// its reply is dropped.
async fn serve<S, F>(stream: impl AsyncRead + AsyncWrite + Unpin, service: F)
where
    F: Service<Request<Incoming>, Response = Response<S>, Error = Infallible>,
    S: hyper::body::Body<Error = Infallible> + 'static,
    S::Data: Send,
{
    let answered = &Notify::new();
    let service = service_fn(|request| {
        let answer = service.call(request);
        async move {
            let answer = answer.await;
            answered.notify_one();
            answer
        }
    });
    let call = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let too_long = async {
        answered.notified().await;
        tokio::time::sleep(ANSWER_TIMEOUT).await;
    };
    tokio::select! {
        result = call => if let Err(error) = result {
            tracing::debug!(error = %plain(&error), "lost an admin connection");
        },
        () = too_long => tracing::debug!("an admin client isn't reading its response"),
    }
}

fn peer_of(stream: &UnixStream) -> io::Result<Peer> {
    let credentials = stream.peer_cred()?;
    Ok(Peer { uid: credentials.uid(), pid: credentials.pid() })
}

fn may_call(peer: Peer, users: &[u32]) -> bool {
    peer.uid == 0 || peer.uid == geteuid().as_raw() || users.contains(&peer.uid)
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use hyper::body::Bytes;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_does_not_read_its_answer_is_left() {
        let (mut caller, stream) = tokio::io::duplex(1024);
        let answer = service_fn(|_| async {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(vec![b'x'; 1 << 20]))))
        });
        let serving = tokio::spawn(serve(stream, answer));
        tokio::io::AsyncWriteExt::write_all(&mut caller, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        tokio::time::timeout(ANSWER_TIMEOUT * 2, serving).await.expect("it is left").unwrap();
    }
}
