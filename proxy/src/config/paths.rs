//! `[[services.NAME.paths]]`: settings for some paths of a service.
//!
//! A rule changes settings, never the backend: all paths of a service go to its one active backend, and move with it.
//! What a rule doesn't set is taken from its service when the file is read, so a request reads one value:
//! [`PathSettings`].
//!
//! To add a key: a field of [`PathSettings`], read by a function of the key's own module.

mod guards;
mod headers;
mod pattern;
mod replacement;
mod reply;
mod table;

use std::num::NonZeroU16;
use std::sync::Arc;

use uh_http1::compression::Compression;
use uh_http1::network::Network;
use uh_settings::Section;
use uh_switching::BackendDefinition;

use super::compress;
use super::files::{self, Files, FilesFor};
use super::limits::{self, Limits};
use super::previous::{self, AskPrevious};
use super::rate::{self, Rate};
use super::request_buffers::{self, RequestBuffer};
use super::timeouts::{self, Timeouts};
use guards::Guards;
pub use headers::{HeaderEdits, MAX_REQUEST_EDITS};
pub(crate) use headers::{Of as EditsOf, mistake as edit_mistake};
pub(super) use pattern::PathPrefix;
use pattern::{Pattern, patterns};
pub use replacement::Replacement;
pub use reply::{FixedAnswer, PathRedirect, Reply};
use table::PathTable;

/// The most rules of a service: a request may be compared with all of them.
const MAX_RULES: usize = 256;

/// The most patterns of all rules of a service, for the same reason.
const MAX_PATTERNS: usize = 1024;

/// What applies to a request, by its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathSettings {
    /// Timeouts of the parts of an exchange.
    pub timeouts: Timeouts,
    /// Limits on the size of a request and the speed of its client.
    pub limits: Limits,
    /// How many requests one client may make; `None`: any number.
    pub rate: Option<Rate>,
    /// Which requests are read as a whole before a backend is asked; `None`: none.
    pub buffer: Option<RequestBuffer>,
    /// Which responses are compressed; `None`: none.
    pub compress: Option<Arc<Compression>>,
    /// Whether it is written to the access log.
    pub access_log: bool,
    /// What is done to the fields of a request, for the backend.
    pub request_headers: HeaderEdits,
    /// What is done to the fields of a response, also of uh-proxy's own.
    pub response_headers: HeaderEdits,
    /// The only clients that get an answer; `None`: all.
    pub allow: Option<Vec<Network>>,
    /// What uh-proxy answers by itself; `None`: the backend answers.
    pub reply: Option<Reply>,
    /// What replaces the start of the path, for the backend.
    pub replacement: Option<Replacement>,
    /// Static files of the backends.
    pub files: Option<Arc<Files>>,
    /// For what the previous backend is asked.
    pub previous: AskPrevious,
}

/// Keys about the backend, which gets no request of a rule that answers by itself.
const OF_BACKEND: [&str; 13] = [
    "buffer_requests",
    "compress",
    "deployment_id",
    "files",
    "files_only",
    "limits",
    "precompressed",
    "previous_for_actions",
    "previous_on_404",
    "replace_prefix",
    "request_headers",
    "spa",
    "timeouts",
];

impl PathSettings {
    /// Of a service, for all paths that no rule matches.
    fn of_service(section: &mut Section, files: FilesFor<'_>) -> Self {
        let name = section.key("");
        let backends = files.backends;
        let served = files::files(section, files);
        let settings = Self {
            timeouts: timeouts::of_service(&mut section.section("timeouts")),
            limits: limits::limits(&mut section.section("limits"), &Limits::default()),
            rate: rate::rate(section, &name, None),
            buffer: request_buffers::of_paths(section, None),
            compress: compress::compress(section, None),
            access_log: true,
            request_headers: headers::of_requests(section, &HeaderEdits::default()),
            response_headers: headers::of_responses(section, &HeaderEdits::default()),
            allow: None,
            reply: None,
            replacement: None,
            previous: previous::previous(section, None, backends, served.as_ref()),
            files: served.map(Arc::new),
        };
        settings.checked(section)
    }

    /// Of a rule with this name. What it doesn't set is the service's.
    fn of_rule(section: &mut Section, name: &str, service: &Self, files: FilesFor<'_>) -> Self {
        let backends = files.backends;
        let served = files::files(section, files);
        let settings = Self {
            timeouts: timeouts::of_paths(&mut section.section("timeouts"), &service.timeouts),
            limits: limits::limits(&mut section.section("limits"), &service.limits),
            rate: rate::rate(section, name, service.rate),
            buffer: request_buffers::of_paths(section, service.buffer),
            compress: compress::compress(section, service.compress.as_ref()),
            access_log: section.boolean("access_log", service.access_log),
            request_headers: headers::of_requests(section, &service.request_headers),
            response_headers: headers::of_responses(section, &service.response_headers),
            allow: section.list("allow"),
            reply: reply::reply(section),
            replacement: None,
            previous: previous::previous(section, Some(&service.previous), backends, served.as_ref()),
            files: served.map(Arc::new),
        };
        settings.checked(section)
    }

    /// Notes what can't be combined.
    fn checked(self, section: &mut Section) -> Self {
        headers::check_coding(section, &self.response_headers, self.compress.is_some());
        self
    }

    /// Whether it keeps clients out, who must not get around it.
    #[must_use]
    pub fn restricts(&self) -> bool {
        let refuses = matches!(&self.reply, Some(Reply::Fixed(answer)) if answer.status >= 400);
        refuses || self.allow.is_some()
    }
}

/// Which settings of a service apply to a request; by default, those of the service itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PathId(Option<NonZeroU16>);

/// The settings of a service and of its path rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathRules {
    own: PathSettings,
    rules: Vec<PathSettings>,
    table: PathTable,
    /// Whether there are rules by which uh-proxy answers.
    answer: bool,
    /// If there are rules that keep clients out.
    guards: Option<Guards>,
}

impl PathRules {
    /// The service's own settings.
    #[must_use]
    pub fn own(&self) -> &PathSettings {
        &self.own
    }

    /// Whether this is so for any of the service's paths.
    pub fn any(&self, is: impl Fn(&PathSettings) -> bool) -> bool {
        std::iter::once(&self.own).chain(&self.rules).any(is)
    }

    /// Which settings apply to a path, as the client wrote it; it may have a query.
    #[must_use]
    pub fn find(&self, path: &[u8]) -> PathId {
        if self.rules.is_empty() {
            return PathId::default();
        }
        id(self.table.find(path))
    }

    /// Whether there are rules by which uh-proxy answers instead of the backend.
    #[must_use]
    pub fn answer(&self) -> bool {
        self.answer
    }

    /// Which settings apply to what an app may read in a path instead of what is written. Where they keep clients out,
    /// they do so for this path, too.
    #[must_use]
    pub fn other_readings(&self, path: &[u8]) -> [PathId; 2] {
        self.guards.as_ref().map_or_else(Default::default, |guards| guards.readings(path).map(id))
    }

    /// These settings. An ID of another service's rules may lead to any settings of this one.
    #[must_use]
    pub fn at(&self, id: PathId) -> &PathSettings {
        let rule = id.0.and_then(|number| self.rules.get(usize::from(number.get()) - 1));
        rule.unwrap_or(&self.own)
    }
}

fn id(settings: Option<u16>) -> PathId {
    PathId(settings.and_then(|settings| NonZeroU16::new(settings + 1)))
}

/// Reads the settings of a service and of its path rules. `prefix`: the service's.
pub(super) fn rules(service: &mut Section, prefix: &str, backends: &[BackendDefinition]) -> PathRules {
    let prefixes = vec![prefix.trim_end_matches('/').into()];
    let own = PathSettings::of_service(service, FilesFor { backends, prefixes, outer: None });
    let mut known = Known::default();
    let sections = service.tables("paths");
    if sections.len() > MAX_RULES {
        service.mistake("paths", format!("more than {MAX_RULES} rules"));
    }
    for (number, mut section) in sections.into_iter().enumerate() {
        check_combination(&section);
        let replacement = replacement::new_prefix(&mut section);
        let patterns = patterns(&mut section, prefix);
        let prefixes = patterns.iter().filter_map(Pattern::directory).map(Into::into).collect();
        let files = FilesFor { backends, prefixes, outer: own.files.as_deref() };
        let mut name = service.key("");
        for pattern in &patterns {
            name.push_str(&format!(", {pattern}"));
        }
        let settings = PathSettings::of_rule(&mut section, &name, &own, files);
        for pattern in patterns {
            let replacement = replacement.as_ref().map(|to| Replacement::new(&pattern, to));
            known.add(&section, number, pattern, PathSettings { replacement, ..settings.clone() });
        }
    }
    if known.patterns.len() > MAX_PATTERNS {
        service.mistake("paths", format!("more than {MAX_PATTERNS} patterns"));
    }
    let Known { patterns, settings: rules, .. } = known;
    let restricts = |rule: u16| rules[usize::from(rule)].restricts();
    let guards = rules.iter().any(PathSettings::restricts).then(|| Guards::new(&patterns, restricts));
    let answer = rules.iter().any(|settings| settings.allow.is_some() || settings.reply.is_some());
    PathRules { own, table: PathTable::new(patterns), answer, guards, rules }
}

/// A rule by which uh-proxy answers has no use for what concerns the backend.
fn check_combination(rule: &Section) {
    for key in ["answer", "redirect"].into_iter().filter(|key| rule.has(key)) {
        for other in OF_BACKEND.into_iter().filter(|other| rule.has(other)) {
            let reason = format!("the rule has {key}, so no backend gets its requests: remove one of them");
            rule.mistake(other, reason);
        }
    }
}

/// The rules so far.
#[derive(Default)]
struct Known {
    /// With the numbers of their settings.
    patterns: Vec<(Pattern, u16)>,
    settings: Vec<PathSettings>,
    /// The number of the rule that each pattern is of.
    rules: Vec<usize>,
}

impl Known {
    fn add(&mut self, section: &Section, rule: usize, pattern: Pattern, settings: PathSettings) {
        if let Some(other) = self.patterns.iter().position(|(other, _)| *other == pattern) {
            let other = self.rules[other];
            return section
                .mistake("match", format!("paths[{other}] has {pattern} too: remove it from one of them"));
        }
        // Most patterns of a rule share their settings.
        if self.settings.last() != Some(&settings) || self.rules.last() != Some(&rule) {
            self.settings.push(settings);
        }
        let number = u16::try_from(self.settings.len() - 1).unwrap_or(u16::MAX);
        self.patterns.push((pattern, number));
        self.rules.push(rule);
    }
}

#[cfg(test)]
mod tests;
