//! What an operator sees: steps and lines as in the guide, with a progress bar on a terminal and plain lines in a pipe;
//! or one JSON object a line.
//!
//! What is said here is said as it is. Text from outside has its secrets taken out where it is read (`redact`), and what
//! could steer a terminal is escaped, whoever it came from.

mod output;

use std::cell::RefCell;
use std::fmt::Display;
use std::io::{self, IsTerminal as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::json;

use self::output::{Output, Wait};
use crate::{redact, time};

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
    bar: RefCell<Option<ProgressBar>>,
    terminal: bool,
    last_attempt: RefCell<String>,
    output: RefCell<Output<io::Stdout>>,
}

/// In a pipe, an attempt that came to the same as the one before is told only this often.
const REPEAT_EVERY: u64 = 10;

/// How often the bar moves by itself.
const TICK: Duration = Duration::from_millis(120);

impl Report {
    /// To standard output.
    #[must_use]
    pub fn new(form: Form) -> Self {
        let terminal = form == Form::Text && io::stdout().is_terminal();
        Self {
            form,
            bar: RefCell::new(None),
            terminal,
            last_attempt: RefCell::default(),
            output: RefCell::new(Output::new(io::stdout())),
        }
    }

    /// How it is told.
    #[must_use]
    pub fn form(&self) -> Form {
        self.form
    }

    /// From now on nothing is lost, however slowly it is read: for commands that only show something, and hold no lock.
    pub fn wait_for_reader(&self) {
        self.output.borrow_mut().wait(Wait::ForEver);
    }

    /// Says how much nobody has read, if anything was lost.
    pub fn finish(&self) {
        self.end_progress();
        let lost = self.output.borrow().lost();
        if lost > 0 {
            complain(&format!("standard output was not read: {lost} lines are lost"));
        }
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
    pub fn output(&self, text: &(impl Display + ?Sized)) {
        let text = text.to_string();
        if self.terminal {
            let start = || ProgressBar::new_spinner().with_style(spinner_style());
            self.progress(start, |bar| bar.set_message(shorten(&text)));
        } else {
            self.line(&text);
        }
    }

    /// One of several attempts: a bar on a terminal, a line in a pipe.
    pub fn attempt(&self, number: u64, of: u64, text: &str) {
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
        let text = match self.form {
            Form::Text => redact::escaped(text, |c| matches!(c, '\n' | '\t')),
            // What JSON allows to stand as it is, and a terminal would obey.
            Form::Json => redact::escaped_in_json(text),
        };
        let print = || self.output.borrow_mut().line(&text);
        match &*self.bar.borrow() {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

/// A line of this program's on standard error, which nobody need read.
pub fn complain(text: &str) {
    output::to_standard_error(&format!("uh-deploy: {}", redact::escaped(text, |c| matches!(c, '\n' | '\t'))));
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
