//! Commands for a release: services that are deployed together and move in one switch. Its configuration lists those
//! of its members; what a command does for one service, it does for each.

mod automatic;
mod deploy;
mod first;
pub(super) mod membership;
mod operation;
mod rollback;
mod watch;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::rc::{Rc, Weak};

use uh_protocol::request::MAX_RELEASE_SERVICES;

use super::args::{Args, Command};
use super::exit::{CliError, Exit, journal_failed};
use super::interrupts::Interrupts;
use super::report::{Form, Report, complain};
use super::session::{Session, holder, wait_for_lock};
use super::{
    Done, health_check, history, maintenance, prune, recover, retire, start, status, upgrade_proxy, validate,
};
use crate::config::ReleaseConfig;
use crate::deploy::journal::{Journal, ReplayedOperation};
use crate::deploy::lock::Lock;
use crate::deploy::machine::Outcome;
use crate::proxy::ProxyService;
use membership::Membership;

/// A running command for a release.
pub(super) struct Release {
    file: PathBuf,
    config: ReleaseConfig,
    /// At least two, of different services of one uh-proxy.
    members: Vec<Session>,
    pub(super) report: Rc<Report>,
    pub(super) interrupts: Interrupts,
    journal: RefCell<Weak<File>>,
}

/// The locks of a release and of its members.
struct Locks(#[expect(dead_code, reason = "held until dropped")] Vec<Lock>);

impl Release {
    pub(super) fn open(args: &Args, config: ReleaseConfig) -> Result<Self, CliError> {
        let report = Rc::new(Report::new(if args.json { Form::Json } else { Form::Text }));
        let open = |file: &PathBuf| Session::with(args, file, Rc::clone(&report));
        let members = config.members.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let file = std::path::absolute(&args.config).unwrap_or_else(|_| args.config.clone());
        let (interrupts, journal) = (Interrupts::default(), RefCell::default());
        let release = Self { file, config, members, report, interrupts, journal };
        release.check()?;
        Ok(release)
    }

    /// The members must be different services of one uh-proxy, each with its own records.
    fn check(&self) -> Result<(), CliError> {
        let wrong = |member: usize, what: String| {
            let file = self.config.members[member].display();
            Err(CliError::usage(format!("can't use {file} in a release: {what}")))
        };
        if self.members.len() > MAX_RELEASE_SERVICES {
            return Err(CliError::usage(format!("a release has at most {MAX_RELEASE_SERVICES} members")));
        }
        let (mut services, mut directories) = (BTreeSet::new(), BTreeSet::from([&self.config.state_dir]));
        for (index, member) in self.members.iter().enumerate() {
            let deploy = &member.config.deploy;
            let Some(service) = &deploy.service else {
                return wrong(index, "set `deploy.service`".to_owned());
            };
            if !services.insert(service) {
                return wrong(index, format!("another member is the service {service}, too"));
            }
            if !directories.insert(&deploy.state_dir) {
                let what = format!("`deploy.state_dir` {} is already used", deploy.state_dir.display());
                return wrong(index, what);
            }
            if deploy.admin_socket != self.members[0].config.deploy.admin_socket {
                return wrong(index, "all members must have the same `deploy.admin_socket`".to_owned());
            }
        }
        Ok(())
    }

    /// Each member's service at uh-proxy.
    async fn proxies(&self) -> Result<Vec<ProxyService>, CliError> {
        let mut proxies = Vec::with_capacity(self.members.len());
        for member in &self.members {
            proxies.push(ProxyService::find_soon(&member.config).await?);
        }
        Ok(proxies)
    }

    /// Takes the lock of the release and those of its members.
    fn lock(&self, what: &str) -> Result<Locks, CliError> {
        let own = Lock::take(&self.config.state_dir, &holder(what))?;
        self.journal.replace(Rc::downgrade(&own.journal()));
        let mut locks = vec![own];
        for member in &self.members {
            locks.push(member.lock_for_release(what)?);
        }
        self.mark_members()?;
        Ok(Locks(locks))
    }

    /// The same, for a command that must not give up because another one is running briefly.
    async fn lock_patiently(&self, what: &str) -> Result<Locks, CliError> {
        let own = wait_for_lock(&self.config.state_dir, what, &self.report).await?;
        self.journal.replace(Rc::downgrade(&own.journal()));
        let mut locks = vec![own];
        for member in &self.members {
            locks.push(member.lock_patiently_for_release(what).await?);
        }
        self.mark_members()?;
        Ok(Locks(locks))
    }

    /// A member can be in one unfinished release at a time.
    fn mark_members(&self) -> Result<(), CliError> {
        let membership = Membership { config: self.file.clone(), state_dir: self.config.state_dir.clone() };
        for member in &self.members {
            let state_dir = &member.config.deploy.state_dir;
            if !membership::is_of(state_dir, &membership)? {
                membership::demand_finished(state_dir)?;
                membership::write(state_dir, &membership).map_err(|e| {
                    let why = format!("can't write to {}: {e}; nothing was changed", state_dir.display());
                    CliError::new(Exit::Failed, why)
                })?;
            }
        }
        Ok(())
    }

    /// The journal and its newest operation. The locks must be held.
    fn journal(&self) -> Result<(Journal, Option<ReplayedOperation>), CliError> {
        let file = self.journal.borrow().upgrade();
        let file = file.ok_or_else(|| CliError::new(Exit::Failed, "internal error: the lock isn't held"))?;
        Journal::open(&self.config.state_dir, file).map_err(|e| journal_failed(&e))
    }

    fn heading(&self, member: &Session) {
        if let Some(service) = &member.config.deploy.service {
            self.report.service(service);
        }
    }

    /// Runs a command for each member, even if it fails for one. The most serious exit code counts.
    async fn each(&self, command: impl AsyncFn(&Session) -> Done) -> Done {
        let mut worst = Exit::Done;
        for member in &self.members {
            self.heading(member);
            let exit = command(member).await.unwrap_or_else(|failed| {
                complain(failed.message());
                failed.exit()
            });
            if weight(exit) > weight(worst) {
                worst = exit;
            }
        }
        Ok(worst)
    }
}

/// How serious an exit code is, of several commands.
fn weight(exit: Exit) -> u8 {
    match exit {
        Exit::Done => 0,
        Exit::NotEnoughData => 1,
        Exit::Failed | Exit::Usage => 2,
        Exit::Locked | Exit::Superseded => 3,
        Exit::RolledBack | Exit::Breach => 4,
        Exit::Attention | Exit::Interrupted(_) => 5,
    }
}

pub(super) async fn command(release: &Release, command: &Command) -> Done {
    match command {
        Command::BlueGreen(args) => Box::pin(deploy::deploy(release, args)).await,
        Command::Rollback(args) => Box::pin(rollback::rollback(release, args)).await,
        Command::Recover => Box::pin(recovery(release)).await,
        Command::Validate => release.each(validate::validate).await,
        Command::HealthCheck => release.each(health_check::health_check).await,
        Command::Status(args) => {
            let members: Vec<_> = release.members.iter().collect();
            Box::pin(status::status(&members, args)).await
        }
        Command::History(args) => release.each(async |member| history::history(member, args)).await,
        Command::Start => release.each(async |member| Box::pin(start::start(member)).await).await,
        Command::Retire(args) => {
            let exit = recover_release(release).await?;
            if exit == Exit::Attention {
                return Ok(exit);
            }
            // Before stopping anything that the watch may have to roll back to.
            if let Some(exit @ (Exit::RolledBack | Exit::Breach | Exit::Attention)) =
                watch::resume(release).await?
            {
                return Ok(exit);
            }
            release.each(async |member| Box::pin(retire::retire(member, args)).await).await
        }
        Command::Prune(args) => release.each(async |member| prune::prune(member, args).await).await,
        Command::Maintenance(args) => {
            release.each(async |member| maintenance::maintenance(member, args).await).await
        }
        Command::Monitor(args) => Box::pin(watch::monitor(release, args)).await,
        Command::UpgradeProxy(args) => match release.members.first() {
            Some(member) => Box::pin(upgrade_proxy::upgrade_proxy(member, args)).await,
            None => Ok(Exit::Usage),
        },
        Command::Logs(_) => Err(CliError::usage(
            "this command is for one service: pass the configuration of a member of the release",
        )),
        Command::Promote | Command::Hold | Command::Abort => Err(CliError::usage(
            "a release has no trial; use the configuration of the service that is on trial",
        )),
        Command::Supervise { .. } | Command::Completions { .. } | Command::Man { .. } => Ok(Exit::Usage),
    }
}

/// Finishes or undoes an interrupted release, continues its watch, then does the same with whatever its members have left
/// open on their own.
async fn recovery(release: &Release) -> Done {
    if recover_release(release).await? == Exit::Attention {
        return Ok(Exit::Attention);
    }
    if let Some(exit) = watch::resume(release).await?.filter(|exit| *exit != Exit::Done) {
        return Ok(exit);
    }
    release.each(async |member| Box::pin(recover::recover(member)).await).await
}

async fn recover_release(release: &Release) -> Done {
    let _locks = release.lock_patiently("recover").await?;
    if release.journal()?.1.is_none_or(|replayed| !replayed.is_unfinished()) {
        return Ok(Exit::Done);
    }
    let proxies = release.proxies().await.map_err(|failed| {
        let message = format!(
            "{}. An interrupted release can only be recovered once uh-proxy answers; then run `uh-deploy recover` again",
            failed.message()
        );
        CliError::new(Exit::Attention, message)
    })?;
    let recovered = operation::recover_if_needed(release, &proxies).await?;
    let attention = recovered.is_some_and(|outcome| outcome == Outcome::Attention);
    Ok(if attention { Exit::Attention } else { Exit::Done })
}
