//! Starts [copies](super::copy) of the front door's container.

use std::time::Duration;

use bollard::Docker;
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder, RenameContainerOptionsBuilder,
};
use tokio::time::{Instant, sleep};

use super::copy::{Copy, tagged};
use super::project::only_names;
use super::{CALL, DoorContainer, FrontDoor, refused};
use crate::redact::Foreign;
use crate::runtime::RuntimeError;
use crate::runtime::engine::EngineError;

/// How long `uh-proxy check` may take.
const CHECKS_WITHIN: Duration = Duration::from_secs(120);

/// How often to look whether it has ended.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What is appended to a name until the old container is gone.
const NEXT: &str = "-next";

impl FrontDoor {
    /// The image of another version of uh-proxy, for this container.
    pub(crate) fn image_of(container: &DoorContainer, version: &str) -> String {
        tagged(&container.image, version)
    }

    /// Runs `uh-proxy check` in a container of the new image, which is removed then.
    ///
    /// # Errors
    /// What it said.
    pub(crate) async fn check_copy(&self, old: &DoorContainer, image: &str) -> Result<(), RuntimeError> {
        let copy = self.copy(old, image).await?.for_command(&["check", "--config", &old.config]);
        let name = format!("{}-check", old.name);
        self.remove_by_name(&name).await?;
        let made = self.create(&name, &copy).await;
        let ended = match made {
            Ok(()) => self.ended(&name).await,
            Err(error) => Err(error),
        };
        self.remove_by_name(&name).await?;
        ended
    }

    /// Waits for a container's end, which must be a success.
    async fn ended(&self, name: &str) -> Result<(), RuntimeError> {
        let deadline = Instant::now() + CHECKS_WITHIN;
        loop {
            let Some(container) = self.inspect(name).await? else {
                return Err(refused(format!("{name} was removed")));
            };
            if !container.is_running {
                if container.exit_code == 0 {
                    return Ok(());
                }
                let lines = self.last_lines(&container).await;
                if only_names(lines.iter().map(Foreign::as_str)) {
                    return Ok(());
                }
                let said: Vec<String> = lines.iter().map(ToString::to_string).collect();
                return Err(refused(said.join("; ")));
            }
            if Instant::now() >= deadline {
                return Err(refused(format!("{name} hasn't ended after {} s", CHECKS_WITHIN.as_secs())));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Starts a copy of the container with another image next to it.
    ///
    /// # Errors
    /// The engine refuses; then there is no copy.
    pub(crate) async fn start_copy(
        &self,
        old: &DoorContainer,
        image: &str,
    ) -> Result<DoorContainer, RuntimeError> {
        let copy = self.copy(old, image).await?;
        let name = format!("{}{NEXT}", old.name);
        self.create(&name, &copy).await?;
        self.inspect(&name).await?.ok_or_else(|| refused(format!("{name} was removed")))
    }

    /// Gives a copy the name of the container that it has replaced.
    ///
    /// # Errors
    /// The engine refuses.
    pub(crate) async fn rename(&self, new: &DoorContainer, name: &str) -> Result<(), RuntimeError> {
        self.change(&format!("rename {}", new.name), CALL, async |docker: Docker| {
            let options = RenameContainerOptionsBuilder::new().name(name).build();
            docker.rename_container(&new.id, options).await
        })
        .await
    }

    async fn copy(&self, old: &DoorContainer, image: &str) -> Result<Copy, RuntimeError> {
        let (found, of_image) = self
            .engine
            .call("describe a container", CALL, async |docker: Docker| {
                let found = docker.inspect_container(&old.id, None).await?;
                let image = docker.inspect_image(&old.image_id).await?;
                Ok((found, image))
            })
            .await
            .map_err(EngineError::unreachable)?;
        Copy::of(found, &of_image.config.unwrap_or_default(), image)
            .ok_or_else(|| refused(format!("the engine doesn't describe {}", old.name)))
    }

    /// Creates and starts a container. One that doesn't start is removed.
    async fn create(&self, name: &str, copy: &Copy) -> Result<(), RuntimeError> {
        let failed = |error: EngineError| refused(format!("can't start {name}: {}", crate::chain(&error)));
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        let make = async |docker: Docker| docker.create_container(Some(options), copy.body.clone()).await;
        self.engine.ask("create a container", CALL, make).await.map_err(failed)?;
        let start = async |docker: Docker| {
            for (network, request) in copy.joins(name) {
                docker.connect_network(&network, request).await?;
            }
            docker.start_container(name, None).await
        };
        let started = self.engine.ask(&format!("start {name}"), CALL, start).await.map_err(failed);
        if started.is_err() {
            self.remove_by_name(name).await?;
        }
        started
    }

    async fn remove_by_name(&self, name: &str) -> Result<(), RuntimeError> {
        self.change(&format!("remove {name}"), CALL, async |docker: Docker| {
            let options = RemoveContainerOptionsBuilder::new().force(true).build();
            docker.remove_container(name, Some(options)).await
        })
        .await
    }
}
