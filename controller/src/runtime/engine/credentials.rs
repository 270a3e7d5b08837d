//! Registry credentials saved by `docker login`: `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`, and the
//! credential helpers it names.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bollard::auth::DockerCredentials;
use serde::Deserialize;

use crate::{command, files, redact};

/// The largest configuration file.
const MAX_BYTES: usize = 1 << 20;

/// How long a credential helper may take: some ask a remote service.
const HELPER_WITHIN: Duration = Duration::from_secs(10);

/// How many lines of a failed helper are shown.
const HELPER_LOG_LINES: usize = 3;

/// Docker Hub, as Docker's tools name it.
const HUB: &str = "https://index.docker.io/v1/";

/// The relevant part of the user's Docker configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::runtime) struct RegistryCredentials {
    auths: BTreeMap<String, RegistryLogin>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RegistryLogin {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

/// The output of a credential helper.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperOutput {
    username: String,
    secret: String,
}

impl RegistryCredentials {
    /// Reads those of the user that runs uh-deploy; none if there is no such file.
    pub(in crate::runtime) fn read() -> Result<Self, String> {
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker"));
        let directory = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from).or_else(home);
        let Some(path) = directory.map(|directory| directory.join("config.json")) else {
            return Ok(Self::default());
        };
        let text = match files::read_foreign(&path, MAX_BYTES) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            other => other.map_err(|e| format!("can't read {}: {}", path.display(), crate::chain(&e)))?,
        };
        serde_json::from_slice(&text)
            .map_err(|e| format!("{} isn't valid JSON: line {}", path.display(), e.line()))
    }

    /// The credentials for an image's registry; `None`: there are none.
    pub(in crate::runtime) async fn of_image(
        &self,
        image: &str,
    ) -> Result<Option<DockerCredentials>, String> {
        self.of_registry(registry_of(image)).await
    }

    /// All credentials, for a build, which may pull from any registry. Failed helpers are skipped and reported.
    pub(in crate::runtime) async fn all(&self) -> (HashMap<String, DockerCredentials>, Vec<String>) {
        let (mut found, mut problems) = (HashMap::new(), Vec::new());
        for registry in self.auths.keys().chain(self.cred_helpers.keys()) {
            match self.of_registry(registry).await {
                Ok(Some(credentials)) => drop(found.insert(registry.clone(), credentials)),
                Ok(None) => {}
                Err(problem) => problems.push(problem),
            }
        }
        (found, problems)
    }

    async fn of_registry(&self, registry: &str) -> Result<Option<DockerCredentials>, String> {
        let same = |key: &str| host_of(key) == host_of(registry);
        let helper = self.cred_helpers.iter().find(|(key, _)| same(key)).map(|(_, helper)| helper);
        if let Some(helper) = helper.or(self.creds_store.as_ref()) {
            let asked = if host_of(registry) == host_of(HUB) { HUB } else { registry };
            if let Some(credentials) = ask_helper(helper, asked).await? {
                return Ok(Some(credentials));
            }
        }
        let login = self.auths.iter().find(|(key, _)| same(key)).map(|(_, login)| login);
        let credentials = login.and_then(|login| login.credentials(registry));
        remember(credentials.as_ref());
        Ok(credentials)
    }
}

impl RegistryLogin {
    fn credentials(&self, registry: &str) -> Option<DockerCredentials> {
        let decoded =
            STANDARD.decode(self.auth.trim_end_matches('\0')).ok().and_then(|b| String::from_utf8(b).ok());
        let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
        let (username, password) = pair.unwrap_or((&self.username, &self.password));
        if username.is_empty() && self.identitytoken.is_empty() {
            return None;
        }
        Some(credentials(registry, username, password.trim_end_matches('\0'), &self.identitytoken))
    }
}

fn credentials(registry: &str, username: &str, password: &str, token: &str) -> DockerCredentials {
    let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    DockerCredentials {
        username: given(username),
        password: given(password),
        identitytoken: given(token),
        serveraddress: Some(registry.to_owned()),
        ..DockerCredentials::default()
    }
}

/// Redacts the credentials from the output of the engine and of builds.
fn remember(credentials: Option<&DockerCredentials>) {
    let Some(credentials) = credentials else { return };
    redact::remember(
        [&credentials.password, &credentials.identitytoken].into_iter().flatten().cloned().collect(),
    );
}

/// `docker-credential-NAME get`, with the registry on its standard input.
async fn ask_helper(helper: &str, registry: &str) -> Result<Option<DockerCredentials>, String> {
    let program = format!("docker-credential-{helper}");
    if helper.contains('/') {
        return Err(format!("{program} isn't the name of a credential helper"));
    }
    let mut command = Command::new(&program);
    command.arg("get").envs(std::env::vars_os());
    let input = Some(registry.as_bytes().to_vec());
    let answer = match command::answer(&command, input, HELPER_WITHIN, HELPER_LOG_LINES).await {
        Ok(answer) => answer,
        // What every helper prints if it has none.
        Err(failed) if failed.said("credentials not found") => return Ok(None),
        Err(failed) => return Err(format!("no credentials for {registry}: {failed}")),
    };
    let answer: HelperOutput =
        serde_json::from_str(&answer).map_err(|_| format!("{program} didn't return credentials"))?;
    let token = answer.username == "<token>";
    let found = if token {
        credentials(registry, "", "", &answer.secret)
    } else {
        credentials(registry, &answer.username, &answer.secret, "")
    };
    remember(Some(&found));
    Ok(Some(found))
}

/// The registry an image is pulled from.
fn registry_of(image: &str) -> &str {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
        _ => HUB,
    }
}

/// The host of a registry in any notation: `https://index.docker.io/v1/`, `docker.io`, `reg.example.com:5000`.
fn host_of(registry: &str) -> &str {
    let rest = registry.split_once("://").map_or(registry, |(_, rest)| rest);
    match rest.split('/').next().unwrap_or_default() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn found(config: &str, image: &str) -> Option<(Option<String>, Option<String>)> {
        let logins: RegistryCredentials = serde_json::from_str(config).unwrap();
        let credentials = logins.of_image(image).await.unwrap()?;
        Some((credentials.username, credentials.password.or(credentials.identitytoken)))
    }

    #[tokio::test]
    async fn a_login_is_found_by_its_registry_host() {
        // me:hunter22
        let config = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "bWU6aHVudGVyMjI="},
            "reg.example.com:5000": {"username": "you", "password": "secret-1"}, "ghcr.io": {}}, "other": 1}"#;
        let some = |name: &str, secret: &str| Some((Some(name.to_owned()), Some(secret.to_owned())));
        assert_eq!(found(config, "nginx:1.27").await, some("me", "hunter22"));
        assert_eq!(found(config, "team/app").await, some("me", "hunter22"));
        assert_eq!(found(config, "docker.io/team/app").await, some("me", "hunter22"));
        assert_eq!(found(config, "reg.example.com:5000/app:1").await, some("you", "secret-1"));
        assert_eq!(found(config, "reg.example.com/app:1").await, None);
        assert_eq!(found(config, "ghcr.io/team/app").await, None);
    }

    #[tokio::test]
    async fn a_missing_helper_is_named_and_a_path_is_rejected() {
        for (helper, said) in [("uh-none", "docker-credential-uh-none"), ("../../bin/sh", "isn't the name")] {
            let logins = RegistryCredentials {
                creds_store: Some(helper.to_owned()),
                ..RegistryCredentials::default()
            };
            let problem = logins.of_image("app").await.unwrap_err();
            assert!(problem.contains(said), "{problem}");
        }
    }
}
