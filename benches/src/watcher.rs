//! Watches one switch at a time from a client's side: asks again and again until the new backend answers.
//!
//! The paced load tells how soon the next request that happens to be due meets the new backend. The watcher tells how
//! soon any request could.

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use uh_protocol::BackendName;

use uh_testkit::http::Connection;

/// A switch whose new backend has not answered after this is a fault.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// One client on a thread of its own.
pub struct Watcher {
    orders: Sender<(BackendName, Instant)>,
    thread: JoinHandle<Result<Vec<Duration>>>,
}

impl Watcher {
    /// Connects to uh-proxy.
    ///
    /// # Errors
    /// The thread can't be started.
    pub fn start(target: SocketAddr) -> Result<Self> {
        let (orders, inbox) = channel();
        let thread =
            thread::Builder::new().name("watcher".to_owned()).spawn(move || watch(target, &inbox))?;
        Ok(Self { orders, thread })
    }

    /// Watches a switch that is about to be called.
    ///
    /// # Errors
    /// The watcher has given up.
    pub fn expect(&self, to: BackendName, called_at: Instant) -> Result<()> {
        self.orders.send((to, called_at)).map_err(|_| anyhow!("the watcher has failed"))
    }

    /// From each call to the first answer of its new backend.
    ///
    /// # Errors
    /// A request failed, or a new backend never answered.
    pub fn stop(self) -> Result<Vec<Duration>> {
        drop(self.orders);
        self.thread.join().map_err(|_| anyhow!("the watcher panicked"))?
    }
}

fn watch(target: SocketAddr, inbox: &Receiver<(BackendName, Instant)>) -> Result<Vec<Duration>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let request = format!("GET / HTTP/1.1\r\nHost: {target}\r\n\r\n");
        let mut connection = Connection::open(target).await?;
        let (mut times, mut body) = (Vec::new(), Vec::new());
        for (to, called_at) in inbox {
            loop {
                let head = connection
                    .exchange(request.as_bytes(), &mut body)
                    .await
                    .context("the watcher's request")?;
                if head.backend.as_ref() == Some(&to) {
                    times.push(called_at.elapsed());
                    break;
                }
                if called_at.elapsed() > ANSWER_WITHIN {
                    bail!("{to} had not answered {} s after the switch to it", ANSWER_WITHIN.as_secs());
                }
            }
        }
        Ok(times)
    })
}
