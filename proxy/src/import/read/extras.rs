//! Settings of path rules: fields, access and rates.

use uh_http1::edits::{Edit, folded_name};

use super::Reader;
use super::keys::network;
use crate::config::{EditsOf, Quota, edit_mistake};
use crate::import::ledger::Scope;
use crate::import::nginx::{Extras, Rate, Set, Settings};
use crate::import::syntax::Directive;
use crate::import::table::Class;
use crate::import::values::time;

/// The most fields that requests or responses get.
const MAX_FIELDS: usize = 16;

/// The bounds of `rate`.
const MAX_BURST: u32 = 1_000_000;

/// Fields that may be sent more than once: nginx adds to the app's, where uh-proxy would replace them.
const ADDED: [&str; 6] = ["set-cookie", "vary", "link", "server-timing", "www-authenticate", "warning"];

/// nginx sets these fields only for a success.
const CACHED: &str = "set for errors too, and instead of the app's: leave it out if errors must not be cached, or if the app's is better";

/// Whether a field can be edited so.
fn fits(name: &str, edit: &Edit, of: EditsOf) -> bool {
    // Where responses are compressed, uh-proxy sets it.
    let is_coding = of == EditsOf::Responses && name.eq_ignore_ascii_case("content-encoding");
    !is_coding && edit_mistake(name, edit, of).is_none()
}

/// What applies within a block: nginx inherits these lists only if the block has none of its own.
pub(super) fn inherited(outer: &Settings, directives: &[Directive]) -> Settings {
    let has = |names: &[&str]| directives.iter().any(|directive| names.contains(&directive.name.as_str()));
    let mut settings = outer.clone();
    (settings.files.tries, settings.files.alias) = (None, None);
    if has(&["add_header"]) {
        settings.extras.response.clear();
    }
    if has(&["proxy_hide_header"]) {
        settings.extras.hidden.clear();
    }
    if has(&["proxy_set_header"]) {
        settings.extras.request.clear();
        settings.keeps_host = false;
        settings.upgrade = false;
    }
    if has(&["allow", "deny"]) {
        settings.extras.allow.clear();
        settings.extras.denies = None;
        settings.extras.is_open = false;
    }
    if has(&["limit_req"]) {
        settings.rate = None;
    }
    settings
}

impl Reader {
    /// `add_header`, except `Strict-Transport-Security`.
    pub(super) fn added_field(&mut self, directive: &Directive, extras: &mut Extras, scope: Scope) {
        let (name, value) = (directive.arg(0), directive.arg(1));
        let lower = name.to_ascii_lowercase();
        if lower == "x-request-id" && value == "$request_id" {
            return self.ledger.set(directive.id, Class::NotNeeded, scope, "sent without configuration");
        }
        // nginx leaves out fields without a value.
        if value.is_empty() {
            return self.ledger.carried(directive, scope);
        }
        if value.contains('$') {
            return self.ledger.by_table(directive, Class::Changes, scope);
        }
        if ADDED.contains(&lower.as_str()) {
            let why = "nginx adds it to the app's fields, `response_headers` would replace them; send it from the app";
            return self.ledger.changes(directive, scope, why);
        }
        let edit = Edit::Set(value.to_owned());
        if !fits(name, &edit, EditsOf::Responses) || extras.response.len() == MAX_FIELDS {
            let why = "uh-proxy can't set this field to this value; set it in the app";
            return self.ledger.changes(directive, scope, why);
        }
        extras.response.push(Set { value: (name.to_owned(), value.to_owned()), id: directive.id });
        if directive.arg(2) != "always" && matches!(lower.as_str(), "cache-control" | "expires") {
            self.ledger.look(directive, scope, CACHED);
        } else {
            self.ledger.carried(directive, scope);
        }
    }

    /// `proxy_set_header`, except those that uh-proxy sends by itself.
    pub(super) fn sent_field(&mut self, directive: &Directive, extras: &mut Extras, scope: Scope) {
        let (name, value) = (directive.arg(0), directive.arg(1));
        if value.contains('$') {
            return self.ledger.by_table(directive, Class::Changes, scope);
        }
        let edit = if value.is_empty() { Edit::Remove } else { Edit::Set(value.to_owned()) };
        let alike = |other: &Set<(String, String)>| {
            folded_name(&other.value.0) == folded_name(name) && !other.value.0.eq_ignore_ascii_case(name)
        };
        let full = extras.request.len() == MAX_FIELDS || extras.request.iter().any(alike);
        if full || !fits(name, &edit, EditsOf::Requests) {
            return self.ledger.changes(directive, scope, "uh-proxy can't set this field to this value");
        }
        self.ledger.carried(directive, scope);
        extras.request.push(Set { value: (name.to_owned(), value.to_owned()), id: directive.id });
    }

    /// `proxy_hide_header`, except `Server`.
    pub(super) fn removed_field(&mut self, directive: &Directive, extras: &mut Extras, scope: Scope) {
        let name = directive.arg(0);
        if !fits(name, &Edit::Remove, EditsOf::Responses) || extras.hidden.len() == MAX_FIELDS {
            return self.ledger.by_table(directive, Class::Changes, scope);
        }
        self.ledger.carried(directive, scope);
        extras.hidden.push(Set { value: name.to_owned(), id: directive.id });
    }

    /// `expires`, as `Cache-Control`.
    pub(super) fn expires(&mut self, directive: &Directive, extras: &mut Extras, scope: Scope) {
        let value = match (directive.arg(0), directive.args.len()) {
            ("off", 1) => {
                extras.cache = None;
                return self.ledger.set(directive.id, Class::NotNeeded, scope, "off");
            }
            ("epoch", 1) => Some("no-cache".to_owned()),
            ("max", 1) => Some("max-age=315360000".to_owned()),
            (text, 1) if text.starts_with('-') => time(&text[1..]).map(|_| "no-cache".to_owned()),
            (text, 1) => time(text).map(|age| format!("max-age={}", age.as_secs())),
            _ => None,
        };
        match value {
            Some(value) => {
                self.ledger.look(directive, scope, CACHED);
                extras.cache = Some(Set { value, id: directive.id });
            }
            None => self.ledger.by_table(directive, Class::Changes, scope),
        }
    }

    /// `allow` and `deny`: addresses, and then nobody else.
    pub(super) fn access(&mut self, directive: &Directive, extras: &mut Extras, scope: Scope) {
        let who = directive.arg(0);
        let network = network(who);
        let fine = match (directive.name.as_str(), who, network) {
            _ if extras.is_open => {
                let why = "everybody is allowed before";
                return self.ledger.set(directive.id, Class::NotNeeded, scope, why);
            }
            ("allow", _, Some(network)) if extras.denies.is_none() => {
                extras.allow.push(Set { value: network, id: directive.id });
                true
            }
            ("deny", "all", _) if extras.denies.is_none() => {
                extras.denies = Some(Set { value: (), id: directive.id });
                true
            }
            ("allow", "all", _) if extras.denies.is_none() => {
                extras.allow.clear();
                extras.is_open = true;
                true
            }
            _ => false,
        };
        if fine {
            self.ledger.carried(directive, scope);
        } else {
            self.ledger.by_table(directive, Class::Changes, scope);
        }
    }

    /// Remembers a `limit_req_zone` that counts by client address.
    pub(super) fn limit_req_zone(&mut self, directive: &Directive) {
        let value = |name: &str| directive.args.iter().find_map(|arg| arg.strip_prefix(name));
        let zone = value("zone=").and_then(|zone| zone.split(':').next());
        let rate = value("rate=").and_then(|rate| {
            let (number, by_second) = rate
                .strip_suffix("r/s")
                .map(|n| (n, true))
                .or_else(|| rate.strip_suffix("r/m").map(|n| (n, false)))?;
            let most = if by_second { 10_000 } else { 600_000 };
            let requests = number.parse().ok().filter(|requests| (1..=most).contains(requests))?;
            Some(Rate { requests, by_second, burst: 0, zone: directive.id })
        });
        let by_client = matches!(directive.arg(0), "$binary_remote_addr" | "$remote_addr");
        match (zone, rate) {
            (Some(zone), Some(rate)) if by_client => {
                self.zones.insert(zone.to_owned(), rate);
                self.ledger.carried(directive, Scope::Main);
            }
            _ => self.ledger.by_table(directive, Class::Changes, Scope::Main),
        }
    }

    /// `limit_req`
    pub(super) fn limit_req(&mut self, directive: &Directive, slot: &mut Option<Set<Rate>>, scope: Scope) {
        let value = |name: &str| directive.args.iter().find_map(|arg| arg.strip_prefix(name));
        let rate = value("zone=").and_then(|zone| self.zones.get(zone).copied());
        let burst =
            value("burst=").map_or(Some(0), |burst| burst.parse().ok().filter(|burst| *burst <= MAX_BURST));
        let (Some(rate), Some(burst)) = (rate, burst) else {
            return self.ledger.changes(directive, scope, "its zone wasn't carried over");
        };
        // The longest time between two requests that a limit with this rate has.
        let interval_us = if rate.by_second { 1_000_000 } else { 60_000_000 } / u64::from(rate.requests) + 1;
        if slot.is_some() || Quota::new(interval_us, burst).is_none() {
            return self.ledger.changes(
                directive,
                scope,
                "a path has one limit, whose burst is regained within a day",
            );
        }
        *slot = Some(Set { value: Rate { burst, ..rate }, id: directive.id });
        if burst > 0 && !directive.args.iter().any(|arg| arg == "nodelay") {
            self.ledger.look(directive, scope, "requests within the burst aren't delayed");
        } else {
            self.ledger.carried(directive, scope);
        }
    }
}
