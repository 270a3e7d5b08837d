//! Says what a recording proves: which answers came from a backend that could not be active, and how long each
//! switch took to be felt. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use uh_protocol::BackendName;

use crate::load::{Recording, Sample};

/// One switch, as its caller saw it. Traffic moved at some moment between call and reply.
#[derive(Debug, Clone)]
pub struct Switch {
    /// Active afterwards.
    pub to: BackendName,
    /// Just before the call.
    pub called_at: Instant,
    /// When the reply had been received.
    pub replied_at: Instant,
}

/// What a recording proves.
#[derive(Debug)]
pub struct Verdict {
    /// How many requests there were.
    pub requests: usize,
    /// How many failed, by kind.
    pub failures: BTreeMap<String, usize>,
    /// Connections that the server closed.
    pub closed_by_server: usize,
    /// One line for each answer from a backend that was not active at any moment of the request.
    pub old_answers: Vec<String>,
    /// For each switch: from its call to the first answer of the new backend to a request that was sent after it.
    pub first_answers: Vec<Option<Duration>>,
}

impl Verdict {
    /// Judges a recording. The switches are in order and don't overlap; the samples are in order of sending.
    #[must_use]
    pub fn of(recording: &Recording, initial: &BackendName, switches: &[Switch]) -> Self {
        let mut failures = BTreeMap::new();
        let mut old_answers = Vec::new();
        for sample in &recording.samples {
            match &sample.outcome {
                Err(failure) => *failures.entry(failure.to_string()).or_default() += 1,
                Ok(backend) if may_answer(backend, sample, initial, switches) => {}
                Ok(backend) => old_answers.push(describe(backend, sample, switches)),
            }
        }
        Self {
            requests: recording.samples.len(),
            failures,
            closed_by_server: recording.closed_by_server,
            old_answers,
            first_answers: first_answers(&recording.samples, switches),
        }
    }

    /// Failures of all kinds.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.failures.values().sum()
    }

    /// Why this run is not good; empty for a good one.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.requests == 0 {
            faults.push("no request was made".to_owned());
        }
        faults.extend(self.failures.iter().map(|(kind, count)| format!("{count} requests failed: {kind}")));
        if self.closed_by_server > 0 {
            faults.push(format!("the server closed {} client connections", self.closed_by_server));
        }
        if let Some(first) = self.old_answers.first() {
            faults.push(format!("{} answers came from the wrong backend; {first}", self.old_answers.len()));
        }
        faults
    }
}

/// How many requests were sent and not yet answered at this moment.
#[must_use]
pub fn open_at(samples: &[Sample], moment: Instant) -> usize {
    let sent_before = samples.partition_point(|sample| sample.sent_at <= moment);
    samples[..sent_before].iter().filter(|sample| sample.done_at > moment).count()
}

/// Whether this backend could be the active one at any moment between sending and answer: it was when the request
/// was sent, or a switch that made it so was called before the answer was there.
fn may_answer(backend: &BackendName, sample: &Sample, initial: &BackendName, switches: &[Switch]) -> bool {
    let settled = switches.partition_point(|switch| switch.replied_at <= sample.sent_at);
    let (before, later) = switches.split_at(settled);
    let active = before.last().map_or(initial, |switch| &switch.to);
    let mut overlapping = later.iter().take_while(|switch| switch.called_at <= sample.done_at);
    backend == active || overlapping.any(|switch| switch.to == *backend)
}

fn describe(backend: &BackendName, sample: &Sample, switches: &[Switch]) -> String {
    let settled = switches.partition_point(|switch| switch.replied_at <= sample.sent_at);
    match switches[..settled].last() {
        None => format!("{backend} answered a request from before the first switch"),
        Some(switch) => {
            let after = sample.sent_at.saturating_duration_since(switch.replied_at);
            format!(
                "{backend} answered a request sent {after:?} after the reply of switch {settled} to {}",
                switch.to
            )
        }
    }
}

fn first_answers(samples: &[Sample], switches: &[Switch]) -> Vec<Option<Duration>> {
    let first_sent_after = |instant| samples.partition_point(|sample| sample.sent_at < instant);
    let mut found = Vec::with_capacity(switches.len());
    for (index, switch) in switches.iter().enumerate() {
        let from = first_sent_after(switch.called_at);
        let until = switches.get(index + 1).map_or(samples.len(), |next| first_sent_after(next.called_at));
        let answers = samples[from..until].iter().filter(|sample| sample.outcome.as_ref() == Ok(&switch.to));
        found.push(answers.map(|sample| sample.done_at - switch.called_at).min());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Failure;

    fn name(text: &str) -> BackendName {
        text.parse().unwrap()
    }

    /// A time line in milliseconds: switches are (call, reply, to), requests are (sent, done, backend).
    fn judge(switches: &[(u64, u64, &str)], requests: &[(u64, u64, &str)]) -> Verdict {
        let zero = Instant::now();
        let at = |ms| zero + Duration::from_millis(ms);
        let samples =
            requests.iter().map(|&(sent, done, backend)| sample(at(sent), at(done), Ok(name(backend))));
        let switches: Vec<_> = switches
            .iter()
            .map(|&(call, reply, to)| Switch { to: name(to), called_at: at(call), replied_at: at(reply) })
            .collect();
        let recording = Recording { samples: samples.collect(), closed_by_server: 0 };
        Verdict::of(&recording, &name("blue"), &switches)
    }

    fn sample(sent_at: Instant, done_at: Instant, outcome: Result<BackendName, Failure>) -> Sample {
        Sample {
            group: 0,
            sent_at,
            done_at,
            latency: done_at - sent_at,
            late: Duration::ZERO,
            user: None,
            outcome,
        }
    }

    const THERE_AND_BACK: [(u64, u64, &str); 2] = [(100, 110, "green"), (200, 210, "blue")];

    #[test]
    fn an_answer_from_the_old_backend_to_a_request_sent_after_the_reply_is_old() {
        for (sent, done, backend, fine) in [
            (10, 20, "blue", true),
            (10, 20, "green", false),   // before any switch
            (10, 105, "green", true),   // overlaps the switch
            (10, 120, "blue", true),    // sent before it
            (105, 120, "blue", true),   // sent within it
            (105, 120, "green", true),  // sent within it
            (110, 120, "blue", false),  // sent after the reply
            (111, 120, "green", true),  // sent after the reply
            (150, 200, "blue", true),   // overlaps the later switch
            (150, 199, "blue", false),  // ends before the later switch
            (205, 300, "green", true),  // sent within the later switch
            (10, 300, "green", true),   // spans both
            (211, 300, "green", false), // after both
            (211, 300, "red", false),   // never active
        ] {
            let verdict = judge(&THERE_AND_BACK, &[(sent, done, backend)]);
            assert_eq!(verdict.old_answers.is_empty(), fine, "{sent}..{done} {backend}");
            assert_eq!(verdict.faults().is_empty(), fine, "{sent}..{done} {backend}");
        }
    }

    #[test]
    fn an_old_answer_is_described_by_the_switch_it_contradicts() {
        let verdict = judge(&THERE_AND_BACK, &[(150, 160, "blue")]);
        assert_eq!(
            verdict.old_answers,
            ["blue answered a request sent 40ms after the reply of switch 1 to green"]
        );
    }

    #[test]
    fn the_first_answer_is_to_a_request_sent_after_the_call() {
        let verdict = judge(
            &THERE_AND_BACK,
            &[
                (90, 101, "green"),
                (101, 108, "blue"),
                (102, 109, "green"),
                (103, 104, "green"),
                (250, 260, "green"),
            ],
        );
        assert_eq!(verdict.first_answers, [Some(Duration::from_millis(4)), None]);
    }

    #[test]
    fn requests_without_an_answer_yet_are_open() {
        let zero = Instant::now();
        let at = |ms| zero + Duration::from_millis(ms);
        let open = |sent, done| sample(at(sent), at(done), Ok(name("blue")));
        let samples = [open(80, 99), open(90, 105), open(99, 300), open(101, 300)];
        assert_eq!(open_at(&samples, at(100)), 2);
    }

    #[test]
    fn failures_closed_connections_and_silence_are_faults() {
        let now = Instant::now();
        let failed = |failure| sample(now, now, Err(failure));
        let samples =
            vec![failed(Failure::TimedOut), failed(Failure::BadStatus(502)), failed(Failure::TimedOut)];
        let verdict = Verdict::of(&Recording { samples, closed_by_server: 2 }, &name("blue"), &[]);
        assert_eq!(verdict.failed(), 3);
        assert_eq!(
            verdict.faults(),
            [
                "2 requests failed: no answer in time",
                "1 requests failed: status 502",
                "the server closed 2 client connections"
            ]
        );
        assert_eq!(judge(&[], &[]).faults(), ["no request was made"]);
    }
}
