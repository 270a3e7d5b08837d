//! What the previous backend still answers, for pages that were loaded before a switch.

use std::str::FromStr;
use std::sync::Arc;

use uh_settings::Section;
use uh_switching::BackendDefinition;

use super::files::Files;

/// For what the previous backend is asked. By default, for nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AskPrevious {
    /// For what the active one answers with 404.
    pub on_404: bool,
    /// For Next.js server actions that the active one doesn't know.
    pub actions: bool,
    /// For everything that names its deployment id.
    pub named: Option<Arc<DeploymentIds>>,
}

impl AskPrevious {
    /// Whether it is asked for anything.
    #[must_use]
    pub fn any(&self) -> bool {
        self.on_404 || self.actions || self.named.is_some()
    }
}

/// How a deployment id is made of the version that a backend is registered with: `{version}`, or with more around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeploymentIds {
    before: String,
    after: String,
}

impl DeploymentIds {
    /// Whether this is the deployment id of a version. An id that may only have letters, digits, `-` and `_` has one of these
    /// two where the version has another character.
    #[must_use]
    pub fn is_of(&self, id: &[u8], version: &str) -> bool {
        let id = id.strip_prefix(self.before.as_bytes());
        let id = id.and_then(|id| id.strip_suffix(self.after.as_bytes())).unwrap_or_default();
        let same = |(&id, version): (&u8, u8)| {
            id == version || matches!(id, b'-' | b'_') && !version.is_ascii_alphanumeric()
        };
        !id.is_empty() && id.len() == version.len() && id.iter().zip(version.bytes()).all(same)
    }
}

/// The placeholder of a version.
const VERSION: &str = "{version}";

/// The value of the key: how ids are made, or that there are none.
struct Template(Option<DeploymentIds>);

impl FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        let plain = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.~".contains(&b));
        match text.split_once(VERSION) {
            Some((before, after)) if plain(before) && plain(after) => {
                Ok(Self(Some(DeploymentIds { before: before.to_owned(), after: after.to_owned() })))
            }
            _ => Err(format!(
                "expected {VERSION:?}, perhaps with letters, digits and -_.~ around it, or \"off\""
            )),
        }
    }
}

/// Reads the keys of a service or of one of its rules. What they don't set is as `outer` says. `files`: the static files of
/// the same paths.
pub(super) fn previous(
    section: &mut Section,
    outer: Option<&AskPrevious>,
    backends: &[BackendDefinition],
    files: Option<&Files>,
) -> AskPrevious {
    let outer = outer.cloned().unwrap_or_default();
    // A key that was read isn't there any more.
    let [sets_actions, sets_ids] = ["previous_for_actions", "deployment_id"].map(|key| section.has(key));
    let named = section.parsed::<Template>("deployment_id");
    let previous = AskPrevious {
        on_404: section.boolean("previous_on_404", outer.on_404),
        actions: section.boolean("previous_for_actions", outer.actions),
        named: named.map_or(outer.named, |Template(ids)| ids.map(Arc::new)),
    };
    let (actions, ids) = (sets_actions && previous.actions, sets_ids && previous.named.is_some());
    for (key, on) in [("previous_for_actions", actions), ("deployment_id", ids)] {
        if on && backends.len() == 1 {
            let reason = "the service has only one backend, so there is no previous one: remove this key";
            section.mistake(key, reason);
        }
    }
    if actions && files.is_some_and(|files| files.only) {
        let reason = "not with files_only, which answers every POST with 405: remove one of them";
        section.mistake("previous_for_actions", reason);
    }
    previous
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ConfigError, Service, parse};

    const GREEN: &str = "[services.app.backends.green]\nendpoints = [\"127.0.0.1:2\"]\n";

    fn parsed(service: &str, rest: &str) -> Result<Service, Vec<String>> {
        let text = format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\n[services.app]\nactive = \"blue\"\n{service}\n\
             [services.app.backends.blue]\nendpoints = [\"127.0.0.1:1\"]\n{rest}"
        );
        match parse(&text) {
            Ok(mut config) => Ok(config.services.remove(0)),
            Err(ConfigError::Mistakes(mistakes)) => Err(mistakes.0.into_iter().map(|m| m.key).collect()),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn nothing_is_asked_unless_it_is_set_and_rules_inherit() {
        let rules = format!(
            "{GREEN}[[services.app.paths]]\nmatch = \"/a\"\nprevious_for_actions = false\n\
             [[services.app.paths]]\nmatch = \"/b\"\nprevious_on_404 = true\n"
        );
        let of = |service: &Service, path: &[u8]| service.rules.at(service.rules.find(path)).previous.clone();
        let service = parsed("previous_for_actions = true", &rules).unwrap();
        assert_eq!(of(&service, b"/"), AskPrevious { actions: true, ..AskPrevious::default() });
        assert_eq!(of(&service, b"/a"), AskPrevious::default());
        assert_eq!(of(&service, b"/b"), AskPrevious { on_404: true, actions: true, named: None });
        let service = parsed("", GREEN).unwrap();
        assert!(!of(&service, b"/").any());
        let rule = format!("{GREEN}[[services.app.paths]]\nmatch = \"/a\"\ndeployment_id = \"off\"\n");
        let service = parsed("deployment_id = \"{version}\"", &rule).unwrap();
        assert!(of(&service, b"/").any() && !of(&service, b"/a").any());
    }

    #[test]
    fn an_id_is_that_of_a_version_if_it_is_made_of_it() {
        let ids = |text: &str| text.parse::<Template>().ok().and_then(|template| template.0).unwrap();
        for (template, id, version, is) in [
            ("{version}", "1.0.0", "1.0.0", true),
            ("{version}", "1-0_0", "1.0.0", true),
            ("{version}", "1.0.0", "1-0-0", false),
            ("{version}", "a-b", "a-b", true),
            ("{version}", "1.0.00", "1.0.0", false),
            ("{version}", "", "", false),
            ("app-{version}.x", "app-2.x", "2", true),
            ("app-{version}.x", "app-.x", "", false),
            ("app-{version}.x", "2", "2", false),
            ("app-{version}-app-", "app-", "", false),
        ] {
            assert_eq!(ids(template).is_of(id.as_bytes(), version), is, "{template} {id} {version}");
        }
    }

    #[test]
    fn what_is_impossible_is_a_mistake() {
        let only = "previous_for_actions = true\nfiles = \"/srv\"\nfiles_only = true";
        let answer = "[[services.app.paths]]\nmatch = \"/a\"\nprevious_for_actions = true\nredirect = { to = \"/\" }\n";
        for (service, rest) in
            [("previous_for_actions = true", ""), (only, GREEN), ("", &*format!("{GREEN}{answer}"))]
        {
            let keys = parsed(service, rest).unwrap_err();
            assert!(
                keys.iter().any(|key| key.ends_with("previous_for_actions")),
                "{service} {rest}: {keys:?}"
            );
        }
        for template in ["\"\"", "\"{backend}\"", "\"{version}{version}\"", "\"a b{version}\"", "true"] {
            let keys = parsed(&format!("deployment_id = {template}"), GREEN).unwrap_err();
            assert!(keys.iter().any(|key| key.ends_with("deployment_id")), "{template}: {keys:?}");
        }
        assert!(parsed("deployment_id = \"{version}\"", "").is_err());
        // What a rule inherits and has no use for does no harm.
        let rule = "[[services.app.paths]]\nmatch = \"/a\"\nfiles = \"/srv\"\nfiles_only = true\n";
        parsed("previous_for_actions = true", &format!("{GREEN}{rule}")).unwrap();
    }
}
