//! The whole request that creates a container. Decided once, from the configuration and the candidate.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use bollard::models::{
    ContainerCreateBody, EndpointSettings, HostConfig, HostConfigLogConfig, NetworkingConfig, PortBinding,
    RestartPolicy, RestartPolicyNameEnum,
};
use serde::{Deserialize, Serialize};
use uh_protocol::Address;

use crate::config::{DockerSettings, Restart};
use crate::runtime::Candidate;

/// Docker's name for the host's own network, on which nothing is published.
const HOST_NETWORK: &str = "host";

/// A container to create.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ContainerSpec {
    /// The request, without the labels of the instance.
    body: ContainerCreateBody,
    /// All networks to join; the first one is in the request.
    pub(super) networks: Vec<String>,
    /// Its names on them.
    pub(super) aliases: Vec<String>,
}

impl ContainerSpec {
    pub(super) fn new(
        settings: &DockerSettings,
        image_id: &str,
        candidate: &Candidate,
    ) -> Result<Self, String> {
        let on_host = settings.networks.iter().any(|network| network == HOST_NETWORK);
        let mut bindings: HashMap<String, Option<Vec<PortBinding>>> = HashMap::new();
        let mut aliases = vec![format!("{}-{}", candidate.service, candidate.backend)];
        let mut inside = None;
        for endpoint in &candidate.endpoints {
            let (Some(host), Some(port)) = (endpoint.host(), endpoint.port()) else {
                return Err(format!("{endpoint}: the endpoint of a container must be host:port"));
            };
            let container_port = if on_host { port } else { settings.port.unwrap_or(port) };
            inside.get_or_insert(container_port);
            match published_at(endpoint) {
                Some(address) if !on_host => {
                    let binding =
                        PortBinding { host_ip: Some(address.to_string()), host_port: Some(port.to_string()) };
                    let list = bindings.entry(format!("{container_port}/tcp")).or_default();
                    list.get_or_insert_default().push(binding);
                }
                None if settings.networks.is_empty() || on_host => {
                    return Err(format!(
                        "{endpoint} is a name on a container network: set runtime.docker.networks, or write an IP address"
                    ));
                }
                None if container_port != port => {
                    return Err(format!(
                        "{endpoint} is reached on the container network, so its port must be runtime.docker.port ({container_port})"
                    ));
                }
                None => aliases.push(host.into_owned()),
                Some(_) => {}
            }
        }
        let port = inside.ok_or("the backend has no endpoint")?;
        // The engine only publishes ports that are exposed too.
        let exposed: Vec<String> = bindings.keys().cloned().collect();
        let host_config = HostConfig {
            port_bindings: Some(bindings),
            binds: (!settings.volumes.is_empty()).then(|| settings.volumes.clone()),
            network_mode: settings.networks.first().cloned(),
            restart_policy: Some(RestartPolicy {
                name: Some(match settings.restart {
                    Restart::UnlessStopped => RestartPolicyNameEnum::UNLESS_STOPPED,
                    Restart::No => RestartPolicyNameEnum::NO,
                }),
                maximum_retry_count: None,
            }),
            memory: settings.memory_limit.and_then(|bytes| i64::try_from(bytes).ok()),
            // The same value: no additional swap, so that the limit holds.
            memory_swap: settings.memory_limit.and_then(|bytes| i64::try_from(bytes).ok()),
            pids_limit: settings.pids_limit.map(i64::from),
            readonly_rootfs: settings.read_only.then_some(true),
            tmpfs: (!settings.tmpfs.is_empty())
                .then(|| settings.tmpfs.iter().map(|text| mount(text)).collect()),
            cap_drop: (!settings.cap_drop.is_empty()).then(|| settings.cap_drop.clone()),
            security_opt: (!settings.security_opt.is_empty()).then(|| settings.security_opt.clone()),
            nano_cpus: settings.cpu_millis.map(|millis| i64::from(millis) * 1_000_000),
            log_config: Some(HostConfigLogConfig {
                typ: Some("json-file".to_owned()),
                config: Some(HashMap::from([
                    ("max-size".to_owned(), settings.log_size.to_string()),
                    ("max-file".to_owned(), settings.log_files.to_string()),
                ])),
            }),
            ..HostConfig::default()
        };
        let networking = settings.networks.first().filter(|_| !on_host).map(|network| NetworkingConfig {
            endpoints_config: Some(HashMap::from([(
                network.clone(),
                EndpointSettings { aliases: Some(aliases.clone()), ..EndpointSettings::default() },
            )])),
        });
        let body = ContainerCreateBody {
            image: Some(image_id.to_owned()),
            cmd: (!settings.command.is_empty())
                .then(|| settings.command.iter().map(|part| fill(part, candidate)).collect()),
            env: Some(environment(settings, candidate, port)?),
            exposed_ports: (!exposed.is_empty()).then_some(exposed),
            host_config: Some(host_config),
            networking_config: networking,
            ..ContainerCreateBody::default()
        };
        Ok(Self { body, networks: settings.networks.clone(), aliases })
    }

    /// Sets the stop timeout for the engine too, which stops the container when the machine shuts down.
    pub(super) fn stopped_within(mut self, timeout: Duration) -> Self {
        self.body.stop_timeout = i64::try_from(timeout.as_millis().div_ceil(1000)).ok();
        self
    }

    /// The request that creates the container.
    pub(super) fn request(&self, labels: HashMap<String, String>) -> ContainerCreateBody {
        ContainerCreateBody { labels: Some(labels), ..self.body.clone() }
    }

    fn bindings(&self) -> impl Iterator<Item = (&String, &PortBinding)> {
        let bindings = self.body.host_config.as_ref().and_then(|host| host.port_bindings.as_ref());
        bindings.into_iter().flatten().flat_map(|(port, list)| list.iter().flatten().map(move |b| (port, b)))
    }

    /// Whether it publishes a port of this machine.
    pub(super) fn publishes(&self) -> bool {
        self.bindings().next().is_some()
    }

    /// Where it will be reachable, for messages.
    pub(super) fn published(&self) -> String {
        let mut places: Vec<String> = self
            .bindings()
            .map(|(port, binding)| {
                let part = |text: &Option<String>| text.clone().unwrap_or_default();
                format!("{}:{} → {port}", part(&binding.host_ip), part(&binding.host_port))
            })
            .collect();
        places.sort();
        match (places.as_slice(), self.networks.as_slice()) {
            ([], networks) => format!(" on {} as {}", networks.join(", "), self.aliases.join(", ")),
            (places, _) => format!(", {}", places.join(", ")),
        }
    }
}

/// The address on which a port is published; `None` for a name on a container network.
fn published_at(endpoint: &Address) -> Option<IpAddr> {
    match endpoint {
        Address::Socket(address) => Some(address.ip()),
        Address::Name(host, _) => (host == "localhost").then(|| IpAddr::from([127, 0, 0, 1])),
        Address::Unix(_) => None,
    }
}

/// A directory in memory, with its options: `/tmp:size=64m`.
fn mount(text: &str) -> (String, String) {
    let (directory, options) = text.split_once(':').unwrap_or((text, ""));
    (directory.to_owned(), options.to_owned())
}

/// Replaces the placeholders.
pub(super) fn fill(text: &str, candidate: &Candidate) -> String {
    text.replace("{service}", candidate.service.as_str())
        .replace("{backend}", candidate.backend.as_str())
        .replace("{version}", &candidate.version)
}

fn environment(settings: &DockerSettings, candidate: &Candidate, port: u16) -> Result<Vec<String>, String> {
    let mut env: BTreeMap<String, String> = BTreeMap::new();
    env.insert("PORT".to_owned(), port.to_string());
    // In a container, an app that listens on the loopback address can't be reached.
    env.insert("HOSTNAME".to_owned(), "0.0.0.0".to_owned());
    env.insert("DEPLOYMENT_ENV".to_owned(), candidate.backend.to_string());
    env.insert("APP_VERSION".to_owned(), candidate.version.clone());
    if let Some(path) = &settings.env_file {
        env.extend(crate::env_file::read(path)?);
    }
    for name in &settings.env_from {
        let value = std::env::var(name)
            .map_err(|_| format!("{name} (runtime.docker.env_from) isn't set in uh-deploy's environment"))?;
        env.insert(name.clone(), value);
    }
    env.extend(settings.env.iter().map(|(name, value)| (name.clone(), fill(value, candidate))));
    Ok(env.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{RuntimeConfig, parse};

    fn settings(extra: &str) -> DockerSettings {
        let text = format!(
            "[backends.blue]\nendpoints = [\"127.0.0.1:1\"]\n[backends.green]\nendpoints = [\"127.0.0.1:2\"]\n\
             [runtime]\nkind = \"docker\"\n[runtime.docker]\nimage = \"app:{{version}}\"\n{extra}"
        );
        match parse(&text, std::path::Path::new("/srv")).unwrap().runtime {
            RuntimeConfig::Docker(settings) => *settings,
            other => panic!("{other:?}"),
        }
    }

    fn candidate(endpoints: &[&str]) -> Candidate {
        Candidate {
            service: "app".parse().unwrap(),
            backend: "green".parse().unwrap(),
            version: "1.0.1".to_owned(),
            endpoints: endpoints.iter().map(|endpoint| endpoint.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn an_ip_address_is_published_and_a_name_is_an_alias() {
        let spec = ContainerSpec::new(&settings("port = 3000"), "sha256:00", &candidate(&["127.0.0.1:3009"]))
            .unwrap();
        assert_eq!(spec.published(), ", 127.0.0.1:3009 → 3000/tcp");
        assert!(spec.body.env.as_ref().unwrap().contains(&"PORT=3000".to_owned()));
        let spec =
            ContainerSpec::new(&settings("networks = [\"web\"]"), "sha256:00", &candidate(&["green:3009"]))
                .unwrap();
        assert!(!spec.publishes());
        assert_eq!(spec.published(), " on web as app-green, green");
        assert!(spec.body.env.as_ref().unwrap().contains(&"PORT=3009".to_owned()));
    }

    #[test]
    fn an_unreachable_endpoint_is_rejected() {
        for (extra, endpoint) in [
            ("", "green:3009"),
            ("networks = [\"web\"]\nport = 3000", "green:3009"),
            ("", "unix:/run/x.sock"),
        ] {
            assert!(
                ContainerSpec::new(&settings(extra), "sha256:00", &candidate(&[endpoint])).is_err(),
                "{endpoint}"
            );
        }
    }

    #[test]
    fn restrictions_of_a_container_are_in_the_request() {
        let extra = "pids_limit = 100\nread_only = true\ntmpfs = [\"/tmp\", \"/run:size=1m,mode=755\"]\n\
                     cap_drop = [\"ALL\"]\nsecurity_opt = [\"no-new-privileges:true\"]";
        let spec =
            ContainerSpec::new(&settings(extra), "sha256:00", &candidate(&["127.0.0.1:3009"])).unwrap();
        let host = spec.body.host_config.unwrap();
        assert_eq!((host.pids_limit, host.readonly_rootfs), (Some(100), Some(true)));
        assert_eq!(host.cap_drop.unwrap(), ["ALL"]);
        assert_eq!(host.security_opt.unwrap(), ["no-new-privileges:true"]);
        let tmpfs = host.tmpfs.unwrap();
        assert_eq!((tmpfs["/tmp"].as_str(), tmpfs["/run"].as_str()), ("", "size=1m,mode=755"));
    }

    #[test]
    fn a_frozen_spec_is_read_back_unchanged() {
        let extra = "memory_limit = \"64MiB\"\ncpu_millis = 500\nvolumes = [\"data:/data\"]\nenv = { A = \"{version}\" }";
        let spec =
            ContainerSpec::new(&settings(extra), "sha256:00", &candidate(&["127.0.0.1:3009"])).unwrap();
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<ContainerSpec>(&text).unwrap(), spec);
        assert!(text.contains("A=1.0.1") && text.contains("67108864"), "{text}");
    }
}
