//! The configuration as TOML, with a comment for everything that wasn't carried over.

mod rules;

use std::fmt::Write as _;
use std::time::Duration;

use super::ledger::{Note, Scope};
use super::nginx::{Gzip, Set, Settings};
use super::plan::{Service, Site, Spot};
use super::read::{Hsts, Keys};
use super::table::Class;
use super::values::{bytes, duration};
use crate::config::Sticky;

/// Characters of a comment's line.
const WIDTH: usize = 110;

/// The whole file.
pub(super) fn write(name: &str, keys: &Keys, site: &Site, notes: &[Note], defaults: &[String]) -> String {
    let mut out = Text(String::new());
    out.comment(&format!("Imported from {name}. Check it with: uh-proxy check --config FILE"));
    if !defaults.is_empty() {
        out.comment("Where uh-proxy's defaults differ from nginx's:");
        defaults.iter().for_each(|line| out.comment(&format!("- {line}")));
    }
    site.hints.iter().for_each(|hint| out.comment(hint));
    out.server(keys, site, notes);
    for (at, service) in site.services.iter().enumerate() {
        out.service(service);
        out.notes(site, notes, Some(Spot::Service(at)));
        out.service_tables(service, at == 0);
        for (number, rule) in service.rules.iter().enumerate() {
            out.rule(&service.name, rule, &service.settings);
            out.notes(site, notes, Some(Spot::Rule(at, number)));
        }
    }
    out.0
}

/// A basic string of TOML.
fn text(value: &str) -> String {
    let mut text = String::from("\"");
    for c in value.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(text, "\\u{:04x}", c as u32);
            }
            c => text.push(c),
        }
    }
    text + "\""
}

fn list(values: &[String]) -> String {
    let values: Vec<String> = values.iter().map(|value| text(value)).collect();
    format!("[{}]", values.join(", "))
}

fn hsts(hsts: &Hsts) -> String {
    let mut line = format!("{{ max_age = {}", text(&duration(hsts.max_age)));
    for (key, on) in [("include_subdomains", hsts.include_subdomains), ("preload", hsts.preload)] {
        if on {
            let _ = write!(line, ", {key} = true");
        }
    }
    line + " }"
}

struct Text(String);

impl Text {
    fn line(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }

    fn set(&mut self, key: &str, value: impl std::fmt::Display) {
        self.line(&format!("{key} = {value}"));
    }

    fn table(&mut self, name: &str) {
        self.line(&format!("\n[{name}]"));
    }

    /// A comment, wrapped.
    fn comment(&mut self, comment: &str) {
        let mut line = String::from("#");
        for word in
            comment.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty())
        {
            if line.len() > 1 && line.chars().count() + word.chars().count() > WIDTH {
                self.line(&line);
                line = String::from("#  ");
            }
            line.push(' ');
            line.push_str(word);
        }
        self.line(&line);
    }

    /// What is to say at this place; `None`: in `[server]`.
    fn notes(&mut self, site: &Site, notes: &[Note], spot: Option<Spot>) {
        let spot_of = |scope: Scope| site.spots.get(&scope).copied();
        let here = |note: &&Note| spot_of(note.scope) == spot && note.class != Class::Carried;
        let needless: Vec<String> = notes
            .iter()
            .filter(here)
            .filter(|note| note.class == Class::NotNeeded)
            .map(|note| format!("{} ({})", note.directive, note.place))
            .collect();
        for note in notes.iter().filter(here).filter(|note| note.class != Class::NotNeeded) {
            self.comment(&note.to_string());
        }
        if !needless.is_empty() {
            self.comment(&format!("not needed: {}", needless.join(", ")));
        }
    }

    fn server(&mut self, keys: &Keys, site: &Site, notes: &[Note]) {
        self.table("server");
        for (key, addresses) in [("listen", &keys.listen), ("listen_tls", &keys.listen_tls)] {
            if !addresses.is_empty() {
                self.set(key, list(addresses));
            }
        }
        if let Some(threads) = keys.threads {
            self.set("threads", threads);
        }
        if let Some(log) = &keys.access_log {
            self.set(
                "access_log",
                format_args!("{{ path = {}, format = {} }}", text(&log.path), text(log.format)),
            );
        }
        if !keys.trusted.is_empty() {
            let key = if !keys.proxy_protocol.is_empty() { "proxy_protocol_from" } else { "trusted_proxies" };
            self.set(key, list(&keys.trusted));
        }
        self.notes(site, notes, None);
        if !keys.headers.is_empty() {
            self.table("server.headers");
            keys.headers.iter().for_each(|line| self.line(line));
        }
        let times = [("idle_timeout", keys.idle_timeout), ("header_timeout", keys.header_timeout)];
        let numbers =
            [("requests_per_connection", keys.requests_per_connection), ("h2_streams", keys.h2_streams)];
        let limits = times.iter().any(|(_, time)| time.is_some())
            || numbers.iter().any(|(_, number)| number.is_some());
        if limits || keys.header_bytes.is_some() {
            self.table("server.limits");
            times.iter().for_each(|(key, time)| self.time(key, *time));
            for (key, number) in numbers {
                if let Some(number) = number {
                    self.set(key, number);
                }
            }
            if let Some(size) = keys.header_bytes {
                self.set("header_bytes", text(&bytes(size)));
            }
        }
        if !keys.listen_tls.is_empty() {
            self.tls(keys, site);
        }
    }

    fn tls(&mut self, keys: &Keys, site: &Site) {
        self.table("server.tls");
        let pair =
            |(cert, key): &(String, String)| format!("{{ cert = {}, key = {} }}", text(cert), text(key));
        let pairs: Vec<String> = keys.certificates.iter().map(pair).collect();
        self.set("certificates", format_args!("[{}]", pairs.join(", ")));
        if keys.only_tls13 == Some(true) {
            self.set("min_version", "\"1.3\"");
        }
        if site.redirect {
            self.set("redirect", true);
        }
        if let Some(value) = &keys.hsts {
            self.set("hsts", hsts(value));
        }
    }

    fn service(&mut self, service: &Service) {
        self.table(&format!("services.{}", service.name));
        for (key, hosts) in [("hosts", &service.hosts), ("redirect_hosts", &service.redirect_hosts)] {
            if !hosts.is_empty() {
                self.set(key, list(hosts));
            }
        }
        if let Some(redirect) = service.redirect_https {
            self.set("redirect_https", redirect);
        }
        if service.prefix != "/" {
            self.set("path_prefix", text(&service.prefix));
        }
        if service.strip {
            self.set("strip_prefix", true);
        }
        let active = service.backends.list.first().map_or("blue", |(name, _)| name);
        self.set("active", text(active));
        self.rate(service.settings.rate.as_ref(), None);
        match &service.backends.sticky {
            Some(Sticky::Address) => self.set("sticky", "{ by = \"address\" }"),
            Some(Sticky::Cookie(name)) => {
                self.set("sticky", format_args!("{{ by = \"cookie\", cookie = {} }}", text(name)));
            }
            None => {}
        }
        if service.settings.buffers {
            self.set("buffer_requests", true);
        }
        self.compress(&service.settings.gzip, &Gzip::default());
        self.extras(&service.settings.extras, true);
        service.hints.iter().for_each(|hint| self.comment(hint));
    }

    fn service_tables(&mut self, service: &Service, is_first: bool) {
        let name = &service.name;
        for (backend, endpoints) in &service.backends.list {
            self.table(&format!("services.{name}.backends.{backend}"));
            self.set("endpoints", list(endpoints));
        }
        if let [(only, _)] = service.backends.list.as_slice()
            && is_first
        {
            let other = if *only == "blue" { "green" } else { "blue" };
            self.comment(
                "To deploy without downtime, start the new version on another address, add it, and switch:",
            );
            self.line(&format!("# [services.{name}.backends.{other}]\n# endpoints = [\"127.0.0.1:3001\"]"));
        }
        self.table(&format!("services.{name}.health"));
        match &service.health {
            Some(path) => self.set("path", text(path)),
            None => {
                self.line("# A path that the app answers with 2xx if it works:\n# path = \"/api/health\"");
            }
        }
        self.timeouts(&format!("services.{name}"), &service.settings, &Settings::default(), service.idle());
        if let Some(body) = &service.settings.body {
            self.table(&format!("services.{name}.limits"));
            self.set("body_bytes", text(&bytes(body.value)));
        }
    }

    fn timeouts(&mut self, table: &str, settings: &Settings, outer: &Settings, idle: Option<Duration>) {
        let mut inner = Self(String::new());
        inner.time("connect", settings.connect.as_ref().map(|set| set.value));
        inner.times(settings, outer);
        inner.time("idle", idle);
        if !inner.0.is_empty() {
            self.table(&format!("{table}.timeouts"));
            self.0.push_str(&inner.0);
        }
    }

    /// Those that a path rule can have too, if they differ.
    fn times(&mut self, settings: &Settings, outer: &Settings) {
        let differs = |new: &Option<Set<Duration>>, old: &Option<Set<Duration>>| {
            new.as_ref().filter(|new| old.as_ref() != Some(*new)).map(|set| set.value)
        };
        let read = differs(&settings.read, &outer.read);
        self.time("read", read);
        if settings.upgrade {
            self.time(
                "tunnel_idle",
                settings.read.as_ref().filter(|_| read.is_some() || !outer.upgrade).map(|set| set.value),
            );
        }
        self.time("write", differs(&settings.send, &outer.send));
        self.time("client", differs(&settings.client, &outer.client));
    }

    fn time(&mut self, key: &str, time: Option<Duration>) {
        if let Some(time) = time {
            self.set(key, text(&duration(time)));
        }
    }
}
