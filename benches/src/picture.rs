//! A run as a picture: who answered how many requests at which time, and what was done meanwhile. Pure.

use std::fmt::{Display, Write as _};
use std::time::{Duration, Instant};

use crate::percentiles::grouped;
use uh_testkit::load::Sample;

/// Answers are counted in steps of this.
const STEP: Duration = Duration::from_millis(200);

/// The plot, within a picture of 860 by 362.
const LEFT: f64 = 64.0;
const WIDTH: f64 = 772.0;
const TOP: f64 = 88.0;
const BOTTOM: f64 = 258.0;

/// Readable on a light and on a dark page.
const STYLE: &str = "text { font: 13px system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; fill: #1f2328 }
.title { font-size: 16px; font-weight: 600 } .quiet { fill: #59636e } .back { fill: #fff; stroke: #d1d9e0 }
.grid { stroke: #d1d9e0 } .mark { stroke: #1f2328; stroke-dasharray: 4 3 } .span { fill: #8c959f; opacity: .35 }
.s0 { fill: #2f76d2 } .s1 { fill: #1f9d55 } .s2 { fill: #d1242f }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .quiet { fill: #9198a1 } .back { fill: #0d1117; stroke: #3d444d }
  .grid { stroke: #3d444d } .mark { stroke: #e6edf3 } .s0 { fill: #4c8ff0 } .s1 { fill: #2fb36a } .s2 { fill: #f85149 } }";

/// A command, and how long it took.
#[derive(Debug, Clone)]
pub struct Span {
    /// What was typed.
    pub label: String,
    /// When it began.
    pub from: Instant,
    /// When it had ended.
    pub to: Instant,
}

/// What is drawn.
#[derive(Debug)]
pub struct Picture<'a> {
    /// Requests, in the order of sending. What failed is drawn too.
    pub samples: &'a [Sample],
    /// The backends, and what they are called in the picture.
    pub backends: [(&'a str, &'a str); 2],
    /// The commands. Those that end after `to` are left out.
    pub spans: &'a [Span],
    /// Where the picture begins.
    pub from: Instant,
    /// Where it ends.
    pub to: Instant,
}

impl Picture<'_> {
    /// Draws it.
    #[must_use]
    pub fn svg(&self) -> String {
        let series = self.series();
        let most = series.iter().flatten().fold(1.0, |most: f64, rate| most.max(*rate));
        let top = (most / 500.0).ceil() * 500.0;
        let in_it = self.samples.iter().filter(|sample| self.step(sample.done_at).is_some());
        let (requests, failed) = in_it
            .fold((0, 0), |(all, failed), sample| (all + 1, failed + usize::from(sample.outcome.is_err())));
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 860 362\" role=\"img\">\n\
             <title>Requests per second by backend, over a deploy and a rollback</title>\n<style>{STYLE}</style>\n\
             <rect class=\"back\" x=\".5\" y=\".5\" width=\"859\" height=\"361\" rx=\"8\"/>\n\
             <text class=\"title\" x=\"20\" y=\"30\">{} requests, {} failed</text>\n",
            grouped(requests),
            grouped(failed)
        );
        let legend = self.backends.map(|(_, name)| name).into_iter().chain(["failed"]);
        for (nth, name) in legend.enumerate() {
            let x = 20 + nth * 130;
            let _ = writeln!(
                svg,
                "<rect class=\"s{nth}\" x=\"{x}\" y=\"44\" width=\"12\" height=\"12\" rx=\"2\"/>"
            );
            text(&mut svg, "", (x + 18) as f64, 55.0, "start", name);
        }
        text(&mut svg, "quiet", LEFT + WIDTH, 30.0, "end", "answers per second, in steps of 200 ms");
        self.axes(&mut svg, top);
        for (nth, rates) in series.iter().enumerate() {
            let _ = writeln!(
                svg,
                "<path class=\"s{nth}\" fill-opacity=\".85\" d=\"{}\"/>",
                self.area(rates, top)
            );
        }
        self.switches(&mut svg);
        self.commands(&mut svg);
        svg.push_str("</svg>\n");
        svg
    }

    /// Answers per second of each backend, and failures, for each step.
    fn series(&self) -> [Vec<f64>; 3] {
        let steps = (self.length_s() / STEP.as_secs_f64()).floor() as usize;
        let mut series = [(); 3].map(|()| vec![0.0; steps]);
        for sample in self.samples {
            let Some(step) = self.step(sample.done_at).filter(|step| *step < steps) else { continue };
            let nth = match &sample.outcome {
                Ok(backend) => {
                    self.backends.iter().position(|(name, _)| *name == backend.as_str()).unwrap_or(2)
                }
                Err(_) => 2,
            };
            series[nth][step] += 1.0 / STEP.as_secs_f64();
        }
        series
    }

    fn length_s(&self) -> f64 {
        self.to.saturating_duration_since(self.from).as_secs_f64()
    }

    fn step(&self, at: Instant) -> Option<usize> {
        let since = at.checked_duration_since(self.from)?;
        (at < self.to).then(|| (since.as_secs_f64() / STEP.as_secs_f64()) as usize)
    }

    fn x(&self, at: Instant) -> f64 {
        self.x_of(at.saturating_duration_since(self.from).as_secs_f64())
    }

    fn x_of(&self, seconds: f64) -> f64 {
        LEFT + (seconds / self.length_s()).min(1.0) * WIDTH
    }

    fn axes(&self, svg: &mut String, top: f64) {
        for part in 0..=2 {
            let value = top * f64::from(part) / 2.0;
            let y = BOTTOM - value / top * (BOTTOM - TOP);
            let _ = writeln!(svg, "<path class=\"grid\" d=\"M{LEFT},{y:.1} h{WIDTH}\"/>");
            text(svg, "quiet", LEFT - 8.0, y + 4.0, "end", grouped(value as usize));
        }
        for second in 0..=(self.length_s() as u32) {
            text(svg, "quiet", self.x_of(f64::from(second)), BOTTOM + 18.0, "middle", format!("{second} s"));
        }
    }

    /// The outline of one series, in steps, from zero up.
    fn area(&self, rates: &[f64], top: f64) -> String {
        let mut path = format!("M{LEFT},{BOTTOM}");
        for (nth, rate) in rates.iter().enumerate() {
            let until = self.x_of((nth + 1) as f64 * STEP.as_secs_f64());
            let _ = write!(path, " V{:.1} H{until:.1}", BOTTOM - rate / top * (BOTTOM - TOP));
        }
        let _ = write!(path, " V{BOTTOM} Z");
        path
    }

    /// Where traffic moves: the first request that the other backend answers, of those sent after a command began.
    fn switches(&self, svg: &mut String) {
        let drawn = self.samples.iter().filter(|sample| self.step(sample.sent_at).is_some());
        let mut active = None;
        let mut seen = Vec::new();
        for sample in drawn {
            let Ok(backend) = &sample.outcome else { continue };
            // A request that was sent before the switch, and is answered late, is no switch back.
            let switched = active.is_some_and(|(name, _)| name != backend);
            if switched
                && !self.spans.iter().any(|span| span.from <= sample.sent_at && sample.sent_at <= span.to)
            {
                continue;
            }
            if active.is_none_or(|(name, since)| name != backend && sample.sent_at > since + STEP) {
                if switched {
                    seen.push(sample.sent_at);
                }
                active = Some((backend, sample.sent_at));
            }
        }
        for at in seen {
            let x = self.x(at);
            let _ = writeln!(svg, "<path class=\"mark\" d=\"M{x:.1},{} V{BOTTOM}\"/>", TOP - 4.0);
            text(svg, "", x, TOP - 9.0, "middle", "switch");
        }
    }

    fn commands(&self, svg: &mut String) {
        let shown = self.spans.iter().filter(|span| span.from >= self.from && span.to <= self.to);
        for (nth, Span { label, from, to }) in shown.enumerate() {
            let (x, y) = (self.x(*from), 288.0 + nth as f64 * 22.0);
            let width = (self.x(*to) - x).max(3.0);
            let _ = writeln!(
                svg,
                "<rect class=\"span\" x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"16\" rx=\"3\"/>"
            );
            // To the side on which there is room.
            match x + width > LEFT + WIDTH * 0.6 {
                true => text(svg, "", x - 6.0, y + 12.5, "end", label),
                false => text(svg, "", x + width + 6.0, y + 12.5, "start", label),
            }
        }
    }
}

/// Writing to a string does not fail.
fn text(svg: &mut String, class: &str, x: f64, y: f64, anchor: &str, text: impl Display) {
    let text = text.to_string().replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        svg,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use uh_testkit::http::Failure;

    #[test]
    fn a_picture_shows_who_answered_what_failed_and_when_traffic_moved() {
        let from = Instant::now();
        let at = |ms: u64| from + Duration::from_millis(ms);
        let sample = |ms: u64, outcome| Sample {
            group: 0,
            sent_at: at(ms),
            done_at: at(ms + 1),
            latency: Duration::from_millis(1),
            late: Duration::ZERO,
            user: None,
            outcome,
        };
        let mut samples: Vec<Sample> = (0..400)
            .map(|nth| sample(nth * 5, Ok(if nth < 200 { "blue" } else { "green" }.parse().unwrap())))
            .collect();
        // Late, from before the switch.
        samples.push(sample(1050, Ok("blue".parse().unwrap())));
        samples.push(sample(1500, Err(Failure::TimedOut)));
        samples.sort_by_key(|sample| sample.sent_at);
        let spans = [("deploy <1&2>", 900, 1200), ("not shown", 1900, 2500)];
        let spans = spans.map(|(label, a, b)| Span { label: label.to_owned(), from: at(a), to: at(b) });
        let backends = [("blue", "blue, 1.0.0"), ("green", "green, 1.0.1")];
        let picture = Picture { samples: &samples, backends, spans: &spans, from, to: at(2000) };
        let [blue, green, failed] = picture.series();
        assert_eq!((blue.len(), blue[3], green[3], green[8]), (10, 200.0, 0.0, 200.0));
        assert_eq!((failed[6], failed[7]), (0.0, 5.0));
        let svg = picture.svg();
        assert!(svg.contains(">402 requests, 1 failed<"), "{svg}");
        assert!(svg.contains(">deploy &lt;1&amp;2><"), "{svg}");
        assert!(!svg.contains("not shown"), "{svg}");
        assert_eq!(svg.matches(">switch<").count(), 1, "{svg}");
    }
}
