//! Locations that serve files: path rules of the service that also has the app.

use super::services::Builder;
use super::{Rule, denied};
use crate::import::nginx::{Action, Files, Location, Pattern, Proxy};
use crate::import::table::Class;

impl Builder<'_> {
    pub(super) fn files(&mut self, location: &Location, files: &Files) {
        let (path, exact) = match &location.pattern {
            Pattern::Prefix { path, .. } => (path, false),
            Pattern::Exact(path) => (path, true),
            Pattern::Suffixes { below, suffixes } => {
                return self.suffix_files(location, files, below, suffixes);
            }
            _ => return,
        };
        if let Some(reply) = denied(&location.settings) {
            return self.reply(location, &reply);
        }
        let app = match &files.fallback {
            Some(name) => self.named(name),
            None => self.only_app(),
        };
        if self.covering(path).is_none()
            && !exact
            && path == "/"
            && let Some((app, proxy)) = &app
        {
            self.service(app, &Proxy { uri: None, ..proxy.clone() }, path, false);
        }
        let Some(at) = self.covering(path) else {
            return self.no_files(
                location,
                files,
                "files belong to a service, and no app is clearly theirs; see docs/files.md",
            );
        };
        let mut rule = Rule { exact, files: Some(files.clone()), ..Rule::new(path.clone(), location) };
        if files.fallback.is_some() {
            let target = &self.site.services[at].target;
            let Some((app, _)) = app.filter(|(_, proxy)| proxy.target == *target && proxy.uri.is_none())
            else {
                return self.no_files(
                    location,
                    files,
                    "the service for this path has another app; see docs/files.md",
                );
            };
            if app.settings.extras != location.settings.extras {
                let why = "files and the app have the same header fields: those of the app's location";
                self.ledger.set(location.id, Class::Look, location.scope, why);
            }
            rule.settings = app.settings;
        }
        self.hint(at);
        self.rule(at, location, rule);
    }

    fn hint(&mut self, at: usize) {
        let hint = "A switch changes the files too if each backend has its own directory, with {backend} in `files`: docs/files.md";
        let hints = &mut self.site.services[at].hints;
        if !hints.iter().any(|known| known == hint) {
            hints.push(hint.to_owned());
        }
    }

    /// Files with these suffixes, in all services of the server. A rule for each path below which they are: each is
    /// another directory.
    fn suffix_files(&mut self, location: &Location, files: &Files, below: &[String], suffixes: &[String]) {
        let mut found = false;
        for at in 0..self.site.services.len() {
            for path in self.suffix_paths(at, below) {
                found = true;
                let dir = format!("{}{}", files.dir, path.trim_end_matches('/'));
                let rule = Rule {
                    suffixes: suffixes.to_vec(),
                    files: Some(Files { dir, ..files.clone() }),
                    ..Rule::new(path, location)
                };
                self.hint(at);
                self.rule(at, location, rule);
            }
        }
        if !found {
            let why = "files belong to a service, and no app is clearly theirs; see docs/files.md";
            self.no_files(location, files, why);
        }
    }

    /// Whether files lead to a named location.
    pub(super) fn is_fallback(&self, name: &str) -> bool {
        let leads = |location: &Location| match &location.action {
            Action::Files(files) => files.fallback.as_deref() == Some(name),
            _ => false,
        };
        self.server.locations.iter().any(leads)
    }

    fn no_files(&mut self, location: &Location, files: &Files, why: &str) {
        for id in &files.ids {
            self.ledger.set(*id, Class::Changes, location.scope, why);
        }
    }

    /// A named location and its app.
    fn named(&self, name: &str) -> Option<(Location, Proxy)> {
        let is = |location: &&Location| matches!(&location.pattern, Pattern::Named(own) if own == name);
        let location = self.server.locations.iter().find(is)?;
        let Action::Proxy(proxy) = &location.action else { return None };
        Some((location.clone(), proxy.clone()))
    }

    /// The server's app, if it has one only.
    fn only_app(&self) -> Option<(Location, Proxy)> {
        let apps = self.server.locations.iter().filter_map(|location| match &location.action {
            Action::Proxy(proxy) => Some((location, proxy)),
            _ => None,
        });
        let apps: Vec<(&Location, &Proxy)> = apps.collect();
        let (location, proxy) = *apps.first()?;
        let one = apps.iter().all(|(_, other)| other.target == proxy.target);
        one.then(|| (location.clone(), proxy.clone()))
    }
}
