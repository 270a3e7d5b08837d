//! What a switch costs: the control call, and the time from it to the first answer of the new backend; quiet, and under
//! load; and how many client connections break.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::answer::{Answer, Expected};
use super::backend::Backends;
use super::clients::{Clients, Job};
use super::proxies::{Proxy, Running, host};
use super::rows::{Load, ROWS, Setting, job, pin_the_load, terms};
use crate::percentiles::Times;

/// From one switch to the next: connections that were to be closed are, and caches are as usual.
const PAUSE: Duration = Duration::from_millis(60);

/// A switch that takes longer is a fault.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// The load during the switches: clients, and requests per second.
const CLIENTS: usize = 64;
const RATE: f64 = 2000.0;

/// What switches cost.
#[derive(Debug, Clone, Default)]
pub struct SwitchCost {
    /// The control call.
    pub call: Times,
    /// From its start to the first answer of the new backend.
    pub first_answer: Times,
    /// Client connections that broke, for each switch.
    pub broken: f64,
}

/// How many switches: fewer where one takes long.
#[must_use]
pub fn count(proxy: Proxy, quick: bool) -> usize {
    let count = match proxy {
        Proxy::UhProxy | Proxy::Before | Proxy::Haproxy | Proxy::Envoy => 100,
        Proxy::Nginx | Proxy::NginxByLine | Proxy::Caddy => 30,
        Proxy::Traefik => 8,
    };
    if quick { count / 4 } else { count }
}

/// Measures switches of one proxy: quiet, and under load.
///
/// # Errors
/// A switch fails, or its new backend does not answer.
pub fn measure(proxy: Proxy, backends: &Backends, dir: &Path, switches: usize) -> Result<[SwitchCost; 2]> {
    let running = proxy.start(dir, &terms(Setting::Standard, backends))?;
    // Let the probes that a switch may wait for complete.
    thread::sleep(Duration::from_secs(2));
    let quiet = switch(&running, switches)?;
    let stop = AtomicBool::new(false);
    let mut job = job(&ROWS[0], &running);
    debug_assert!(matches!(ROWS[0].load, Load::Closed { .. }));
    job.may_break = true;
    let loaded = thread::scope(|scope| {
        let load = scope.spawn(|| keep_asking(job, &stop));
        let cost = switch(&running, switches);
        stop.store(true, Ordering::Relaxed);
        let broken = load.join().map_err(|_| anyhow!("the load panicked"))??;
        let mut cost = cost?;
        cost.broken += broken as f64 / switches as f64;
        Ok::<_, anyhow::Error>(cost)
    })?;
    Ok([quiet, loaded])
}

/// Load until it is stopped; how many connections broke.
fn keep_asking(job: Job, stop: &AtomicBool) -> Result<u64> {
    pin_the_load()?;
    let mut clients = Clients::open(job, CLIENTS)?;
    let mut broken = 0;
    while !stop.load(Ordering::Relaxed) {
        broken += clients.open_loop(RATE, Duration::from_millis(100))?.broken;
    }
    Ok(broken)
}

/// Green and blue in turn.
fn switch(running: &Running, switches: usize) -> Result<SwitchCost> {
    let (orders, inbox) = channel();
    let (report, seen) = channel();
    let target = running.address;
    let watcher =
        thread::Builder::new().name("watcher".to_owned()).spawn(move || watch(target, &inbox, &report))?;
    let (mut calls, mut answers) = (Vec::new(), Vec::new());
    for step in 0..switches {
        let to = usize::from(step % 2 == 0);
        let called_at = Instant::now();
        orders.send(to == 1).map_err(|_| anyhow!("the watcher has failed"))?;
        running.switch(to).with_context(|| format!("switch {step}"))?;
        calls.push(called_at.elapsed());
        let seen_at = seen.recv_timeout(ANSWER_WITHIN).context("the new backend doesn't respond")?;
        answers.push(seen_at.saturating_duration_since(called_at));
        thread::sleep(PAUSE);
    }
    // Back to blue for whoever comes next.
    if switches % 2 == 1 {
        running.switch(0)?;
    }
    drop(orders);
    let broken = watcher.join().map_err(|_| anyhow!("the watcher panicked"))??;
    Ok(SwitchCost {
        call: calls.into_iter().collect(),
        first_answer: answers.into_iter().collect(),
        broken: broken as f64 / switches as f64,
    })
}

/// For each order, asks again and again until that backend answers, and says when it did. Returns how many connections
/// broke.
fn watch(target: SocketAddr, orders: &Receiver<bool>, report: &Sender<Instant>) -> Result<u64> {
    pin_the_load()?;
    let request = format!("GET /1 HTTP/1.1\r\nHost: {}\r\n\r\n", host(0));
    let (mut stream, mut answer, mut broken) = (open(target)?, Answer::default(), 0);
    while let Ok(green) = orders.recv() {
        let start = Instant::now();
        loop {
            match ask(&stream, &mut answer, &request) {
                Ok(()) if answer.green == green => break,
                Ok(()) => {}
                Err(_) => {
                    broken += 1;
                    (stream, answer) = (open(target)?, Answer::default());
                }
            }
            ensure!(start.elapsed() < ANSWER_WITHIN, "the new backend doesn't respond");
        }
        if report.send(Instant::now()).is_err() {
            break;
        }
    }
    Ok(broken)
}

fn open(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(target)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    Ok(stream)
}

fn ask(mut stream: &TcpStream, answer: &mut Answer, request: &str) -> io::Result<()> {
    stream.write_all(request.as_bytes())?;
    let mut buffer = [0; 4096];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let complete = answer.feed(&buffer[..read], Expected::Body(1));
        if complete.map_err(|wrong| io::Error::new(io::ErrorKind::InvalidData, wrong))? {
            return Ok(());
        }
    }
}
