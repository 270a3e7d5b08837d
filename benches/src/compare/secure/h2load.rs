//! The load over TLS and HTTP/2: nghttp2's `h2load`, one thread.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Ask, Row};
use crate::compare::proxies::{Listener, host};
use crate::compare::rows::WARM_UP;

/// A first guess of how many requests are answered within [`WARM_UP`]: few enough that even large bodies end soon.
const FIRST_REQUESTS: usize = 64;

/// Whether it is there.
#[must_use]
pub fn is_installed() -> bool {
    let version =
        Command::new("h2load").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

/// Whether one request is answered with 200.
#[must_use]
pub fn succeeds(listener: Listener, address: SocketAddr) -> bool {
    let ask = Ask::Get { http2: listener == Listener::ClearHttp2, bytes: 1, connections: 1, streams: 1 };
    Job::new(&Row { name: "ready", listener, ask }, address).run(1).is_ok()
}

/// What it has to do.
pub(super) struct Job {
    arguments: Vec<String>,
    /// Requests in flight at any time.
    in_flight: usize,
}

impl Job {
    pub(super) fn new(row: &Row, address: SocketAddr) -> Self {
        let Ask::Get { http2, bytes, connections, streams } = row.ask else {
            return Self { arguments: Vec::new(), in_flight: 0 };
        };
        let scheme = if row.listener == Listener::Tls { "https" } else { "http" };
        let mut arguments = vec![
            format!("--connect-to={address}"),
            format!("--clients={connections}"),
            format!("--max-concurrent-streams={streams}"),
            "--groups=X25519".to_owned(),
            "--header=accept: */*".to_owned(),
            "--header=accept-encoding: gzip, br".to_owned(),
            "--header=user-agent: Mozilla/5.0 (X11; Linux x86_64) Firefox/132.0".to_owned(),
            format!("{scheme}://{}/{bytes}", host(0)),
        ];
        if !http2 {
            arguments.push("--h1".to_owned());
        }
        Self { arguments, in_flight: connections * streams }
    }

    /// About how many requests are answered in this time, found out by sending some.
    pub(super) fn requests_in(&self, time: Duration) -> Result<usize> {
        let mut requests = FIRST_REQUESTS.max(self.in_flight);
        loop {
            let took = self.run(requests)?;
            if took >= WARM_UP / 2 {
                let wanted = requests as f64 * time.as_secs_f64() / took.as_secs_f64();
                return Ok((wanted as usize).max(self.in_flight));
            }
            requests *= 4;
        }
    }

    /// Sends so many requests, all of which must be answered with 2xx, and returns how long it took.
    pub(super) fn run(&self, requests: usize) -> Result<Duration> {
        let output = Command::new("h2load")
            .arg(format!("--requests={requests}"))
            .args(&self.arguments)
            .stdin(Stdio::null())
            .output()
            .context("can't start h2load")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let (answered, took) = outcome(&text).with_context(|| format!("h2load says: {text}"))?;
        ensure!(answered == requests, "{answered} of {requests} requests were answered: {text}");
        Ok(took)
    }
}

/// How many answers were 2xx, and how long it took.
fn outcome(text: &str) -> Option<(usize, Duration)> {
    let line = |start: &str| text.lines().find_map(|line| line.strip_prefix(start));
    let answered = line("status codes: ")?.split_once(" 2xx")?.0.parse().ok()?;
    let took = line("finished in ")?.split_once(',')?.0;
    // The longer unit first: "s" ends them all.
    let (number, unit) = [("us", 1e-6), ("ms", 1e-3), ("s", 1.0)]
        .iter()
        .find_map(|(unit, seconds)| Some((took.strip_suffix(unit)?, seconds)))?;
    Some((answered, Duration::from_secs_f64(number.parse::<f64>().ok()? * unit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outcome_is_read_in_all_units() {
        let text = |took| {
            format!("finished in {took}, 1.0 req/s, 1KB/s\nstatus codes: 90 2xx, 0 3xx, 0 4xx, 10 5xx\n")
        };
        assert_eq!(outcome(&text("1.50s")), Some((90, Duration::from_millis(1500))));
        assert_eq!(outcome(&text("15.00ms")), Some((90, Duration::from_millis(15))));
        assert_eq!(outcome(&text("150us")), Some((90, Duration::from_micros(150))));
        assert_eq!(outcome("no such host"), None);
    }
}
