//! `uh-deploy upgrade-proxy`: replaces the front door's container by one of a new image, while the old one runs.
//!
//! What exists decides where it begins: after a `kill -9`, the same command goes on with the two containers that it finds.

mod back;
mod leader;

use super::Done;
use super::args::UpgradeProxyArgs;
use super::exit::{CliError, Exit};
use super::session::Session;
use crate::deploy::history::HistoryEntry;
use crate::runtime::front_door::{ComposeFiles, DoorContainer, FrontDoor, Project, VERSION};
use leader::Leader;

/// The steps that an operator sees.
const STEPS: u32 = 5;

/// An upgrade in progress.
struct Upgrade<'a> {
    session: &'a Session,
    door: FrontDoor,
    leader: Leader,
    args: &'a UpgradeProxyArgs,
}

/// The two containers.
struct Pair {
    old: DoorContainer,
    new: DoorContainer,
}

pub(super) async fn upgrade_proxy(session: &Session, args: &UpgradeProxyArgs) -> Done {
    let _lock = session.lock("upgrade-proxy")?;
    let upgrade = Upgrade {
        session,
        door: FrontDoor::new(&session.config, session.waiting()),
        leader: Leader::at(&session.config.deploy.admin_socket),
        args,
    };
    let done = upgrade.run().await;
    let (outcome, reason) = match &done {
        Ok(Changed::No) => return Ok(Exit::Done),
        Ok(Changed::Yes) => ("done", None),
        Err(failed) if failed.exit() == Exit::Attention => ("attention", Some(failed.message().to_owned())),
        Err(failed) => ("failed", Some(failed.message().to_owned())),
    };
    session.remember(HistoryEntry {
        command: "upgrade-proxy".to_owned(),
        outcome: outcome.to_owned(),
        reason,
        ..HistoryEntry::default()
    });
    done.map(|_| Exit::Done)
}

/// Whether the front door is another one now.
enum Changed {
    Yes,
    No,
}

impl Upgrade<'_> {
    async fn run(&self) -> Result<Changed, CliError> {
        let report = &self.session.report;
        report.step(1, STEPS, "Looking at the front door");
        let found = self.door.containers(self.args.container.as_deref()).await?;
        for container in &found {
            report.fact("Container", &format!("{} ({})", container.name, container.image));
        }
        let mut found = found.into_iter();
        let pair = match (found.next(), found.next(), found.next()) {
            (Some(old), None, _) => match self.start(old).await? {
                Started::Pair(pair) => *pair,
                Started::Replaced => return Ok(Changed::Yes),
                Started::Nothing => return Ok(Changed::No),
            },
            (Some(old), Some(new), None) => {
                report.line("Two containers run: an upgrade was begun, and goes on.");
                Pair { old, new }
            }
            _ => {
                return Err(failed(
                    "more than two containers run: stop and remove all but the one that leads",
                ));
            }
        };
        report.step(4, STEPS, "Waiting until the new one leads");
        if let Err(why) = self.until_new_leads(&pair).await {
            return Err(self.give_back(&pair, &why).await);
        }
        report.step(5, STEPS, "Removing the old container");
        self.door.remove(&pair.old).await.map_err(|error| {
            let message = format!("{}; the new container leads, remove the old one", crate::chain(&error));
            CliError::new(Exit::Attention, message)
        })?;
        let mut name = &pair.new.name;
        if pair.new.project.is_none() {
            self.door.rename(&pair.new, &pair.old.name).await?;
            name = &pair.old.name;
        }
        report.say(&format!("✅ {} leads in {name}", pair.new.image));
        Ok(Changed::Yes)
    }

    /// Starts the new container, if there is something to upgrade to.
    async fn start(&self, old: DoorContainer) -> Result<Started, CliError> {
        let report = &self.session.report;
        demand_keeper(&old)?;
        let Some(project) = old.project.clone() else { return self.start_copy(old).await };
        let Some(files) = self.door.files(&project).await? else {
            return Err(failed(&format!(
                "the compose files aren't here, only on the host: run there `{}`, then run this again",
                project.by_hand()
            )));
        };
        report.fact("Compose", &format!("{}, project {}", files.tool(), project.name));
        let image = files.image().await.map_err(|error| failed(&error))?;
        self.demand_version(&image, &project)?;
        if self.runs(&old, &image).await? {
            return Ok(Started::Nothing);
        }
        report.step(2, STEPS, "Checking the configuration");
        let checked = files.check(&old.config, &|line| report.output(line)).await;
        checked.map_err(|error| unusable(&old, &image, &error))?;
        if !self.leader.hands_over().await {
            return self.replace(&old, &project, &files, &image).await;
        }
        report.step(3, STEPS, &format!("Starting {image} next to it"));
        let started = files.start_second().await;
        let running = self.door.of_project(&project).await?;
        let new = running.into_iter().find(|container| container.host != old.host);
        match (started, new) {
            (Ok(()), Some(new)) => {
                report.fact("Container", &new.name);
                Ok(Started::Pair(Box::new(Pair { old, new })))
            }
            (Err(error), Some(new)) => Err(self.give_back(&Pair { old, new }, &error).await),
            (Err(error), None) => Err(failed(&format!("{} goes on: {error}", old.name))),
            (Ok(()), None) => Err(failed(&format!(
                "{} goes on: the new container has ended at once; see its log with `docker logs`",
                old.name
            ))),
        }
    }

    /// The same for a container that no compose file describes: its copy.
    async fn start_copy(&self, old: DoorContainer) -> Result<Started, CliError> {
        let report = &self.session.report;
        let image = match &self.args.to_version {
            Some(version) => FrontDoor::image_of(&old, version),
            None if self.args.again => old.image.clone(),
            None => {
                return Err(CliError::usage(format!(
                    "{} wasn't started from compose files, so nothing says which version to upgrade to: pass --to VERSION",
                    old.name
                )));
            }
        };
        if self.runs(&old, &image).await? {
            return Ok(Started::Nothing);
        }
        report.step(2, STEPS, "Checking the configuration");
        let checked = self.door.check_copy(&old, &image).await;
        checked.map_err(|error| unusable(&old, &image, &crate::chain(&error)))?;
        if !self.leader.hands_over().await {
            return Err(failed(&format!(
                "{} doesn't hand over: stop it, and start the new one by hand",
                old.name
            )));
        }
        report.step(3, STEPS, &format!("Starting {image} next to it"));
        let new = self.door.start_copy(&old, &image).await?;
        report.fact("Container", &new.name);
        Ok(Started::Pair(Box::new(Pair { old, new })))
    }

    /// Whether there is nothing to upgrade to.
    async fn runs(&self, old: &DoorContainer, image: &str) -> Result<bool, CliError> {
        let Some(id) = self.door.image_id(image).await? else {
            return Err(failed(&format!("the image {image} isn't on this host: build or pull it")));
        };
        let runs = image == old.image && id == old.image_id && !self.args.again;
        if runs {
            self.session
                .report
                .say(&format!("{image} runs already; with --again, it is replaced by itself."));
        }
        Ok(runs)
    }

    /// One after the other, for a uh-proxy that doesn't hand over.
    async fn replace(
        &self,
        old: &DoorContainer,
        project: &Project,
        files: &ComposeFiles,
        image: &str,
    ) -> Result<Started, CliError> {
        let report = &self.session.report;
        report.warn(&format!(
            "{} doesn't hand over: it is stopped before the new one starts. No client is refused, but new ones wait until its requests in flight are over",
            old.image
        ));
        report.step(3, STEPS, &format!("Replacing it by {image}"));
        let attention = |why: &str| {
            let message = format!("{why}. The old container may be gone: see `docker ps`, and the log");
            CliError::new(Exit::Attention, message)
        };
        files.replace().await.map_err(|error| attention(&error))?;
        report.step(4, STEPS, "Waiting until the new one leads");
        let found = self.door.of_project(project).await;
        let new = found.ok().and_then(|found| found.into_iter().find(|it| it.host != old.host));
        let Some(new) = new else { return Err(attention("the new container doesn't run")) };
        self.until_leads(&new).await.map_err(|why| attention(&why))?;
        report.say(&format!("✅ {image} leads in {}; new clients waited until then", new.name));
        Ok(Started::Replaced)
    }

    /// A later `up` must start the same version, and this command never writes the file that says which.
    fn demand_version(&self, image: &str, project: &Project) -> Result<(), CliError> {
        let Some(wanted) = &self.args.to_version else { return Ok(()) };
        if image.rsplit_once(':').is_some_and(|(_, tag)| tag == wanted) {
            return Ok(());
        }
        let file = project.env_file();
        Err(failed(&format!(
            "the compose files name {image}, and a later `up` would start that: set {VERSION}={wanted} in {}",
            file.display()
        )))
    }
}

/// What `start` has done.
enum Started {
    Pair(Box<Pair>),
    Replaced,
    Nothing,
}

/// Two containers can only share sockets that a keeper has.
fn demand_keeper(old: &DoorContainer) -> Result<(), CliError> {
    if old.publishes {
        return Err(failed(&format!(
            "{} publishes its ports itself, so no second container can have them: move to uh-keeper first, see docs/containers.md",
            old.name
        )));
    }
    if let Some(place) = &old.unnamed_volume {
        return Err(failed(&format!(
            "{} has a volume without a name at {place}, which the new container wouldn't have: give it a name",
            old.name
        )));
    }
    Ok(())
}

fn unusable(old: &DoorContainer, image: &str, error: &str) -> CliError {
    failed(&format!("{image} can't use the configuration, and {} goes on: {error}", old.name))
}

fn failed(message: &str) -> CliError {
    CliError::new(Exit::Failed, message)
}
