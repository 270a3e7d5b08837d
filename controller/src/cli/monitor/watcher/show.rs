//! What a watch prints: its beginning, a line for every tick, and the comparison with the old version.

use std::time::Duration;

use uh_protocol::BackendName;

use super::super::{clock, too_short};
use super::Watcher;
use crate::cli::report::Form;
use crate::counters::Counters;
use crate::names::named;
use crate::time::span;
use crate::verdict::judge::{Condition, percent};

impl Watcher<'_> {
    pub(in crate::cli) fn announce(&self) {
        let (duration, interval) = (self.plan.duration(), self.plan.interval());
        let report = &self.session.report;
        report.say(&format!("Monitoring {} for {}, every {}...", self.name, span(duration), span(interval)));
        if let Some(warning) = too_short(duration, interval, self.session.config.monitor.breach_after) {
            report.warn(&warning);
        }
    }

    pub(super) fn show(&self, tick: &Counters, condition: &Condition) {
        let health = match condition {
            Condition::Well => "OK",
            Condition::Unhealthy(_) => "BAD",
            Condition::Ended(_) => "DOWN",
        };
        let (answers, p95, in_flight) = (tick.answers(), tick.p95(), self.in_flight);
        let report = &self.session.report;
        if report.form() == Form::Text {
            let whose = if self.plan.of_release { format!("{} | ", self.name) } else { String::new() };
            report.say(&format!(
                "[{}] {whose}Health: {health} | Errors: {} | Latency: {} | Requests: {} | In flight: {in_flight}",
                clock(),
                answers.bad,
                milliseconds(p95),
                tick.requests()
            ));
        }
        report.event(
            "tick",
            serde_json::json!({
                "service": self.proxy.service, "backend": self.watched, "health": health, "requests": tick.requests(), "errors": answers.bad,
                "error_rate": answers.rate(), "p95_ms": p95.map(|p95| p95.as_millis()), "in_flight": in_flight,
            }),
        );
    }

    /// Prints the totals of the watch and of the old version.
    pub(in crate::cli) fn compare(&self) {
        let report = &self.session.report;
        report.say(&format!("    {}: {}", self.name, figures(&self.seen)));
        match &self.before {
            Some(before) => {
                let name = named(&before.backend, before.version.as_deref());
                report.say(&format!("    {name}, before the switch: {}", figures(&before.counters)));
            }
            None => report.say("    before the switch: no data"),
        }
        let json = |backend: &BackendName, counters: &Counters| {
            let (answers, p95) = (counters.answers(), counters.p95());
            serde_json::json!({
                "backend": backend, "requests": counters.requests(), "errors": answers.bad,
                "error_rate": answers.rate(), "p95_ms": p95.map(|p95| p95.as_millis()),
            })
        };
        let mut event = json(&self.watched, &self.seen);
        let before = self.before.as_ref().map(|before| json(&before.backend, &before.counters));
        if let Some(event) = event.as_object_mut() {
            event.insert("before".to_owned(), before.into());
            event.insert("allowed_error_rate".to_owned(), self.judge.allowed().share().into());
        }
        report.event("figures", event);
    }
}

pub(super) fn figures(counters: &Counters) -> String {
    let answers = counters.answers();
    format!(
        "{} requests, {} errors ({}), p95 {}",
        counters.requests(),
        answers.bad,
        percent(answers.rate()),
        milliseconds(counters.p95())
    )
}

fn milliseconds(p95: Option<Duration>) -> String {
    p95.map_or_else(|| "-".to_owned(), |p95| format!("{}ms", p95.as_millis()))
}
