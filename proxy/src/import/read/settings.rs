//! Settings that servers and locations inherit.

use std::time::Duration;

use super::{Hsts, Reader};
use crate::import::ledger::Scope;
use crate::import::nginx::{Set, Settings};
use crate::import::syntax::Directive;
use crate::import::table::{self, Class};
use crate::import::values::{size, time};

/// The bounds of uh-proxy's timeouts.
const TIMEOUT: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(24 * 60 * 60));

/// Fields that uh-proxy always sends to the app.
const SENT: [&str; 6] = [
    "x-real-ip",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-prefix",
];

impl Reader {
    /// A directive that may stand in `http`, a server or a location.
    pub(super) fn setting(&mut self, directive: &Directive, settings: &mut Settings, scope: Scope) {
        match directive.name.as_str() {
            "proxy_connect_timeout" => self.timeout(directive, &mut settings.connect, scope),
            "proxy_read_timeout" => self.timeout(directive, &mut settings.read, scope),
            "proxy_send_timeout" => self.timeout(directive, &mut settings.send, scope),
            "client_body_timeout" | "send_timeout" => {
                let mut new = None;
                self.timeout(directive, &mut new, scope);
                let longer =
                    |new: &Set<Duration>| settings.client.as_ref().is_none_or(|old| old.value < new.value);
                if new.as_ref().is_some_and(longer) {
                    settings.client = new;
                }
            }
            "client_max_body_size" => match size(directive.arg(0)) {
                Some(value) => {
                    settings.body = Some(Set { value, id: directive.id });
                    self.ledger.carried(directive, scope);
                }
                None => self.ledger.changes(directive, scope, "not a size; the limit is 1 GiB"),
            },
            "access_log" if directive.arg(0) == "off" && scope != Scope::Main => {
                settings.extras.unlogged = true;
                self.ledger.carried(directive, scope);
            }
            "access_log" => {
                settings.extras.unlogged = false;
                self.access_log(directive, scope);
            }
            "proxy_set_header" => self.request_header(directive, settings, scope),
            "proxy_hide_header" => self.hidden_header(directive, settings, scope),
            "add_header" => self.response_header(directive, settings, scope),
            "real_ip_header" => self.real_ip_header(directive, scope),
            "proxy_redirect" => {
                let class = if matches!(directive.arg(0), "off" | "default") {
                    Class::NotNeeded
                } else {
                    Class::Changes
                };
                self.ledger.by_table(directive, class, scope);
            }
            "auth_basic"
            | "proxy_cache"
            | "proxy_intercept_errors"
            | "ssl_verify_client"
            | "auth_request"
            | "sub_filter"
                if directive.arg(0) == "off" =>
            {
                self.ledger.set(directive.id, Class::NotNeeded, scope, "off");
            }
            "proxy_request_buffering" => {
                settings.buffers = directive.arg(0) == "on";
                let class = if settings.buffers { Class::Look } else { Class::NotNeeded };
                self.ledger.by_table(directive, class, scope);
            }
            "gzip" | "gzip_types" | "gzip_min_length" | "gzip_comp_level" => {
                self.gzip(directive, &mut settings.gzip, scope);
            }
            "root" | "alias" | "try_files" | "index" | "autoindex" | "gzip_static" | "brotli_static" => {
                self.file_setting(directive, &mut settings.files, scope);
            }
            "expires" => self.expires(directive, &mut settings.extras, scope),
            "allow" | "deny" => self.access(directive, &mut settings.extras, scope),
            "limit_req" => self.limit_req(directive, &mut settings.rate, scope),
            "keepalive_timeout" if directive.arg(0) == "0" => {
                self.ledger.look(
                    directive,
                    scope,
                    "connections are kept open for `server.limits.idle_timeout`",
                );
            }
            _ => {
                if self.key(directive, scope).is_none() {
                    self.ledger.rest(directive, scope);
                }
            }
        }
    }

    fn timeout(&mut self, directive: &Directive, slot: &mut Option<Set<Duration>>, scope: Scope) {
        let (low, high) = TIMEOUT;
        match time(directive.arg(0)) {
            Some(value) if (low..=high).contains(&value) => {
                *slot = Some(Set { value, id: directive.id });
                self.ledger.carried(directive, scope);
            }
            Some(value) => {
                *slot = Some(Set { value: value.clamp(low, high), id: directive.id });
                self.ledger.look(directive, scope, "timeouts are 1ms to 24h; the nearest is used");
            }
            None => self.ledger.changes(directive, scope, "not a time; uh-proxy's default applies"),
        }
    }

    fn request_header(&mut self, directive: &Directive, settings: &mut Settings, scope: Scope) {
        let name = directive.arg(0).to_ascii_lowercase();
        let value = directive.arg(1);
        match name.as_str() {
            "host" if matches!(value, "$host" | "$http_host" | "$host:$server_port" | "$server_name") => {
                settings.keeps_host = true;
                self.ledger.by_table(directive, Class::NotNeeded, scope);
            }
            "host" => {
                settings.keeps_host = true;
                self.ledger.changes(directive, scope, "the app gets the client's `Host`");
            }
            "upgrade" | "connection" => {
                settings.upgrade |= name == "upgrade";
                self.ledger.set(
                    directive.id,
                    Class::NotNeeded,
                    scope,
                    "WebSockets work without configuration, and connections are kept",
                );
            }
            "x-forwarded-proto" if !value.contains('$') => {
                self.ledger.look(directive, scope, "`https` is sent for HTTPS, and what a proxy in `server.trusted_proxies` says; list the load balancer there");
            }
            "x-request-start" => self.switch("request_start = true", directive, scope),
            "forwarded" => self.switch("forwarded = true", directive, scope),
            "x-forwarded-server" | "proxy" => {
                self.ledger.set(directive.id, Class::NotNeeded, scope, "apps don't need it behind uh-proxy");
            }
            "x-request-id" if matches!(value, "$request_id" | "$http_x_request_id") => {
                self.ledger.set(directive.id, Class::NotNeeded, scope, "sent without configuration");
            }
            name if SENT.contains(&name) => {
                let why = "sent without configuration; see docs/http-semantics.md, What reaches the app";
                self.ledger.set(directive.id, Class::NotNeeded, scope, why);
            }
            _ => self.sent_field(directive, &mut settings.extras, scope),
        }
    }

    /// A key of `[server.headers]`.
    fn switch(&mut self, key: &'static str, directive: &Directive, scope: Scope) {
        if !self.keys.headers.contains(&key) {
            self.keys.headers.push(key);
        }
        self.ledger.carried(directive, scope);
    }

    fn hidden_header(&mut self, directive: &Directive, settings: &mut Settings, scope: Scope) {
        if directive.arg(0).eq_ignore_ascii_case("server") {
            self.switch("server = \"drop\"", directive, scope);
        } else {
            self.removed_field(directive, &mut settings.extras, scope);
        }
    }

    fn response_header(&mut self, directive: &Directive, settings: &mut Settings, scope: Scope) {
        let (name, value) = (directive.arg(0), directive.arg(1));
        if !name.eq_ignore_ascii_case("strict-transport-security") {
            return self.added_field(directive, &mut settings.extras, scope);
        }
        match Hsts::parse(value) {
            Some(hsts) => {
                let first = self.keys.hsts.get_or_insert_with(|| hsts.clone());
                if *first == hsts {
                    self.keys.hsts_ids.push((directive.id, scope));
                    self.ledger.carried(directive, scope);
                } else {
                    self.ledger.look(
                        directive,
                        scope,
                        "`server.tls.hsts` is the same for all services; another value was found first",
                    );
                }
            }
            None => self.ledger.changes(
                directive,
                scope,
                "`server.tls.hsts` can't be this value; see docs/tls.md, HSTS",
            ),
        }
    }

    fn real_ip_header(&mut self, directive: &Directive, scope: Scope) {
        let name = directive.arg(0).to_ascii_lowercase();
        match name.as_str() {
            "proxy_protocol" | "x-forwarded-for" => self.ledger.by_table(directive, Class::NotNeeded, scope),
            _ => {
                self.ledger.set(
                    directive.id,
                    Class::Look,
                    scope,
                    table::words("real_ip_header", Class::Look),
                );
            }
        }
    }
}
