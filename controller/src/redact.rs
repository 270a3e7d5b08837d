//! Keeps secrets out of whatever is printed, sent or written down.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::config::{Config, RuntimeConfig};
use crate::env_file;

/// A shorter value is no secret, and would blot out half of every text.
const MIN_SECRET_BYTES: usize = 6;

/// What is put in a secret's place.
const BLOT: &str = "***";

/// Knows the secrets: the values of the environment files and of variables that are handed on, and the passwords in
/// URLs among them.
#[derive(Debug, Clone, Default)]
pub struct Redactor {
    secrets: Vec<String>,
}

impl Redactor {
    /// The secrets of a configuration. What can't be read now is none of ours to leak.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let (file, handed_on) = match &config.runtime {
            RuntimeConfig::Process(process) => (&process.env_file, process.env_from.as_slice()),
            RuntimeConfig::Docker(docker) => (&docker.env_file, docker.env_from.as_slice()),
            RuntimeConfig::Compose(compose) => (&compose.env_file, &[][..]),
        };
        let file = file.as_deref().and_then(|path| env_file::read(path).ok());
        let mut values: Vec<String> = file.into_iter().flat_map(BTreeMap::into_values).collect();
        values.extend(handed_on.iter().filter_map(|name| std::env::var(name).ok()));
        let named = [&config.notice.webhook_env, &config.validate.database_url_env];
        values.extend(named.into_iter().flatten().filter_map(|name| std::env::var(name).ok()));
        Self::with(values)
    }

    /// For these values.
    #[must_use]
    pub fn with(values: Vec<String>) -> Self {
        let passwords: Vec<String> = values.iter().filter_map(|value| password(value)).collect();
        let mut secrets: Vec<String> =
            values.into_iter().chain(passwords).filter(|value| value.len() >= MIN_SECRET_BYTES).collect();
        // The longest first: one may be a part of another.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets.dedup();
        Self { secrets }
    }

    /// Adds more.
    pub fn add(&mut self, values: Vec<String>) {
        let known = std::mem::take(&mut self.secrets);
        *self = Self::with(known.into_iter().chain(values).collect());
    }

    /// The text without secrets.
    #[must_use]
    pub fn clean<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = Cow::Borrowed(text);
        for secret in &self.secrets {
            if text.contains(secret.as_str()) {
                text = Cow::Owned(text.replace(secret.as_str(), BLOT));
            }
        }
        text
    }
}

/// `scheme://user:PASSWORD@host`
fn password(value: &str) -> Option<String> {
    let (_, rest) = value.split_once("://")?;
    let (credentials, _) = rest.rsplit_once('@')?;
    Some(credentials.split_once(':')?.1.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_the_passwords_in_them_are_blotted_out() {
        let redactor = Redactor::with(vec![
            "postgres://me:hunter22@db/x".to_owned(),
            "s3cr3t".to_owned(),
            "1".to_owned(),
        ]);
        assert_eq!(redactor.clean("url postgres://me:hunter22@db/x, 1 s3cr3t"), "url ***, 1 ***");
        assert_eq!(redactor.clean("the password hunter22 was refused"), "the password *** was refused");
        assert!(matches!(redactor.clean("nothing"), Cow::Borrowed(_)));
    }

    /// Of each runtime: a file with a secret, and a variable that every process has.
    #[test]
    fn the_secrets_of_every_runtime_are_known() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("app.env"), "API_KEY=tr0ub4dor\nURL=postgres://me:hunter22@db/x\n")
            .unwrap();
        let backends = "[backends.blue]\nendpoints = [\"127.0.0.1:1\"]\n[backends.green]\nendpoints = [\"127.0.0.1:2\"]\n";
        let path = std::env::var("PATH").unwrap();
        for (runtime, has_variables) in [
            ("kind = \"process\"\n[runtime.process]\ncommand = [\"app\"]\nenv_from = [\"PATH\"]", true),
            ("kind = \"docker\"\n[runtime.docker]\nimage = \"app:1\"\nenv_from = [\"PATH\"]", true),
            ("kind = \"compose\"\n[runtime.compose]\nfiles = [\"compose.yml\"]", false),
        ] {
            let text = format!("{backends}[runtime]\n{runtime}\nenv_file = \"app.env\"\n");
            let redactor = Redactor::of(&crate::config::parse(&text, dir.path()).unwrap());
            let said = "key tr0ub4dor, refused hunter22";
            assert_eq!(redactor.clean(said), "key ***, refused ***", "{runtime}");
            assert_eq!(redactor.clean(&path) == "***", has_variables, "{runtime}");
        }
    }
}
