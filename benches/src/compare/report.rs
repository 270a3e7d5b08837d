//! The report: on what machine, with which command, and the tables; into `benches/README.md`, between two markers.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::proxies::{ALL, Proxy};
use super::rows::{Measurements, Memory};
use super::secure;
use super::switches::SwitchCost;
use super::tables;

const BEGIN: &str = "<!-- tables: begin (written by `make bench`) -->\n";
const END: &str = "<!-- tables: end -->";

/// All that was measured.
#[derive(Debug, Default)]
pub struct Report {
    /// With which arguments.
    pub arguments: String,
    /// Before it began: other work on the machine.
    pub load_average: String,
    /// What took part.
    pub proxies: Vec<Proxy>,
    /// The rows.
    pub samples: Measurements,
    /// Memory.
    pub memory: Vec<(Proxy, Memory)>,
    /// TLS and HTTP/2.
    pub secure: secure::Measurements,
    /// Memory of an idle TLS connection, in bytes.
    pub idle_tls: Vec<(Proxy, f64)>,
    /// Switches.
    pub switches: Vec<(Proxy, [SwitchCost; 2])>,
}

impl Report {
    /// As Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = self.terms();
        let mut section = |title: &str, table: String| {
            if table.lines().count() > 2 {
                let _ = write!(text, "\n#### {title}\n\n{table}");
            }
        };
        section("CPU time", tables::cpu(&self.samples, &self.proxies));
        section("CPU time of large bodies", tables::cpu_of_bytes(&self.samples, &self.proxies));
        section("User and kernel", tables::user_and_kernel(&self.samples, &self.proxies));
        section("Requests per second on one core", tables::rate(&self.samples, &self.proxies));
        section("Latency at a fixed rate", tables::latency(&self.samples, &self.proxies));
        section("Two cores against one", tables::scaling(&self.samples, &self.proxies));
        section("Memory", tables::memory(&self.memory));
        section("CPU time with TLS and HTTP/2", tables::secure(&self.secure, &self.proxies));
        section("Large bodies with TLS and HTTP/2", tables::secure_bytes(&self.secure, &self.proxies));
        section("Memory with TLS", tables::secure_memory(&self.idle_tls));
        section("What a switch costs", tables::switches(&self.switches));
        text
    }

    fn terms(&self) -> String {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC");
        let command = format!("compare {}", self.arguments);
        let mut text = format!("`{}`, {now}, commit {}. ", command.trim_end(), commit());
        let _ = writeln!(text, "{} Load average before the run: {}.\n", machine(), self.load_average);
        for proxy in ALL.iter().filter(|proxy| **proxy != Proxy::NginxByLine) {
            let version = proxy.version().filter(|_| self.proxies.contains(proxy));
            let version = version.unwrap_or_else(|| "not there".to_owned());
            let _ = write!(text, "{} {version} · ", proxy.name());
        }
        text.truncate(text.trim_end_matches(" · ").len());
        text.push('\n');
        text
    }

    /// Puts the tables into a file, in place of those that are there.
    ///
    /// # Errors
    /// The file or its markers are not there.
    pub fn write(&self, path: &Path) -> Result<()> {
        let old = fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?;
        let new = between_markers(&old, &self.markdown())
            .with_context(|| format!("no markers in {}", path.display()))?;
        fs::write(path, new).with_context(|| format!("can't write {}", path.display()))
    }
}

fn between_markers(old: &str, tables: &str) -> Option<String> {
    let (before, rest) = old.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some([before, BEGIN, tables, END, after].concat())
}

/// Of the working directory; what was built from it is not known better.
fn commit() -> String {
    let output = Command::new("git").args(["describe", "--always", "--dirty"]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.unwrap_or_else(|_| "unknown".to_owned())
}

fn machine() -> String {
    let field = |file: &str, key: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_once(':').map_or("unknown", |(_, value)| value.trim()).to_owned()
    };
    let memory: f64 = field("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse().unwrap_or_default();
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let cores = fs::read_to_string("/proc/cpuinfo").unwrap_or_default().matches("processor\t").count();
    format!(
        "{} with {cores} cores and {:.0} GB, Linux {kernel}.",
        field("/proc/cpuinfo", "model name"),
        memory / 1e6
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_markers_is_replaced() {
        let old = format!("before\n{BEGIN}old\n{END}\nafter\n");
        assert_eq!(between_markers(&old, "new\n"), Some(format!("before\n{BEGIN}new\n{END}\nafter\n")));
        assert_eq!(between_markers("nothing", ""), None);
    }
}
