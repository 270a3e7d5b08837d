//! A second container with the options of the first and another image, for a front door that no compose file describes.
//!
//! The engine reports what was asked for and what the image says as one. What equals the old image's is left out, so that
//! the new image's applies.

use std::collections::HashMap;

use bollard::models::{
    ContainerConfig, ContainerCreateBody, ContainerInspectResponse, EndpointSettings, HostConfig,
    ImageConfig, NetworkConnectRequest, NetworkingConfig, RestartPolicy,
};

/// How to create it.
#[derive(Debug, Clone)]
pub(super) struct Copy {
    pub(super) body: ContainerCreateBody,
    /// Networks to join after the first one, which is in the request.
    pub(super) joins: Vec<(String, EndpointSettings)>,
}

impl Copy {
    /// Of a container whose image has this configuration.
    pub(super) fn of(found: ContainerInspectResponse, old_image: &ImageConfig, image: &str) -> Option<Self> {
        let id = found.id?;
        let networks = found.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        let mut networks: Vec<(String, EndpointSettings)> =
            networks.into_iter().map(|(name, endpoint)| (name, own_part(endpoint, &id))).collect();
        let mode = found.host_config.as_ref().and_then(|host| host.network_mode.clone()).unwrap_or_default();
        // The one that it was started on is in the request.
        networks.sort_by_key(|(name, _)| (*name != mode, name.clone()));
        let mut joins = networks.into_iter();
        let first: HashMap<String, EndpointSettings> = joins.next().into_iter().collect();
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            host_config: found.host_config,
            networking_config: Some(NetworkingConfig { endpoints_config: Some(first) }),
            ..asked_for(found.config?, old_image, &id)
        };
        Some(Self { body, joins: joins.collect() })
    }

    /// The same, to run one command to its end.
    pub(super) fn for_command(mut self, words: &[&str]) -> Self {
        self.body.cmd = Some(words.iter().map(|&word| word.to_owned()).collect());
        let host = self.body.host_config.take().unwrap_or_default();
        self.body.host_config = Some(HostConfig { restart_policy: Some(RestartPolicy::default()), ..host });
        self
    }

    /// The requests that join the other networks.
    pub(super) fn joins(&self, container: &str) -> Vec<(String, NetworkConnectRequest)> {
        let request = |endpoint: &EndpointSettings| NetworkConnectRequest {
            container: container.to_owned(),
            endpoint_config: Some(endpoint.clone()),
        };
        self.joins.iter().map(|(network, endpoint)| (network.clone(), request(endpoint))).collect()
    }
}

/// What was asked for, without what the engine chose.
fn own_part(endpoint: EndpointSettings, id: &str) -> EndpointSettings {
    let mut aliases = endpoint.aliases.unwrap_or_default();
    aliases.retain(|alias| alias.is_empty() || !id.starts_with(alias.as_str()));
    EndpointSettings {
        aliases: (!aliases.is_empty()).then_some(aliases),
        driver_opts: endpoint.driver_opts,
        ..EndpointSettings::default()
    }
}

fn asked_for(config: ContainerConfig, image: &ImageConfig, id: &str) -> ContainerCreateBody {
    let of_image = image.env.clone().unwrap_or_default();
    let env: Vec<String> =
        config.env.unwrap_or_default().into_iter().filter(|pair| !of_image.contains(pair)).collect();
    let known = image.labels.clone().unwrap_or_default();
    let mut labels = config.labels.unwrap_or_default();
    labels.retain(|name, value| known.get(name) != Some(value));
    // With another entry point, the image's command isn't used.
    let entrypoint = unless_same(config.entrypoint, &image.entrypoint);
    let cmd = if entrypoint.is_some() { config.cmd } else { unless_same(config.cmd, &image.cmd) };
    ContainerCreateBody {
        hostname: config.hostname.filter(|name| !id.starts_with(name.as_str())),
        domainname: config.domainname,
        user: unless_same(config.user, &image.user),
        exposed_ports: unless_same(config.exposed_ports, &image.exposed_ports),
        tty: config.tty,
        env: Some(env),
        cmd,
        entrypoint,
        healthcheck: unless_same(config.healthcheck, &image.healthcheck),
        volumes: unless_same(config.volumes, &image.volumes),
        working_dir: unless_same(config.working_dir, &image.working_dir),
        labels: Some(labels),
        stop_signal: unless_same(config.stop_signal, &image.stop_signal),
        stop_timeout: config.stop_timeout,
        ..ContainerCreateBody::default()
    }
}

fn unless_same<T: PartialEq>(value: Option<T>, of_image: &Option<T>) -> Option<T> {
    if value == *of_image { None } else { value }
}

/// The image of another version: the same name with another tag.
pub(super) fn tagged(image: &str, tag: &str) -> String {
    // A colon before the last slash is that of a port.
    let name = match image.rsplit_once(':') {
        Some((name, old)) if !old.contains('/') => name,
        _ => image,
    };
    format!("{name}:{tag}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(words: &[&str]) -> Option<Vec<String>> {
        Some(words.iter().map(|&word| word.to_owned()).collect())
    }

    #[test]
    fn a_copy_has_what_was_asked_for_and_nothing_of_the_old_image() {
        let image = ImageConfig {
            env: list(&["PATH=/usr/bin"]),
            cmd: list(&["run"]),
            entrypoint: list(&["uh-proxy"]),
            labels: Some(HashMap::from([("version".to_owned(), "1".to_owned())])),
            ..ImageConfig::default()
        };
        let config = ContainerConfig {
            hostname: Some("0123456789ab".to_owned()),
            env: list(&["PATH=/usr/bin", "TZ=UTC"]),
            cmd: list(&["run", "--take-over"]),
            entrypoint: list(&["uh-proxy"]),
            labels: Some(HashMap::from([
                ("version".to_owned(), "1".to_owned()),
                ("team".to_owned(), "web".to_owned()),
            ])),
            ..ContainerConfig::default()
        };
        let endpoint = EndpointSettings {
            aliases: list(&["front", "0123456789ab"]),
            ip_address: Some("10.0.0.2".to_owned()),
            ..EndpointSettings::default()
        };
        let found = ContainerInspectResponse {
            id: Some("0123456789abcdef".to_owned()),
            config: Some(config),
            host_config: Some(HostConfig { network_mode: Some("b".to_owned()), ..HostConfig::default() }),
            network_settings: Some(bollard::models::NetworkSettings {
                networks: Some(HashMap::from([
                    ("a".to_owned(), EndpointSettings::default()),
                    ("b".to_owned(), endpoint),
                ])),
                ..Default::default()
            }),
            ..ContainerInspectResponse::default()
        };
        let copy = Copy::of(found, &image, "uh-proxy:2").unwrap();
        assert_eq!(copy.body.image.as_deref(), Some("uh-proxy:2"));
        assert_eq!(copy.body.hostname, None);
        assert_eq!(copy.body.env, list(&["TZ=UTC"]));
        assert_eq!(copy.body.entrypoint, None);
        assert_eq!(copy.body.cmd, list(&["run", "--take-over"]));
        assert_eq!(copy.body.labels.as_ref().unwrap().keys().collect::<Vec<_>>(), ["team"]);
        let first = copy.body.networking_config.as_ref().unwrap().endpoints_config.as_ref().unwrap();
        assert_eq!(first["b"].aliases, list(&["front"]));
        assert_eq!(first["b"].ip_address, None);
        assert_eq!(copy.joins.len(), 1);
        let check = copy.for_command(&["check"]);
        assert_eq!(check.body.cmd, list(&["check"]));
    }

    #[test]
    fn only_a_tag_is_replaced() {
        assert_eq!(tagged("uh-proxy:0.1.0", "0.2.0"), "uh-proxy:0.2.0");
        assert_eq!(tagged("registry:5000/uh-proxy", "0.2.0"), "registry:5000/uh-proxy:0.2.0");
    }
}
