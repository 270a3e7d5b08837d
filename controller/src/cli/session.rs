//! What every command starts with: the configuration, and how to report.

use std::collections::HashSet;
use std::io;

use anyhow::Context as _;

use super::args::Args;
use super::exit::{Exit, Failed};
use super::interrupts::Interrupts;
use crate::config::{self, Config};
use crate::deploy::facts::{BY, who};
use crate::deploy::history::{History, Line};
use crate::deploy::lock::{Holder, Lock};
use crate::deploy::records::Records;
use crate::front::Front;
use crate::report::{Form, Report};
use crate::runtime::{self, Runtime};
use crate::time::iso_millis;
use crate::{files, redact};

/// A command under way.
pub(super) struct Session {
    pub(super) config: Config,
    pub(super) report: Report,
    pub(super) runtime: Box<dyn Runtime>,
    pub(super) interrupts: Interrupts,
}

impl Session {
    pub(super) fn open(args: &Args) -> Result<Self, Failed> {
        let config = config::load(&args.config)
            .with_context(|| format!("{} can't be used", args.config.display()))
            .map_err(|e| Failed::usage(format!("{e:#}")))?;
        if let Some(by) = args.by.clone().filter(|by| !by.trim().is_empty()) {
            let _ = BY.set(by);
        }
        let form = if args.json { Form::Json } else { Form::Text };
        let state_dir = files::demand_ours_if_there(&config.deploy.state_dir);
        state_dir
            .map_err(|e| Failed::new(Exit::Failed, format!("{}; nothing was changed", crate::chain(&e))))?;
        redact::remember(redact::of_config(&config));
        let report = Report::new(form);
        let runtime = runtime::for_config(&config);
        Ok(Self { config, report, runtime, interrupts: Interrupts::default() })
    }

    /// Makes this command the only one that changes anything.
    pub(super) fn lock(&self, what: &str) -> Result<Lock, Failed> {
        let holder = Holder {
            pid: std::process::id(),
            who: who(),
            what: what.to_owned(),
            since: iso_millis(jiff::Timestamp::now()),
            program: env!("CARGO_PKG_VERSION").to_owned(),
        };
        Ok(Lock::take(&self.config.deploy.state_dir, &holder)?)
    }

    /// The front door's service.
    pub(super) async fn front(&self) -> Result<Front, Failed> {
        Ok(Front::find(&self.config).await?)
    }

    /// What is on record, by any backend or as a candidate: images that a rollback would start again.
    pub(super) fn recorded_artifacts(&self) -> io::Result<HashSet<String>> {
        Records::new(&self.config.deploy.state_dir).artifacts()
    }

    /// A line in the history for a command that is no operation.
    pub(super) fn remember(&self, line: Line) {
        let line = Line { at: iso_millis(jiff::Timestamp::now()), who: who(), ..line };
        if let Err(e) = History::new(&self.config.deploy.state_dir).append(&line) {
            self.report.warn(&format!("the history could not be written: {}", crate::chain(&e)));
        }
    }
}
