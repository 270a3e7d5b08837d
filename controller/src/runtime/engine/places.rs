//! Finds what is in the way of an instance to start: a used port or name, or a container that the compose tool would
//! replace.

use std::collections::HashMap;

use bollard::Docker;
use bollard::models::ContainerSummary;
use bollard::query_parameters::ListContainersOptionsBuilder;
use uh_protocol::Address;

use super::{BACKEND, CALL, Engine, EngineError, SERVICE, STATE_ID};
use crate::runtime::{Frozen, InstanceId, RuntimeError, ports};

impl Engine {
    /// Requires that every container with these labels was started as the same backend from this state directory. Any
    /// other container must not be replaced.
    pub(in crate::runtime) async fn demand_own(
        &self,
        instance: &InstanceId,
        labels: Vec<String>,
        own: &HashMap<String, String>,
    ) -> Result<(), RuntimeError> {
        let found = self.containers("label", labels, true).await;
        let stranger = found.map_err(|error| error.about("start", instance))?.into_iter().find(|container| {
            let labels = container.labels.as_ref();
            let same = |name| labels.and_then(|labels| labels.get(name)) == own.get(name);
            ![STATE_ID, SERVICE, BACKEND].into_iter().all(same)
        });
        let Some(stranger) = stranger else { return Ok(()) };
        let name = name_of(stranger).unwrap_or_default();
        let source = format!(
            "container {name} would be replaced, but it wasn't started as this backend from this state directory. If you don't need it: docker rm --force {name}"
        );
        Err(RuntimeError::Instance { action: "start", instance: instance.clone(), source: source.into() })
    }

    /// Requires that the ports of an instance to start are free.
    pub(in crate::runtime) async fn demand_free(&self, endpoints: &[Address]) -> Result<(), RuntimeError> {
        for endpoint in endpoints {
            if let Some(by) = ports::taken_by(endpoint) {
                return Err(self.port_taken(endpoint, by.to_string()).await);
            }
        }
        Ok(())
    }

    /// Cleans up after a failed start. `Some`: it failed because a port is in use.
    pub(in crate::runtime) async fn undo_start(
        &self,
        instance: &InstanceId,
        frozen: &Frozen,
        said: &str,
    ) -> Option<RuntimeError> {
        let _removed = self.remove(instance).await;
        let taken = said.contains("port is already allocated") || said.contains("address already in use");
        let endpoint = frozen.endpoints.iter().find(|endpoint| taken && endpoint.port().is_some())?;
        Some(self.port_taken(endpoint, "an unknown process".to_owned()).await)
    }

    async fn port_taken(&self, endpoint: &Address, by: String) -> RuntimeError {
        let publisher = match endpoint.port() {
            Some(port) => self.publisher(port).await,
            None => None,
        };
        RuntimeError::PortTaken { endpoint: endpoint.to_string(), by: publisher.unwrap_or(by) }
    }

    /// The container that publishes a port of this machine.
    async fn publisher(&self, port: u16) -> Option<String> {
        let options = ListContainersOptionsBuilder::new().build();
        let list = self
            .ask("list containers", CALL, async |docker: Docker| docker.list_containers(Some(options)).await);
        let publishes = |container: &ContainerSummary| {
            container.ports.iter().flatten().any(|published| published.public_port == Some(port))
        };
        let container = list.await.ok()?.into_iter().find(publishes)?;
        Some(format!("container {}", name_of(container)?))
    }

    /// The running container with a name on a network, if there is one.
    pub(in crate::runtime) async fn holder(
        &self,
        network: &str,
        name: &str,
    ) -> Result<Option<String>, EngineError> {
        let there = self.containers("network", vec![network.to_owned()], false).await?;
        for id in there.into_iter().filter_map(|container| container.id) {
            let Some(found) = self.inspect(&id).await? else { continue };
            let networks = found.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
            let aliases = networks.get(network).and_then(|joined| joined.aliases.clone()).unwrap_or_default();
            if aliases.iter().any(|alias| alias == name) {
                return Ok(found.name.map(|name| name.trim_start_matches('/').to_owned()));
            }
        }
        Ok(None)
    }
}

/// A container's name, or else its id.
fn name_of(container: ContainerSummary) -> Option<String> {
    let name = container.names.into_iter().flatten().next().or(container.id)?;
    Some(name.trim_start_matches('/').to_owned())
}
