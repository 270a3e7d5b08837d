//! Path rules of the services.

use super::services::Builder;
use super::{Rule, Service, Spot, denied, is_under};
use crate::import::nginx::{Extras, FileSettings, Location, Pattern, Proxy, Reply, Settings};
use crate::import::table::Class;

/// The most rules of a service, with room for one for all its paths.
const MAX_RULES: usize = 250;

/// Whether requests are handled alike.
fn same(one: &Settings, other: &Settings) -> bool {
    let comparable = |settings: &Settings| Settings {
        connect: None,
        keeps_host: true,
        files: FileSettings::default(),
        ..settings.clone()
    };
    comparable(one) == comparable(other)
}

impl Builder<'_> {
    /// Adds a rule to a service, if it sets anything.
    pub(super) fn rule(&mut self, at: usize, location: &Location, mut rule: Rule) {
        let service = &mut self.site.services[at];
        let connect = location.settings.connect.as_ref();
        if let Some(connect) = connect.filter(|own| service.settings.connect.as_ref() != Some(*own)) {
            let why = "the service has one connect timeout for all paths";
            self.ledger.set(connect.id, Class::Look, location.scope, why);
        }
        if rule.exact
            && service.health.is_none()
            && rule.reply.is_none()
            && let [path] = rule.paths.as_slice()
            && path.contains("health")
        {
            service.health = Some(rule.replace.as_ref().unwrap_or(path).clone());
        }
        let wider = |other: &Rule| {
            !other.exact
                && rule.paths.iter().any(|path| other.paths.iter().any(|outer| is_under(path, outer)))
        };
        let plain = rule.reply.is_none() && rule.replace.is_none() && rule.files.is_none();
        if plain && same(&location.settings, &service.settings) && !service.rules.iter().any(wider) {
            self.site.spots.insert(location.scope, Spot::Service(at));
            return;
        }
        if !rule.suffixes.is_empty() {
            return self.with_suffixes(at, location, &rule);
        }
        let end = |path: &String| {
            if rule.exact { path.clone() } else { path.trim_end_matches('/').to_owned() }
        };
        let known = |path: &String| {
            let like = |other: &&Rule| other.exact == rule.exact && other.suffixes.is_empty();
            service
                .rules
                .iter()
                .filter(like)
                .any(|other| other.paths.iter().any(|other| end(other) == end(path)))
        };
        let (twice, new): (Vec<String>, Vec<String>) = rule.paths.iter().cloned().partition(known);
        if let Some(path) = twice.first() {
            let why = format!("another location has {path} too, and a path has one rule");
            self.ledger.set(location.id, Class::Changes, location.scope, why);
        }
        rule.paths = new;
        self.add(at, location, rule);
    }

    /// Adds a rule with suffixes, without those that an earlier location has, which nginx prefers.
    fn with_suffixes(&mut self, at: usize, location: &Location, rule: &Rule) {
        let rules = &self.site.services[at].rules;
        let taken = |path: &str, suffix: &str| {
            rules.iter().any(|other| {
                other.suffixes.iter().any(|other| other.eq_ignore_ascii_case(suffix))
                    && other
                        .paths
                        .iter()
                        .any(|other| other.trim_end_matches('/') == path.trim_end_matches('/'))
            })
        };
        let mut groups: Vec<(Vec<String>, Vec<String>)> = Vec::new();
        for path in &rule.paths {
            let free = rule.suffixes.iter().filter(|suffix| !taken(path, suffix)).cloned();
            let free: Vec<String> = free.collect();
            match groups.iter_mut().find(|(suffixes, _)| *suffixes == free) {
                Some((_, paths)) => paths.push(path.clone()),
                None => groups.push((free, vec![path.clone()])),
            }
        }
        groups.retain(|(suffixes, _)| !suffixes.is_empty());
        if groups.is_empty() {
            return self.drop(location, Class::Look, "an earlier location has these files too");
        }
        for (suffixes, paths) in groups {
            self.add(at, location, Rule { suffixes, paths, ..rule.clone() });
        }
    }

    /// Adds a rule whose paths no other rule has.
    fn add(&mut self, at: usize, location: &Location, mut rule: Rule) {
        let service = &mut self.site.services[at];
        if rule.paths.is_empty() {
            return;
        }
        if service.rules.len() >= MAX_RULES {
            return self.drop(location, Class::Changes, "a service has at most 256 path rules");
        }
        // The paths of one location share a rule.
        if let Some(Spot::Rule(other, number)) = self.site.spots.get(&location.scope)
            && *other == at
            && let Some(old) = service.rules.get_mut(*number)
            && old.suffixes == rule.suffixes
            && old.files == rule.files
        {
            old.paths.append(&mut rule.paths);
            return;
        }
        self.site.spots.insert(location.scope, Spot::Rule(at, service.rules.len()));
        service.rules.push(rule);
    }

    /// nginx prefers a regular expression to any prefix, so the rule is repeated below each of them.
    pub(super) fn suffixes(
        &mut self,
        location: &Location,
        proxy: &Proxy,
        below: &[String],
        suffixes: &[String],
    ) {
        let mut found = false;
        for at in 0..self.site.services.len() {
            let paths = self.suffix_paths(at, below);
            let service = &self.site.services[at];
            let prefix = &service.prefix;
            if paths.is_empty() {
                continue;
            }
            if service.target != proxy.target || service.strip {
                let why = format!("requests below {prefix} go to the service for that path");
                self.ledger.set(location.id, Class::Look, location.scope, why);
                continue;
            }
            found = true;
            let rule = Rule { suffixes: suffixes.to_vec(), paths, ..Rule::new(String::new(), location) };
            self.rule(at, location, rule);
        }
        if !found {
            self.drop(
                location,
                Class::Changes,
                "no service for these files: the app has no location with a prefix",
            );
        }
    }

    /// An answer for these files, in all services of the server.
    pub(super) fn suffix_reply(
        &mut self,
        location: &Location,
        reply: &Reply,
        below: &[String],
        suffixes: &[String],
    ) {
        let mut found = false;
        for at in 0..self.site.services.len() {
            let paths = self.suffix_paths(at, below);
            if paths.is_empty() {
                continue;
            }
            found = true;
            let rule = Rule {
                suffixes: suffixes.to_vec(),
                paths,
                reply: Some(reply.clone()),
                ..Rule::new(String::new(), location)
            };
            self.rule(at, location, rule);
        }
        if !found {
            self.drop(location, Class::Changes, "no service has these paths");
        }
    }

    /// The prefixes below which a suffix applies in a service of this server.
    pub(super) fn suffix_paths(&self, at: usize, below: &[String]) -> Vec<String> {
        let service = &self.site.services[at];
        if service.hosts != self.server.hosts {
            return Vec::new();
        }
        let all = ["/".to_owned()];
        let below = if below.is_empty() { all.as_slice() } else { below };
        let prefix = &service.prefix;
        let within = |path: &String| {
            if is_under(path, prefix) {
                Some(path.clone())
            } else {
                is_under(prefix, path).then(|| prefix.clone())
            }
        };
        let mut paths: Vec<String> = below.iter().filter_map(within).collect();
        let prefixes = service.rules.iter().filter(|rule| !rule.exact && rule.suffixes.is_empty());
        let inner = prefixes.flat_map(|rule| &rule.paths).filter(|path| !self.is_first(path));
        paths.extend(inner.filter(|path| below.iter().any(|below| is_under(path, below))).cloned());
        let mut ends = Vec::new();
        paths.retain(|path| {
            let end = path.trim_end_matches('/').to_owned();
            let new = !ends.contains(&end);
            ends.push(end);
            new
        });
        paths
    }

    /// Whether a prefix has `^~`.
    fn is_first(&self, path: &str) -> bool {
        let is =
            |pattern: &Pattern| matches!(pattern, Pattern::Prefix { path: own, first: true } if own == path);
        self.server.locations.iter().any(|location| is(&location.pattern))
    }
}

/// Moves settings that a service can't have, or that not all of its rules have, to a rule for all its paths: rules inherit
/// from their service, and not from each other.
pub(super) fn push_down(service: &mut Service) {
    let own = &service.settings.extras;
    let only_in_rules = own.unlogged || own.denies.is_some();
    let others = service.rules.iter().any(|rule| rule.settings.extras != *own);
    if *own == Extras::default() || !(only_in_rules || others) {
        return;
    }
    let covers = |rule: &Rule| {
        !rule.exact
            && rule.suffixes.is_empty()
            && rule.paths.iter().any(|path| is_under(&service.prefix, path))
    };
    if !service.rules.iter().any(covers) {
        service.rules.push(Rule {
            paths: vec![service.prefix.clone()],
            exact: false,
            suffixes: Vec::new(),
            settings: service.settings.clone(),
            reply: denied(&service.settings),
            replace: None,
            files: None,
        });
    }
    service.settings.extras = Extras::default();
}
