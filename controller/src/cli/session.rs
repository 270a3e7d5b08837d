//! What every command starts with: configuration, report, runtime and lock.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::Path;
use std::rc::{Rc, Weak};
use std::time::Duration;

use anyhow::Context as _;

use super::args::Args;
use super::exit::{CliError, Exit, journal_failed};
use super::interrupts::Interrupts;
use super::release::membership;
use crate::cli::report::{Form, Report, complain};
use crate::config::{self, Config};
use crate::deploy::facts::{BY, who};
use crate::deploy::history::{History, HistoryEntry};
use crate::deploy::journal::{Journal, ReplayedOperation};
use crate::deploy::lock::{Holder, Lock, LockError};
use crate::deploy::records::Records;
use crate::proxy::ProxyService;
use crate::runtime::{self, Runtime};
use crate::time::{iso_millis, span};
use crate::waiting::Waiting;
use crate::{files, redact};

/// A running command.
pub(super) struct Session {
    pub(super) config: Config,
    pub(super) report: Rc<Report>,
    pub(super) runtime: Box<dyn Runtime>,
    pub(super) interrupts: Interrupts,
    waiting: Waiting,
    journal: RefCell<Weak<File>>,
}

/// How long rollbacks and `recover` wait for the lock: longer than a `retire` takes, shorter than an operator's
/// patience.
const LOCK_PATIENCE: Duration = Duration::from_secs(120);

impl Session {
    /// The command's session with its configuration.
    pub(super) fn open(args: &Args) -> Result<Self, CliError> {
        let form = if args.json { Form::Json } else { Form::Text };
        Self::with(args, &args.config, Rc::new(Report::new(form)))
    }

    /// The same, with another configuration: that of a member of a release.
    pub(super) fn with(args: &Args, file: &Path, report: Rc<Report>) -> Result<Self, CliError> {
        let config = config::load(file)
            .with_context(|| format!("can't use {}", file.display()))
            .map_err(|e| CliError::usage(format!("{e:#}")))?;
        if let Some(by) = args.by.clone().filter(|by| !by.trim().is_empty()) {
            let _ = BY.set(by);
        }
        let state_dir = files::demand_ours_if_there(&config.deploy.state_dir);
        state_dir
            .map_err(|e| CliError::new(Exit::Failed, format!("{}; nothing was changed", crate::chain(&e))))?;
        redact::remember(redact::of_config(&config));
        let said = Rc::clone(&report);
        let waiting = match args.command.only_shows() {
            true => Waiting::new(complain),
            false => Waiting::new(move |line| said.line(line)),
        };
        let runtime = runtime::for_config(&config, waiting.clone());
        Ok(Self {
            config,
            report,
            runtime,
            interrupts: Interrupts::default(),
            waiting,
            journal: RefCell::default(),
        })
    }

    /// Where long waits are reported.
    pub(super) fn waiting(&self) -> Waiting {
        self.waiting.clone()
    }

    /// Takes the lock, so that no other command changes anything.
    pub(super) fn lock(&self, what: &str) -> Result<Lock, CliError> {
        let lock = self.lock_for_release(what)?;
        membership::demand_finished(&self.config.deploy.state_dir)?;
        Ok(lock)
    }

    /// The same, even if a release that this service is a member of is unfinished.
    pub(super) fn lock_for_release(&self, what: &str) -> Result<Lock, CliError> {
        let lock = Lock::take(&self.config.deploy.state_dir, &holder(what))?;
        self.journal.replace(Rc::downgrade(&lock.journal()));
        Ok(lock)
    }

    /// The same, for a command that must not give up because another one is running briefly.
    pub(super) async fn lock_patiently(&self, what: &str) -> Result<Lock, CliError> {
        let lock = self.lock_patiently_for_release(what).await?;
        membership::demand_finished(&self.config.deploy.state_dir)?;
        Ok(lock)
    }

    /// The same, even if a release that this service is a member of is unfinished.
    pub(super) async fn lock_patiently_for_release(&self, what: &str) -> Result<Lock, CliError> {
        let lock = wait_for_lock(&self.config.deploy.state_dir, what, &self.report).await?;
        self.journal.replace(Rc::downgrade(&lock.journal()));
        Ok(lock)
    }

    /// The journal and its newest operation. The lock must be held.
    pub(super) fn journal(&self) -> Result<(Journal, Option<ReplayedOperation>), CliError> {
        let file = self.journal.borrow().upgrade();
        let file = file.ok_or_else(|| CliError::new(Exit::Failed, "internal error: the lock isn't held"))?;
        Journal::open(&self.config.deploy.state_dir, file).map_err(|e| journal_failed(&e))
    }

    /// The service at uh-proxy.
    pub(super) async fn proxy(&self) -> Result<ProxyService, CliError> {
        Ok(ProxyService::find(&self.config).await?)
    }

    /// The recorded artifacts of all backends and of a candidate, which a rollback would start again.
    pub(super) fn recorded_artifacts(&self) -> io::Result<HashSet<String>> {
        Records::new(&self.config.deploy.state_dir).artifacts()
    }

    /// Adds an entry to the history, for a command that isn't an operation.
    pub(super) fn remember(&self, line: HistoryEntry) {
        let line = HistoryEntry { at: iso_millis(jiff::Timestamp::now()), who: who(), ..line };
        if let Err(e) = History::new(&self.config.deploy.state_dir).append(&line) {
            self.report.warn(&format!("can't write the history: {}", crate::chain(&e)));
        }
    }
}

/// Takes the lock of a state directory once it is free.
pub(super) async fn wait_for_lock(state_dir: &Path, what: &str, report: &Report) -> Result<Lock, CliError> {
    let waiting = |held: &LockError| {
        report.say(&format!("Waiting up to {} for the lock: {held}", span(LOCK_PATIENCE)));
    };
    Ok(Lock::wait(state_dir, &holder(what), LOCK_PATIENCE, waiting).await?)
}

/// This process, for the lock.
pub(super) fn holder(what: &str) -> Holder {
    Holder {
        pid: std::process::id(),
        who: who(),
        what: what.to_owned(),
        since: iso_millis(jiff::Timestamp::now()),
        program: env!("CARGO_PKG_VERSION").to_owned(),
    }
}
