//! What an operator sees: steps and lines, with a progress bar on a terminal and plain lines in a pipe; or one JSON
//! object per line.
//!
//! Nothing is redacted here: foreign text is redacted where it is read (`redact`). Terminal control characters are
//! escaped in all text.

mod output;

use std::cell::RefCell;
use std::fmt::Display;
use std::io::{self, IsTerminal as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::json;
use uh_protocol::ServiceName;

use self::output::{Output, Wait};
use crate::{redact, time};

/// The output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Text.
    Text,
    /// One JSON object per line.
    Json,
}

/// How a line is to be taken: its first word has a colour on a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    /// Neither good nor bad.
    Plain,
    /// As it should be: green.
    Good,
    /// To be looked at: yellow.
    Doubt,
    /// Something is wrong: red.
    Bad,
}

/// A line of a screen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    mood: Mood,
    text: String,
}

impl Line {
    /// A line with this text, which may come from anywhere.
    pub(super) fn new(mood: Mood, text: &str) -> Self {
        Self { mood, text: redact::escaped(text, |c| c == '\t') }
    }

    /// With its colour, and cut at this width.
    fn painted(&self, width: Option<usize>) -> String {
        let text = match width {
            Some(width) => console::truncate_str(&self.text, width, "…"),
            None => self.text.as_str().into(),
        };
        let (first, rest) = text.split_at(text.find(' ').unwrap_or(text.len()));
        let first = match self.mood {
            Mood::Plain => console::style(first),
            Mood::Good => console::style(first).green(),
            Mood::Doubt => console::style(first).yellow(),
            Mood::Bad => console::style(first).red(),
        };
        format!("{first}{rest}")
    }
}

/// Prints what happens.
#[derive(Debug)]
pub(super) struct Report {
    form: Form,
    bar: RefCell<Option<ProgressBar>>,
    terminal: bool,
    last_attempt: RefCell<String>,
    output: RefCell<Output<io::Stdout>>,
}

/// In a pipe, an attempt with the same result as the previous one is printed only this often.
const REPEAT_EVERY: u64 = 10;

/// How often the bar is redrawn.
const TICK: Duration = Duration::from_millis(120);

impl Report {
    /// A report to standard output.
    #[must_use]
    pub(super) fn new(form: Form) -> Self {
        let terminal = form == Form::Text && io::stdout().is_terminal();
        Self {
            form,
            bar: RefCell::new(None),
            terminal,
            last_attempt: RefCell::default(),
            output: RefCell::new(Output::new(io::stdout())),
        }
    }

    /// The output format.
    #[must_use]
    pub(super) fn form(&self) -> Form {
        self.form
    }

    /// Waits for a slow reader from now on, instead of dropping lines: for commands that only show something and hold
    /// no lock.
    pub(super) fn wait_for_reader(&self) {
        self.output.borrow_mut().wait(Wait::Indefinitely);
    }

    /// Reports how many lines were dropped, if any.
    pub(super) fn finish(&self) {
        self.end_progress();
        let lost = self.output.borrow().lost();
        if lost > 0 {
            complain(&format!("standard output wasn't read: {lost} lines were dropped"));
        }
    }

    /// Starts a step: `[3/7] Starting process...`
    pub(super) fn step(&self, number: u32, of: u32, title: &str) {
        self.end_progress();
        match self.form {
            Form::Text => {
                let gap = if number > 1 {
                    "
"
                } else {
                    ""
                };
                self.print(&format!("{gap}[{number}/{of}] {title}..."));
            }
            Form::Json => self.json("step", json!({"step": number, "of": of, "title": title})),
        }
    }

    /// A fact within a step: `      Port: 3009`
    pub(super) fn fact(&self, label: &str, value: &str) {
        self.line(&format!("{label}: {value}"));
    }

    /// A line within a step.
    pub(super) fn line(&self, text: &str) {
        match self.form {
            Form::Text => self.print(&format!("      {text}")),
            Form::Json => self.json("line", json!({"text": text})),
        }
    }

    /// A line outside of steps.
    pub(super) fn say(&self, text: &str) {
        self.end_progress();
        match self.form {
            Form::Text => self.print(text),
            Form::Json => self.json("line", json!({"text": text})),
        }
    }

    /// Starts what concerns one of several services.
    pub(super) fn service(&self, name: &ServiceName) {
        self.end_progress();
        match self.form {
            Form::Text => self.print(&format!("── {name}")),
            Form::Json => self.json("service", json!({"service": name})),
        }
    }

    /// A warning.
    pub(super) fn warn(&self, text: &str) {
        match self.form {
            Form::Text => self.print(&format!("      ⚠ {text}")),
            Form::Json => self.json("warning", json!({"text": text})),
        }
    }

    /// Output of a tool: on a terminal only the last line, next to the bar; in a pipe every line.
    pub(super) fn output(&self, text: &(impl Display + ?Sized)) {
        let text = text.to_string();
        if self.terminal {
            let start = || ProgressBar::new_spinner().with_style(spinner_style());
            self.progress(start, |bar| bar.set_message(shorten(&text)));
        } else {
            self.line(&text);
        }
    }

    /// One of several attempts: a bar on a terminal, a line in a pipe.
    pub(super) fn attempt(&self, number: u64, of: u64, text: &str) {
        if self.terminal {
            let start = || ProgressBar::new(of).with_style(bar_style());
            self.progress(start, |bar| {
                bar.set_position(number.min(of));
                bar.set_message(shorten(text));
            });
        } else if number.is_multiple_of(REPEAT_EVERY) || self.last_attempt.borrow().as_str() != text {
            self.line(&format!("Attempt {number}/{of}: {text}"));
            text.clone_into(&mut self.last_attempt.borrow_mut());
        }
    }

    /// An event for programs; printed only as JSON.
    pub(super) fn event(&self, name: &str, value: impl Serialize) {
        if self.form == Form::Json {
            self.json(name, serde_json::to_value(value).unwrap_or_default());
        }
    }

    /// A whole JSON document, for commands that only show something.
    pub(super) fn document(&self, value: &impl Serialize) {
        self.print(&serde_json::to_string_pretty(value).unwrap_or_default());
    }

    /// Whether standard output is a terminal that gets text.
    pub(super) fn is_on_terminal(&self) -> bool {
        self.terminal
    }

    /// Prints a screen, with colours on a terminal.
    pub(super) fn show(&self, lines: &[Line]) {
        let mut output = self.output.borrow_mut();
        lines.iter().for_each(|line| output.line(&line.painted(None)));
    }

    /// Draws a screen over the last one; the first one over whatever the terminal shows.
    pub(super) fn redraw(&self, lines: &[Line], first: bool) {
        let (height, width) = console::Term::stdout().size();
        let rows = usize::from(height).saturating_sub(1).max(1);
        // To the top; each line up to its end; then what is left of the last screen.
        let mut screen = if first { "\x1b[2J\x1b[H" } else { "\x1b[H" }.to_owned();
        for line in lines.iter().take(rows) {
            screen += &line.painted(Some(width.into()));
            screen += "\x1b[K\n";
        }
        screen += "\x1b[J";
        self.output.borrow_mut().raw(&screen);
    }

    fn json(&self, event: &str, value: serde_json::Value) {
        let mut object = json!({"at": time::iso_millis(jiff::Timestamp::now()), "event": event});
        if let (Some(object), serde_json::Value::Object(fields)) = (object.as_object_mut(), value) {
            object.extend(fields);
        }
        self.print(&object.to_string());
    }

    fn progress(&self, start: impl FnOnce() -> ProgressBar, update: impl FnOnce(&ProgressBar)) {
        let mut slot = self.bar.borrow_mut();
        let bar = slot.get_or_insert_with(|| {
            let bar = start();
            bar.enable_steady_tick(TICK);
            bar
        });
        update(bar);
    }

    /// Removes the bar, if there is one.
    pub(super) fn end_progress(&self) {
        if let Some(bar) = self.bar.borrow_mut().take() {
            bar.finish_and_clear();
        }
    }

    fn print(&self, text: &str) {
        let text = match self.form {
            Form::Text => redact::escaped(text, |c| matches!(c, '\n' | '\t')),
            // JSON allows some control characters that a terminal would interpret.
            Form::Json => redact::escaped_in_json(text),
        };
        let print = || self.output.borrow_mut().line(&text);
        match &*self.bar.borrow() {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

/// Prints an error or a remark to standard error. Never blocks for long.
pub(super) fn complain(text: &str) {
    output::to_standard_error(&format!("uh-deploy: {}", redact::escaped(text, |c| matches!(c, '\n' | '\t'))));
}

/// Indented like a step's lines, and cut at the width of the terminal.
fn spinner_style() -> ProgressStyle {
    ProgressStyle::with_template("      {spinner} {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template("      {bar:20} {pos}/{len} {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// A bar has one line.
fn shorten(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}
