//! What an operator sees: steps and lines as in the guide, with a progress bar on a terminal and plain lines in a pipe;
//! or one JSON object a line. Secrets are taken out here, so nothing that goes through here can leak one.

use std::cell::RefCell;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::json;

use crate::redact::Redactor;
use crate::time;

/// How it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Tells an operator what happens.
#[derive(Debug)]
pub struct Report {
    form: Form,
    redactor: Redactor,
    bar: RefCell<Option<ProgressBar>>,
    terminal: bool,
    last_attempt: RefCell<String>,
}

/// In a pipe, an attempt that came to the same as the one before is told only this often.
const REPEAT_EVERY: u64 = 10;

/// How often the bar moves by itself.
const TICK: Duration = Duration::from_millis(120);

impl Report {
    /// To standard output.
    #[must_use]
    pub fn new(form: Form, redactor: Redactor) -> Self {
        let terminal = form == Form::Text && io::stdout().is_terminal();
        Self { form, redactor, bar: RefCell::new(None), terminal, last_attempt: RefCell::default() }
    }

    /// How it is told.
    #[must_use]
    pub fn form(&self) -> Form {
        self.form
    }

    /// A text without secrets.
    #[must_use]
    pub fn clean(&self, text: &str) -> String {
        self.redactor.clean(text).into_owned()
    }

    /// A step begins: `[3/7] Starting process...`
    pub fn step(&self, number: u32, of: u32, title: &str) {
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
    pub fn fact(&self, label: &str, value: &str) {
        self.line(&format!("{label}: {value}"));
    }

    /// A line within a step.
    pub fn line(&self, text: &str) {
        match self.form {
            Form::Text => self.print(&format!("      {text}")),
            Form::Json => self.json("line", json!({"text": text})),
        }
    }

    /// A line that stands for itself.
    pub fn say(&self, text: &str) {
        self.end_progress();
        match self.form {
            Form::Text => self.print(text),
            Form::Json => self.json("line", json!({"text": text})),
        }
    }

    /// Something that should not have been.
    pub fn warn(&self, text: &str) {
        match self.form {
            Form::Text => self.print(&format!("      ⚠ {text}")),
            Form::Json => self.json("warning", json!({"text": text})),
        }
    }

    /// What a tool prints: on a terminal the last line beside the bar, in a pipe every line.
    pub fn output(&self, text: &str) {
        if self.terminal {
            let start = || ProgressBar::new_spinner().with_style(spinner_style());
            self.progress(start, |bar| bar.set_message(shorten(&self.clean(text))));
        } else {
            self.line(text);
        }
    }

    /// One of several attempts: a bar on a terminal, a line in a pipe.
    pub fn attempt(&self, number: u64, of: u64, text: &str) {
        if self.terminal {
            let start = || ProgressBar::new(of).with_style(bar_style());
            self.progress(start, |bar| {
                bar.set_position(number.min(of));
                bar.set_message(shorten(&self.clean(text)));
            });
        } else if number.is_multiple_of(REPEAT_EVERY) || self.last_attempt.borrow().as_str() != text {
            self.line(&format!("Attempt {number}/{of}: {text}"));
            text.clone_into(&mut self.last_attempt.borrow_mut());
        }
    }

    /// A value for programs; printed only as JSON.
    pub fn event(&self, name: &str, value: impl Serialize) {
        if self.form == Form::Json {
            self.json(name, serde_json::to_value(value).unwrap_or_default());
        }
    }

    /// A whole document: pretty in place of text, for commands that only show.
    pub fn document(&self, value: &impl Serialize) {
        self.print(&serde_json::to_string_pretty(value).unwrap_or_default());
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

    /// Takes the bar away, if there is one.
    pub fn end_progress(&self) {
        if let Some(bar) = self.bar.borrow_mut().take() {
            bar.finish_and_clear();
        }
    }

    fn print(&self, text: &str) {
        let text = self.redactor.clean(text);
        let print = || {
            // If nobody reads it, a deploy goes on all the same.
            let _ = writeln!(io::stdout(), "{text}");
        };
        match &*self.bar.borrow() {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

/// Within its step, and cut where the line ends.
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
