//! A real Prometheus with the shipped rules, scraping one uh-proxy.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use uh_testkit::process::{Process, run};
use uh_testkit::wait::{free_address, until};

use crate::repository;

/// How long a query may take; normally milliseconds.
const QUERY_WITHIN: Duration = Duration::from_secs(10);

/// How often to poll while waiting.
const POLL: Duration = Duration::from_millis(250);

/// A running Prometheus, stopped on drop.
#[derive(Debug)]
pub struct Prometheus {
    address: SocketAddr,
    _process: Process,
}

/// One series of a result.
#[derive(Debug, Clone)]
pub struct LabelledValue {
    /// Its labels, as a JSON object.
    pub labels: Value,
    /// Its value.
    pub value: f64,
}

impl LabelledValue {
    /// One label; empty if it is missing.
    #[must_use]
    pub fn label(&self, name: &str) -> &str {
        self.labels[name].as_str().unwrap_or_default()
    }
}

impl Prometheus {
    /// Starts it with its data in `dir`. Everything is as shipped except for the target and the interval: it scrapes
    /// and evaluates every second, so that a test doesn't wait longer than the alerts do.
    ///
    /// # Errors
    /// If it isn't installed or doesn't become ready.
    pub async fn start(dir: &Path, target: &str) -> Result<Self> {
        let shipped = fs::read_to_string(repository::path("config/prometheus.yml"))?;
        let rules = repository::path("config/prometheus");
        let config = shipped
            .replace("interval: 5s", "interval: 1s")
            .replace("keeper:9145", target)
            .replace("prometheus/", &format!("{}/", rules.display()));
        ensure!(config.contains(target) && config.contains("scrape_interval: 1s"), "{config}");
        let path = dir.join("prometheus.yml");
        fs::write(&path, config)?;
        // If another process takes the port in the meantime, the start fails.
        let address = free_address();
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", path.display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("prometheus").display()))
            .arg(format!("--web.listen-address={address}"));
        let mut process = Process::spawn("prometheus", &mut command, dir)?;
        until("prometheus is ready", async || {
            let ready = fetch(address, "/-/ready", &["--fail"]).await.is_ok();
            process.check_running().map(|()| ready.then_some(())).transpose()
        })
        .await??;
        Ok(Self { address, _process: process })
    }

    /// The answer to an instant query.
    ///
    /// # Errors
    /// If Prometheus rejects it, or the result isn't a vector.
    pub async fn query(&self, expression: &str) -> Result<Vec<LabelledValue>> {
        let query = format!("query={expression}");
        let answer = fetch(self.address, "/api/v1/query", &["--get", "--data-urlencode", &query]).await?;
        let answer: Value = serde_json::from_str(&answer).context("prometheus's answer is not JSON")?;
        ensure!(answer["status"] == "success", "prometheus refuses {expression:?}: {answer}");
        let results = answer["data"]["result"].as_array().with_context(|| format!("no result: {answer}"))?;
        results.iter().map(sample).collect()
    }

    /// Repeats the query until the result is as wanted, and returns it.
    ///
    /// # Errors
    /// If it isn't in time.
    pub async fn wait_for(
        &self,
        expression: &str,
        within: Duration,
        wanted: impl Fn(&[LabelledValue]) -> bool,
    ) -> Result<Vec<LabelledValue>> {
        let deadline = Instant::now() + within;
        loop {
            let samples = self.query(expression).await?;
            if wanted(&samples) {
                return Ok(samples);
            }
            if Instant::now() >= deadline {
                bail!("after {within:?}, {expression} still is {samples:?}");
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

fn sample(result: &Value) -> Result<LabelledValue> {
    let value = result["value"][1].as_str().and_then(|text| text.parse().ok());
    let value = value.with_context(|| format!("a sample without a value: {result}"))?;
    Ok(LabelledValue { labels: result["metric"].clone(), value })
}

async fn fetch(address: SocketAddr, path: &str, arguments: &[&str]) -> Result<String> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error"]).args(arguments).arg(format!("http://{address}{path}"));
    let finished = run(curl, QUERY_WITHIN).await?;
    ensure!(finished.status.success(), "{}", finished.output);
    Ok(finished.output)
}
