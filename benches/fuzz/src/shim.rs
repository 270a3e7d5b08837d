//! Requests through the shim's path into an app that reads by the rules, all on one thread, with a clock that runs ahead
//! when nothing else is left to do.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::LocalSet;
use uh_testkit::fuzz::reference::{Demand, Read, read};
use uh_testkit::fuzz::witness::{Seen, compare};
use uh_testkit::fuzz::words::{HTTP_WORDS, KNOWN_REQUESTS, REQUEST_WORDS, SHIM_REQUESTS};

use crate::target::Target;

pub(crate) const TARGET: Target = Target { name: "shim", check, seeds, words: &[HTTP_WORDS, REQUEST_WORDS] };

/// How long the shim may be silent before the client leaves.
const PATIENCE: Duration = Duration::from_secs(3);

struct Stage {
    runtime: Runtime,
    tasks: LocalSet,
    shim: SocketAddr,
    seen: Rc<RefCell<Seen>>,
}

fn seeds() -> Vec<Vec<u8>> {
    SHIM_REQUESTS.iter().chain(KNOWN_REQUESTS).map(|request| request.as_bytes().to_vec()).collect()
}

impl Stage {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        let runtime = runtime.expect("a runtime can be made");
        let tasks = LocalSet::new();
        let seen = Rc::<RefCell<Seen>>::default();
        let into = Rc::clone(&seen);
        let shim = tasks.block_on(&runtime, async {
            let bind = || TcpListener::bind("127.0.0.1:0");
            let app = bind().await.expect("there is a free port");
            let listener = bind().await.expect("there is a free port");
            let shim = listener.local_addr().expect("it has an address");
            let app_address = app.local_addr().expect("it has an address");
            tokio::task::spawn_local(uh_app_shim::fuzzing::serve(listener, app_address));
            tokio::task::spawn_local(async move {
                while let Ok((stream, _)) = app.accept().await {
                    tokio::task::spawn_local(serve(stream, Rc::clone(&into)));
                }
            });
            shim
        });
        Self { runtime, tasks, shim, seen }
    }
}

async fn serve(mut stream: TcpStream, seen: Rc<RefCell<Seen>>) {
    let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
    loop {
        match read(&bytes) {
            Read::Whole(message, end) => {
                let body: &[u8] = if message.method == "HEAD" { b"" } else { b"ok" };
                seen.borrow_mut().messages.push(message);
                bytes.drain(..end);
                let answer = [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", body].concat();
                if stream.write_all(&answer).await.is_err() {
                    return;
                }
                continue;
            }
            Read::Bad(why) => {
                seen.borrow_mut().bad.push(format!("{why}: {}", bytes.escape_ascii()));
                return;
            }
            Read::More => {}
        }
        match stream.read(&mut part).await {
            Ok(0) | Err(_) => return,
            Ok(length) => bytes.extend_from_slice(&part[..length]),
        }
    }
}

fn check(bytes: &[u8]) -> Result<(), String> {
    thread_local! {
        static STAGE: Stage = Stage::new();
    }
    STAGE.with(|stage| stage.check(bytes))
}

impl Stage {
    fn check(&self, bytes: &[u8]) -> Result<(), String> {
        let answers = self.tasks.block_on(&self.runtime, self.send(bytes)).map_err(|e| e.to_string())?;
        let seen = std::mem::take(&mut *self.seen.borrow_mut());
        if !answers.is_empty() && !answers.starts_with(b"HTTP/1.") {
            return Err(format!("an answer that is none: {}", answers.escape_ascii()));
        }
        compare(bytes, &seen, Demand::WellFormed)
    }

    async fn send(&self, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(self.shim).await?;
        let _ = stream.write_all(bytes).await;
        let mut answers = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answers)).await;
        let _ = stream.shutdown().await;
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answers)).await;
        Ok(answers)
    }
}
