//! Removes images that were deployed and aren't needed any more.

use std::collections::HashSet;

use bollard::Docker;
use bollard::query_parameters::RemoveImageOptions;

use super::{CALL, Engine, EngineError};

impl Engine {
    /// Removes those of these images that no container uses, running or not, and that have only names for which
    /// `is_ours` holds. Returns a line about each that existed.
    pub(in crate::runtime) async fn prune(
        &self,
        images: &[String],
        is_ours: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<String>, EngineError> {
        let options = bollard::query_parameters::ListContainersOptionsBuilder::new().all(true).build();
        let containers = self
            .call("list containers", CALL, async |docker: Docker| {
                docker.list_containers(Some(options.clone())).await
            })
            .await?;
        let in_use: HashSet<String> =
            containers.into_iter().filter_map(|container| container.image_id).collect();
        let mut done = Vec::new();
        for image in images.iter().filter(|image| !in_use.contains(*image)) {
            done.extend(self.remove_image(image, is_ours).await?);
        }
        Ok(done)
    }

    /// `None`: it doesn't exist.
    async fn remove_image(
        &self,
        id: &str,
        is_ours: &dyn Fn(&str) -> bool,
    ) -> Result<Option<String>, EngineError> {
        let found = match self
            .call("find an image", CALL, async |docker: Docker| docker.inspect_image(id).await)
            .await
        {
            Err(error) if error.status() == Some(404) => return Ok(None),
            other => other?,
        };
        let names = found.repo_tags.unwrap_or_default();
        if let Some(other) = names.iter().find(|name| !is_ours(name)) {
            return Ok(Some(format!("kept {}: it is also called {other}", short(id))));
        }
        // Each name separately, and without force: the engine decides what is in use.
        let parts = if names.is_empty() { vec![id.to_owned()] } else { names.clone() };
        for part in &parts {
            let removed = self
                .call("remove an image", CALL, async |docker: Docker| {
                    docker.remove_image(part, None::<RemoveImageOptions>, None).await
                })
                .await;
            match removed {
                Err(error) if error.status() == Some(409) => {
                    return Ok(Some(format!("kept {}: {error}", short(id))));
                }
                Err(error) if error.status() != Some(404) => return Err(error),
                _ => {}
            }
        }
        let names = if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
        Ok(Some(format!("removed {}{names}", short(id))))
    }
}

/// `sha256:0123456789ab`
fn short(id: &str) -> &str {
    id.get(..19).unwrap_or(id)
}
