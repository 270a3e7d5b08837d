//! What `uh-deploy status` knows of a service, from uh-proxy, the runtime and the state directory.

use jiff::Timestamp;
use serde::Serialize;
use uh_protocol::status::{BackendStatus, Role, SplitStatus, TrialStatus};
use uh_protocol::{BackendName, ServiceName};

use crate::chain;
use crate::cli::release::membership;
use crate::cli::session::Session;
use crate::cli::{alive, operation, rollback};
use crate::deploy::history::{History, HistoryEntry};
use crate::deploy::lock::{self, LockError};
use crate::deploy::machine::{OperationKind, Phase};
use crate::deploy::watch;
use crate::proxy::Serving;

/// A service at one moment. Its JSON is the reply to `--json`: fields may be added.
#[derive(Debug, Serialize)]
pub(super) struct Picture {
    /// Whether its users are served: the active backend answers, and no maintenance page is shown.
    pub(super) well: bool,
    /// Why uh-proxy can't be asked.
    pub(super) error: Option<String>,
    /// What it says, if it can.
    #[serde(flatten)]
    pub(super) routing: Option<Routing>,
    /// The deploy or rollback that is under way, held or interrupted, or another command that holds the lock.
    pub(super) operation: Option<Operation>,
    /// The watch after a deploy.
    pub(super) watch: Option<Watching>,
    /// The newest entry of the history.
    pub(super) last: Option<HistoryEntry>,
    /// What can't be read, and what else an operator should know.
    pub(super) warnings: Vec<String>,
}

/// What uh-proxy says of the service.
#[derive(Debug, Serialize)]
pub(super) struct Routing {
    pub(super) service: ServiceName,
    /// uh-proxy's version.
    pub(super) proxy: String,
    pub(super) proxy_uptime_s: u64,
    pub(super) active: BackendName,
    /// Since when: ISO 8601, UTC; `null`: since the first start.
    pub(super) active_since: Option<String>,
    /// Why the active backend doesn't answer a probe now; `null`: it does.
    pub(super) reason: Option<String>,
    /// The active backend first.
    pub(super) backends: Vec<Backend>,
    pub(super) split: Option<SplitStatus>,
    /// The trial of that split.
    pub(super) trial: Option<TrialStatus>,
    pub(super) rollback: Rollback,
}

/// One backend.
#[derive(Debug, Serialize)]
pub(super) struct Backend {
    pub(super) name: BackendName,
    pub(super) version: Option<String>,
    pub(super) role: Role,
    /// Of the active one by our own probe, of the others by uh-proxy's; `null`: not known, or out of service.
    pub(super) healthy: Option<bool>,
    pub(super) in_flight: u64,
    pub(super) tunnels: u64,
}

/// What a rollback would take now.
#[derive(Debug, Serialize)]
pub(super) struct Rollback {
    pub(super) possible: bool,
    /// What it takes, with the command, or why there is none.
    pub(super) text: String,
}

/// How an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Progress {
    /// Its process is there.
    Running,
    /// It waits for an operator.
    Held,
    /// Its process is gone.
    Interrupted,
}

/// What holds the lock, or is unfinished.
#[derive(Debug, Serialize)]
pub(super) struct Operation {
    pub(super) progress: Progress,
    /// `deploy of 1.0.1`
    pub(super) what: String,
    pub(super) who: String,
    /// When it began: ISO 8601, UTC.
    pub(super) since: Option<String>,
    /// The process; `null`: none, or not known.
    pub(super) pid: Option<u32>,
    /// The step that it has reached.
    pub(super) phase: Option<Phase>,
    /// How many steps its trial has, if it has one.
    pub(super) trial_steps: Option<usize>,
}

/// A watch after a deploy.
#[derive(Debug, Serialize)]
pub(super) struct Watching {
    pub(super) backend: BackendName,
    pub(super) version: Option<String>,
    pub(super) left_s: u64,
    /// Whether it rolls back by itself.
    pub(super) auto_rollback: bool,
    /// Whether it is comparing with the old version now.
    pub(super) cross_check: bool,
    /// `false`: its process is gone.
    pub(super) running: bool,
}

impl Picture {
    /// Looks at everything. What can't be read is a warning.
    pub(super) async fn take(session: &Session, now: Timestamp) -> Self {
        let mut warnings = Vec::new();
        let mut maintenance = false;
        let serving = match session.proxy().await {
            Ok(proxy) => proxy.serving().await.map_err(|e| chain(&e)),
            Err(failed) => Err(failed.message().to_owned()),
        };
        let (routing, error) = match serving {
            Ok(serving) => {
                maintenance = serving.view().service.maintenance;
                // That it fails its health checks is what our own probe says.
                let of_health = |warning: &String| warning.contains("fails its health checks");
                warnings.extend(serving.warnings().into_iter().filter(|warning| !of_health(warning)));
                (Some(Routing::of(session, &serving).await), None)
            }
            Err(why) => (None, Some(why)),
        };
        let state_dir = &session.config.deploy.state_dir;
        let operation = operation_of(session).unwrap_or_else(|why| {
            warnings.push(why);
            None
        });
        // While its command runs, it holds the lock of this service, too.
        if operation.is_none() {
            let release = membership::in_words(state_dir);
            warnings.extend(release.unwrap_or_else(|failed| Some(failed.message().to_owned())));
        }
        let watch = watching(session, now).unwrap_or_else(|e| {
            warnings.push(format!("the state of the watch can't be read: {}", chain(&e)));
            None
        });
        let last = History::new(state_dir).lines().unwrap_or_else(|e| {
            warnings.push(format!("the history can't be read: {}", chain(&e)));
            Vec::new()
        });
        let answers = routing.as_ref().is_some_and(|routing| routing.reason.is_none());
        let (well, last) = (answers && !maintenance, last.into_iter().next_back());
        Self { well, error, routing, operation, watch, last, warnings }
    }
}

impl Routing {
    async fn of(session: &Session, serving: &Serving) -> Self {
        let view = serving.view();
        let reason = alive::why_dead(session, serving).await;
        let backend = |status: &BackendStatus| {
            Backend {
                name: status.name.clone(),
                version: view.version(&status.name),
                role: status.role,
                healthy: match status.role {
                    Role::Active => Some(reason.is_none()),
                    // It may have been stopped since its last probe.
                    Role::Withdrawn => None,
                    Role::Standby | Role::Other => status.healthy,
                },
                in_flight: status.requests_in_flight,
                tunnels: status.tunnels,
            }
        };
        let mut backends: Vec<_> = view.service.backends.iter().map(backend).collect();
        backends.sort_by_key(|backend| backend.role != Role::Active);
        let rollback = match rollback::price(session, serving).await {
            Ok(text) => Rollback { possible: true, text },
            Err(text) => Rollback { possible: false, text },
        };
        Self {
            service: view.service.name.clone(),
            proxy: view.status.proxy.version.clone(),
            proxy_uptime_s: view.status.proxy.uptime_s,
            active: view.service.active.clone(),
            active_since: view.service.last_switch.clone(),
            reason,
            backends,
            split: view.service.split.clone(),
            trial: view.service.trial.clone().filter(|trial| !trial.ended),
            rollback,
        }
    }
}

fn operation_of(session: &Session) -> Result<Option<Operation>, String> {
    let state_dir = &session.config.deploy.state_dir;
    let at_work = lock::at_work(state_dir).map_err(|e| format!("the lock can't be read: {}", chain(&e)))?;
    let unfinished = operation::unfinished(session).map_err(|failed| failed.message().to_owned())?;
    let facts = unfinished.as_ref().map(|replayed| &replayed.facts);
    let phase = unfinished.as_ref().map(|replayed| replayed.phase);
    let what = |kind: OperationKind, version: &str| match kind {
        OperationKind::Deploy => format!("deploy of {version}"),
        OperationKind::Rollback => format!("rollback to {version}"),
    };
    let of_journal = unfinished
        .as_ref()
        .map(|replayed| what(replayed.kind, replayed.facts.version_or_unknown()))
        .unwrap_or_default();
    let known = |progress, pid| Operation {
        progress,
        what: of_journal,
        who: facts.map_or_else(|| "unknown user".to_owned(), |facts| facts.who.clone()),
        since: facts.map(|facts| facts.began_at.clone()),
        pid,
        phase,
        trial_steps: facts.and_then(|facts| facts.canary.as_ref()).map(|plan| plan.steps.len()),
    };
    Ok(match at_work {
        Some(LockError::Held { holder: Some(holder) }) => Some(Operation {
            what: holder.what,
            who: holder.who,
            since: Some(holder.since),
            ..known(Progress::Running, Some(holder.pid))
        }),
        Some(_) => Some(known(Progress::Running, None)),
        None if matches!(phase, Some(Phase::Held(_))) => Some(known(Progress::Held, None)),
        None => unfinished.as_ref().map(|_| known(Progress::Interrupted, None)),
    })
}

fn watching(session: &Session, now: Timestamp) -> std::io::Result<Option<Watching>> {
    let state_dir = &session.config.deploy.state_dir;
    let Some(watch) = watch::look(state_dir)?.filter(|watch| !watch.has_ended()) else { return Ok(None) };
    Ok(Some(Watching {
        left_s: watch.left(now).as_secs(),
        auto_rollback: watch.plan.auto_rollback,
        cross_check: watch.cross_check.is_some(),
        running: watch::is_running(state_dir)?,
        backend: watch.backend,
        version: watch.version,
    }))
}
