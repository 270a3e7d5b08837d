//! Sends bodies of many gigabytes through uh-proxy in each direction, and reports its memory use.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use uh_benches::machine::process_figure;
use uh_benches::workdir;
use uh_testkit::sample_app;
use uh_testkit::uh_proxy::Setup;

/// By default, no request may be this large.
const ANY_SIZE: &str = "[services.app.limits]\nbody_bytes = \"0B\"";

/// How long uh-proxy may take to stop.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// What is read or written at a time.
const PIECE: usize = 256 << 10;

/// The longest response head that is expected.
const MAX_HEAD: usize = 16 << 10;

/// Send large bodies through uh-proxy in each direction, and report its memory use.
#[derive(Parser)]
struct Options {
    /// Gigabytes (10^9 bytes) to send in each direction.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=60))]
    gigabytes: u64,
    /// Fail if uh-proxy's resident memory ever exceeds this many megabytes.
    #[arg(long, default_value_t = 100)]
    max_megabytes: u64,
}

fn main() -> ExitCode {
    let options = Options::parse();
    workdir::run(async |dir| run(&options, dir).await)
}

async fn run(options: &Options, dir: &Path) -> Result<()> {
    let (blue, green) = sample_app::pair(dir).await?;
    let front_door = Setup::new(dir, blue.address, green.address).service(ANY_SIZE).start().await?;
    front_door.until_healthy().await?;
    let pid = front_door.process.id();
    let bytes = options.gigabytes * 1_000_000_000;
    say(format_args!("at the start: {:.1} MB resident", megabytes(peak(pid)?)))?;
    let start = Instant::now();
    download(front_door.address, bytes).await.context("the download")?;
    report("down", options.gigabytes, start, pid)?;
    let start = Instant::now();
    upload(front_door.address, bytes).await.context("the upload")?;
    report("up", options.gigabytes, start, pid)?;
    let peak = peak(pid)?;
    front_door.stop(STOP_WITHIN).await?;
    ensure!(
        peak <= options.max_megabytes * 1_000_000,
        "uh-proxy used {:.1} MB, more than {} MB",
        megabytes(peak),
        options.max_megabytes
    );
    Ok(())
}

fn report(direction: &str, gigabytes: u64, start: Instant, pid: u32) -> Result<()> {
    let took = start.elapsed().as_secs_f64();
    let (rate, peak) = (gigabytes as f64 / took, megabytes(peak(pid)?));
    say(format_args!(
        "{gigabytes} GB {direction} in {took:.1} s ({rate:.2} GB/s): at most {peak:.1} MB resident so far"
    ))
}

fn say(line: impl std::fmt::Display) -> Result<()> {
    Ok(writeln!(io::stdout(), "{line}")?)
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// The most memory that a process ever had resident, in bytes.
fn peak(pid: u32) -> Result<u64> {
    Ok(process_figure(pid, "VmHWM").context("uh-proxy has ended")? * 1024)
}

async fn download(target: SocketAddr, bytes: u64) -> Result<()> {
    let mut stream = TcpStream::connect(target).await?;
    let request = format!("GET /bytes/{bytes} HTTP/1.1\r\nhost: app.test\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let head = read_head(&mut stream).await?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "the answer is {head:?}");
    let mut piece = vec![0; PIECE];
    let mut read = 0;
    while read < bytes {
        let rest = usize::try_from(bytes - read).unwrap_or(usize::MAX).min(PIECE);
        let got = stream.read(&mut piece[..rest]).await?;
        ensure!(got > 0, "the response ended after {read} of {bytes} bytes");
        read += got as u64;
    }
    Ok(())
}

async fn upload(target: SocketAddr, bytes: u64) -> Result<()> {
    let mut stream = TcpStream::connect(target).await?;
    let request = format!("POST /upload HTTP/1.1\r\nhost: app.test\r\ncontent-length: {bytes}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let piece = vec![b'x'; PIECE];
    let mut sent = 0;
    while sent < bytes {
        let length = usize::try_from(bytes - sent).unwrap_or(usize::MAX).min(PIECE);
        stream.write_all(&piece[..length]).await?;
        sent += length as u64;
    }
    let head = read_head(&mut stream).await?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "the answer is {head:?}");
    let mut body = vec![0; 4096];
    let read = stream.read(&mut body).await?;
    let body = String::from_utf8_lossy(&body[..read]).into_owned();
    ensure!(body.contains(&format!("\"bytes\":{bytes},")), "the app received something else: {body}");
    Ok(())
}

/// Reads a response head, and nothing beyond it.
async fn read_head(stream: &mut TcpStream) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(head.len() < MAX_HEAD, "the answer's head does not end");
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8(head)?)
}
