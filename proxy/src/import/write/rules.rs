//! Path rules, and the keys that they share with services.

use uh_http1::compression::Compression;

use super::{Text, list, text};
use crate::import::nginx::{Extras, Gzip, Rate, Reply, Set, Settings};
use crate::import::plan::Rule;
use crate::import::values::bytes;

impl Text {
    /// Keys of a service or of a rule.
    pub(super) fn extras(&mut self, extras: &Extras, has_backend: bool) {
        if has_backend {
            let fields = extras.request.iter().map(|set| (&set.value.0, &set.value.1));
            let (removed, set): (Vec<_>, Vec<_>) = fields.partition(|(_, value)| value.is_empty());
            let set = set.into_iter().map(|(name, value)| (name.clone(), value.clone())).collect();
            let removed = removed.into_iter().map(|(name, _)| name.clone()).collect();
            self.fields("request_headers", set, removed);
        }
        let cache = extras.cache.iter().map(|set| ("Cache-Control".to_owned(), set.value.clone()));
        let set = cache.chain(extras.response.iter().map(|set| set.value.clone())).collect();
        self.fields("response_headers", set, extras.hidden.iter().map(|set| set.value.clone()).collect());
    }

    /// Fields to set and to remove. Several values of a field are a list.
    fn fields(&mut self, key: &str, set: Vec<(String, String)>, removed: Vec<String>) {
        let mut values: Vec<(String, String)> = Vec::new();
        for (name, value) in set {
            match values.iter_mut().find(|(known, _)| known.eq_ignore_ascii_case(&name)) {
                Some((_, known)) if *known != value => *known = format!("{known}, {value}"),
                Some(_) => {}
                None => values.push((name, value)),
            }
        }
        let mut names: Vec<String> = Vec::new();
        for name in removed {
            let known = |other: &String| other.eq_ignore_ascii_case(&name);
            if !names.iter().any(known) && !values.iter().any(|(other, _)| known(other)) {
                names.push(name);
            }
        }
        let mut parts = Vec::new();
        if !values.is_empty() {
            let values: Vec<String> =
                values.iter().map(|(name, value)| format!("{} = {}", text(name), text(value))).collect();
            parts.push(format!("set = {{ {} }}", values.join(", ")));
        }
        if !names.is_empty() {
            parts.push(format!("remove = {}", list(&names)));
        }
        if !parts.is_empty() {
            self.set(key, format_args!("{{ {} }}", parts.join(", ")));
        }
    }

    /// Which responses are compressed, if that differs.
    pub(super) fn compress(&mut self, gzip: &Gzip, outer: &Gzip) {
        if gzip == outer {
            return;
        }
        if !gzip.on {
            return self.set("compress", false);
        }
        let html = std::iter::once("text/html".to_owned());
        let types: Vec<String> = html.chain(gzip.types.iter().cloned()).collect();
        let mut parts = vec![format!("types = {}", list(&types))];
        // A rule begins with its service's.
        let default = Compression::default();
        let outer = outer.on.then_some(outer);
        let outer_min = outer.and_then(|outer| outer.min_bytes).map(|_| default.min_bytes);
        let outer_level = outer.and_then(|outer| outer.level).map(|_| default.level);
        let (min, level) = (gzip.min_bytes.or(outer_min), gzip.level.or(outer_level));
        parts.extend(min.map(|min| format!("min_bytes = {}", text(&bytes(min)))));
        parts.extend(level.map(|level| format!("level = {level}")));
        self.set("compress", format_args!("{{ {} }}", parts.join(", ")));
    }

    /// How often a client may ask, if that differs.
    pub(super) fn rate(&mut self, rate: Option<&Set<Rate>>, outer: Option<&Set<Rate>>) {
        match rate {
            rate if rate == outer => {}
            Some(rate) => {
                let Rate { requests, by_second, burst, .. } = rate.value;
                let unit = if by_second { "per_second" } else { "per_minute" };
                self.set("rate", format_args!("{{ {unit} = {requests}, burst = {burst} }}"));
            }
            None => self.set("rate", false),
        }
    }

    fn reply(&mut self, reply: &Reply) {
        match reply {
            Reply::Redirect { status, to } => {
                self.set("redirect", format_args!("{{ to = {}, status = {status} }}", text(to)));
            }
            Reply::Answer { status, body, content_type } => {
                let mut parts = vec![format!("status = {status}")];
                if !body.is_empty() {
                    parts.push(format!("body = {}", text(body)));
                }
                if let Some(kind) = content_type {
                    parts.push(format!("content_type = {}", text(kind)));
                }
                self.set("answer", format_args!("{{ {} }}", parts.join(", ")));
            }
        }
    }

    pub(super) fn rule(&mut self, service: &str, rule: &Rule, outer: &Settings) {
        self.line(&format!("\n[[services.{service}.paths]]"));
        match rule.paths.as_slice() {
            [] => {}
            [path] => self.set("match", text(path)),
            paths => self.set("match", list(paths)),
        }
        if rule.exact {
            self.set("exact", true);
        }
        if !rule.suffixes.is_empty() {
            self.set("suffixes", list(&rule.suffixes));
        }
        if rule.settings.extras.unlogged {
            self.set("access_log", false);
        }
        if let Some(networks) = rule.settings.extras.allowed() {
            self.set("allow", list(&networks));
        }
        if rule.settings.extras != outer.extras {
            self.extras(&rule.settings.extras, rule.reply.is_none());
        }
        if let Some(reply) = &rule.reply {
            // nginx answers before it counts.
            self.rate(None, outer.rate.as_ref());
            return self.reply(reply);
        }
        if let Some(files) = &rule.files {
            self.set("files", text(&files.dir));
            if files.fallback.is_none() {
                self.set("files_only", true);
            }
            if let Some(page) = &files.spa {
                self.set("spa", text(page));
            }
            if files.precompressed {
                self.set("precompressed", true);
            }
        }
        if let Some(replace) = &rule.replace {
            self.set("replace_prefix", text(replace));
        }
        self.rate(rule.settings.rate.as_ref(), outer.rate.as_ref());
        if rule.settings.buffers != outer.buffers {
            self.set("buffer_requests", rule.settings.buffers);
        }
        self.compress(&rule.settings.gzip, &outer.gzip);
        let body = rule.settings.body.as_ref();
        if let Some(body) = body.filter(|body| Some(*body) != outer.body.as_ref()) {
            self.set("limits", format_args!("{{ body_bytes = {} }}", text(&bytes(body.value))));
        }
        let mut inner = Self(String::new());
        inner.times(&rule.settings, outer);
        let times: Vec<&str> = inner.0.lines().collect();
        if !times.is_empty() {
            self.set("timeouts", format_args!("{{ {} }}", times.join(", ")));
        }
    }
}
