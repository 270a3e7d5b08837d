//! The matrix as text.

use std::fmt::Write as _;

use super::{Fault, Seen};
use crate::percentiles::grouped;

/// The longest operator's line that is shown.
const LINE: usize = 170;

/// What a fault has shown, over a few lines.
#[must_use]
pub fn entry(fault: &Fault, seen: &Seen) -> String {
    let mut text = format!("{}: {}\n", fault.name, fault.injected);
    let failed: usize = seen.verdict.failures.values().sum();
    let mut clients = vec![format!("{} answered", grouped(seen.verdict.requests - failed))];
    clients.extend(seen.verdict.failures.iter().map(|(kind, count)| format!("{} {kind}", grouped(*count))));
    clients.extend(seen.clients.iter().cloned());
    // Writing to a string does not fail.
    let _ = writeln!(text, "  clients   {}", clients.join("; "));
    let _ = writeln!(text, "  operator  {}", cut(&seen.operator));
    let _ = writeln!(text, "  recovery  {} ms", seen.recovery.as_millis());
    text
}

fn cut(line: &str) -> String {
    let line = line.replace('\n', " ");
    match line.char_indices().nth(LINE) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
    }
}
