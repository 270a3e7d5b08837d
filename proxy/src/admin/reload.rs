//! Reloads the configuration: the whole file is checked first, then all of it is applied, and no connection is touched.
//! Keys that need a restart are listed and keep their old values.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use uh_protocol::request::Reloaded;
use uh_protocol::{Code, Problem};
use uh_switching::Refusal;
use uh_system::plain;

use super::audit::{Audit, Changed, Did, Wait};
use super::control::Control;
use super::socket::Peer;
use crate::acme::{self, Plan};
use crate::config::{self, Config, changes};
use crate::front::settings::Settings;
use crate::front::sticky::StickyKey;
use crate::observe::access_log::{self, Reopened, Sink};
use crate::state::cookie_key::CookieKey;
use crate::systemd;
use crate::tls;

/// How long reading and checking may take: a file on a disk that hangs, or a log that is a pipe without a reader, must
/// not block the caller.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// Who requested the reload.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Asked {
    /// A caller of the admin socket.
    By(Peer),
    /// SIGHUP.
    BySignal,
}

/// A configuration that has been checked completely.
struct Checked {
    text: String,
    config: Config,
    settings: Settings,
    tls: Option<tls::server::CheckedTls>,
    log: Sink,
}

/// The result of reopening the access log.
#[derive(Debug)]
enum Reopening {
    Done(Reopened),
    Failed(io::Error),
    /// It continues, and takes effect once the disk responds.
    Slow,
    /// An earlier one hangs, so this one wasn't started.
    Busy,
}

/// Reopens the access log with `open`, which may wait for a disk. One at a time, guarded by `turn`: each attempt that
/// hangs occupies one of few threads.
async fn reopen_within(
    at_most: Duration,
    turn: &Arc<Mutex<()>>,
    open: impl FnOnce() -> io::Result<Reopened> + Send + 'static,
) -> Reopening {
    let Ok(turn) = tokio::time::timeout(at_most, Arc::clone(turn).lock_owned()).await else {
        return Reopening::Busy;
    };
    let opening = tokio::task::spawn_blocking(move || {
        let opened = open();
        drop(turn);
        opened
    });
    match tokio::time::timeout(at_most, opening).await {
        Ok(Ok(Ok(reopened))) => Reopening::Done(reopened),
        Ok(Ok(Err(error))) => Reopening::Failed(error),
        Ok(Err(_)) | Err(_) => Reopening::Slow,
    }
}

impl Control {
    /// Reloads at every SIGHUP, indefinitely. Signals that arrive during a reload cause one more.
    pub(crate) async fn reload_when_wanted(self: Arc<Self>) {
        loop {
            self.reloading.wanted.notified().await;
            // The result has been logged.
            let _ = self.reload(Asked::BySignal).await;
        }
    }

    /// Reopens the access log at every SIGUSR1, indefinitely.
    pub(crate) async fn reopen_log_when_wanted(self: Arc<Self>) {
        loop {
            self.reloading.reopen_wanted.notified().await;
            self.reopen_log("SIGUSR1").await;
        }
    }

    /// Reopens the access log and logs the result. A failure stops nothing.
    async fn reopen_log(&self, why: &str) {
        let log_control = self.reloading.log_control.clone();
        match reopen_within(CHECK_TIMEOUT, &self.reloading.reopening, move || log_control.reopen()).await {
            Reopening::Done(Reopened::File(path)) => {
                tracing::info!(path = %path.display(), why, "access log reopened");
            }
            Reopening::Done(Reopened::NoFile) => {
                tracing::info!(why, "the access log isn't a file; nothing to reopen");
            }
            Reopening::Failed(error) => {
                tracing::error!(error = %plain(&error), why, "cannot reopen the access log; still writing to the old file");
            }
            Reopening::Slow => {
                tracing::error!(
                    why,
                    "the disk is slow; still writing to the old access log until the new one is open"
                );
            }
            Reopening::Busy => {
                tracing::error!(
                    why,
                    "the access log was not reopened: an earlier attempt is still waiting for the disk; try again"
                );
            }
        }
    }

    /// `POST /v1/reload`
    ///
    /// # Errors
    /// If the file is invalid; nothing has changed then.
    pub(crate) async fn reload(&self, asked: Asked) -> Result<Reloaded, Problem> {
        let mut text = self.reloading.text.lock().await;
        systemd::reloading();
        // First and in any case: after a log rotation, a mistake in the file must not cost log lines.
        self.reopen_log("reload").await;
        let by = match asked {
            Asked::By(peer) => peer.to_string(),
            Asked::BySignal => "SIGHUP".to_owned(),
        };
        let audit = Audit::reload(&by);
        let result = self.check_and_apply(&mut text, audit).await;
        let said = match &result {
            Ok(done) => format!("serving, generation {}", done.generation),
            Err(problem) => {
                audit.refused(problem);
                "serving; the last reload was rejected, see the log".to_owned()
            }
        };
        systemd::ready(&said);
        result
    }

    async fn check_and_apply(&self, text: &mut String, audit: Audit<'_>) -> Result<Reloaded, Problem> {
        let (path, sticky) = (self.reloading.path.clone(), Arc::clone(&self.sticky));
        let checked = tokio::task::spawn_blocking(move || check(&path, &sticky));
        let late = |_| unusable(&self.reloading.path, "reading it timed out");
        let checked = tokio::time::timeout(CHECK_TIMEOUT, checked).await.map_err(late)?;
        let checked = checked.map_err(|e| Problem::new(Code::Internal, e.to_string()))??;
        let Checked { text: new_text, config, settings, tls, log } = checked;
        let plan = tls.as_ref().and_then(|tls| Plan::of(&config, tls));
        let certificates = self.tls.as_ref().zip(tls);
        if let Some((server, checked)) = &certificates {
            server.may_replace(checked).map_err(|e| unusable(&self.reloading.path, &plain(&e)))?;
        }
        let record = |service: &config::Service| {
            Some((
                service.name.clone(),
                self.state_writer.entry(&service.name)?.record().at(jiff::Timestamp::now()),
            ))
        };
        let known = config.services.iter().filter_map(record).collect();
        self.rates.prepare(&config.services);
        let services = config.services.into_iter().map(Arc::new).collect();
        let done = self.board.reload(services, known).map_err(|refusal| refused(&refusal))?;
        let mut renewed = false;
        if let Some((server, checked)) = certificates {
            renewed = server.replace(checked).map_err(|e| unusable(&self.reloading.path, &plain(&e)))?;
        }
        if let Some(acme) = &self.acme {
            acme.apply(plan);
        }
        for cell in &self.reloading.settings {
            cell.store(settings.clone());
        }
        self.reloading.log_control.redirect(config.server.access_log, log);
        let keys = changes::changed_keys(text, &new_text);
        let overridden = self.overridden(&keys);
        let only_order = keys.is_empty() && done.changed;
        let in_force = |key: &String| !changes::needs_restart(key) && !overridden.contains(key);
        let mut changed: Vec<String> = keys.into_iter().filter(in_force).collect();
        if only_order {
            // The same tables in a different order.
            changed.push("services".to_owned());
        }
        let certificates = "server.tls.certificates".to_owned();
        if renewed && !changed.contains(&certificates) {
            // The same files with new contents.
            changed.push(certificates);
        }
        let needs_restart = changes::changed_keys(&self.reloading.text_at_start, &new_text);
        let needs_restart: Vec<String> =
            needs_restart.into_iter().filter(|key| changes::needs_restart(key)).collect();
        *text = new_text;
        let did = Did {
            changed: Changed::What(&changed.join(", ")),
            needs_restart: Some(&needs_restart.join(", ")),
            overridden: Some(&overridden.join(", ")),
            generation: Some(done.generation),
            ..Did::default()
        };
        let wait = if done.changed { Wait::ThisChange } else { Wait::Nothing };
        if done.changed {
            self.news.backends.notify_one();
        }
        let persisted = self.settle(wait, audit, did).await;
        Ok(Reloaded {
            generation: done.generation,
            changed,
            needs_restart,
            overridden,
            persisted: persisted.is_ok(),
            persist_error: persisted.error(),
        })
    }

    /// Backend keys of the file that a registration overrides. `changed`: the keys that changed in the file since the
    /// last reload.
    fn overridden(&self, changed: &[String]) -> Vec<String> {
        let snapshot = self.board.snapshot();
        let mut keys = Vec::new();
        for state in &snapshot.services {
            for (configured, backend) in
                state.config.backends.iter().filter_map(|c| Some((c, state.backend(&c.name)?)))
            {
                let key =
                    |key: &str| format!("services.{}.backends.{}.{key}", state.config.name, configured.name);
                if !backend.has_addresses(&configured.endpoints) {
                    keys.push(key("endpoints"));
                }
                let version = key("version");
                let said = configured.version.is_some() || changed.contains(&version);
                if said && backend.version.as_deref() != configured.version.as_deref() {
                    keys.push(version);
                }
            }
        }
        keys
    }
}

/// Reads and checks everything without changing anything.
fn check(path: &Path, sticky: &StickyKey) -> Result<Checked, Problem> {
    let text = config::read(path).map_err(|e| unusable(path, &plain(&e)))?;
    let config = config::parse(&text).map_err(|e| unusable(path, &plain(&e.in_file(path))))?;
    let settings = Settings::load(&config.server).map_err(|e| unusable(path, &plain(&e)))?;
    let tls = config.server.tls.as_ref().map(tls::server::check).transpose();
    let tls = tls.map_err(|e| unusable(path, &plain(&e)))?;
    let acme = config.server.acme.as_ref().map(acme::open).transpose();
    acme.map_err(|e| unusable(path, &plain(&e)))?;
    let log = access_log::open(&config.server.access_log).map_err(|e| unusable(path, &plain(&e)))?;
    if sticky.is_missing(&config.services) {
        let key = CookieKey::open(&config.server.state_file);
        sticky.set(key.map_err(|e| unusable(path, &plain(&e)))?);
    }
    Ok(Checked { text, config, settings, tls, log })
}

fn unusable(path: &Path, reason: &str) -> Problem {
    let detail = format!("cannot load {}, so nothing was changed: {reason}", path.display());
    Problem::new(Code::InvalidConfiguration, detail)
}

fn refused(refusal: &Refusal) -> Problem {
    let code = match refusal {
        Refusal::ActiveRemoved { .. } | Refusal::InSplit { .. } => Code::BackendActive,
        Refusal::Frozen => Code::Busy,
        _ => Code::Conflict,
    };
    Problem::new(code, refusal.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_reopening_that_hangs_keeps_no_other_one_waiting_and_takes_one_thread() {
        let moment = Duration::from_millis(50);
        let turn = Arc::default();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let hang = move || {
            let _ = released.recv();
            Ok(Reopened::NoFile)
        };
        assert!(matches!(reopen_within(moment, &turn, hang).await, Reopening::Slow));
        let begun = Arc::new(AtomicBool::new(false));
        let note = Arc::clone(&begun);
        let second = move || {
            note.store(true, Ordering::SeqCst);
            Ok(Reopened::NoFile)
        };
        assert!(matches!(reopen_within(moment, &turn, second).await, Reopening::Busy));
        assert!(!begun.load(Ordering::SeqCst), "it would hold a thread of its own");
        release.send(()).unwrap();
        let third = reopen_within(Duration::from_secs(30), &turn, || Ok(Reopened::NoFile));
        assert!(matches!(third.await, Reopening::Done(Reopened::NoFile)));
        let failed = || Err(io::Error::from(io::ErrorKind::PermissionDenied));
        assert!(matches!(reopen_within(moment, &turn, failed).await, Reopening::Failed(_)));
    }
}
