//! Where uh-proxy's defaults differ from nginx's, if nginx's configuration relies on them.

use super::{Service, Site};
use crate::import::nginx::Settings;
use crate::import::read::Keys;

impl Site {
    /// One line for each.
    pub(in crate::import) fn defaults(&self, keys: &Keys) -> Vec<String> {
        let unset = |is: fn(&Settings) -> bool| self.services.iter().any(|service| is(&service.settings));
        let lines = [
            (
                unset(|settings| settings.body.is_none()),
                "client_max_body_size: nginx allows 1m, `limits.body_bytes` 1GiB",
            ),
            (
                unset(|settings| settings.connect.is_none()),
                "proxy_connect_timeout: nginx waits 60s, `timeouts.connect` is 2s",
            ),
            (
                unset(|settings| !settings.buffers),
                "proxy_request_buffering: nginx reads a request before it asks the app, uh-proxy streams it (`buffer_requests`)",
            ),
            (
                unset(|Settings { gzip, .. }| gzip.on && (gzip.min_bytes.is_none() || gzip.level.is_none())),
                "gzip: nginx compresses from 20 bytes on and at level 1, `compress` from 1KiB on and at level 6",
            ),
            (
                keys.header_timeout.is_none(),
                "client_header_timeout: nginx waits 60s, `server.limits.header_timeout` is 15s",
            ),
            (
                keys.access_log.is_none(),
                "access_log: nginx writes a file, uh-proxy JSON to standard output (`server.access_log`)",
            ),
            (
                self.services.iter().all(|service| !service.hosts.is_empty()),
                "server_name: nginx serves unknown hosts from its first server, uh-proxy answers 404",
            ),
            (
                self.redirect || self.services.iter().any(|service| !service.redirect_hosts.is_empty()),
                "return: redirects have the status 308, which keeps the method",
            ),
            (
                self.services.iter().any(|service| service.prefix != "/" || !service.rules.is_empty()),
                "location: a prefix ends at a slash, so /api is not a prefix of /apis",
            ),
        ];
        lines.into_iter().filter(|(differs, _)| *differs).map(|(_, line)| line.to_owned()).collect()
    }
}

impl Service {
    /// How long connections to the app are kept.
    pub(in crate::import) fn idle(&self) -> Option<std::time::Duration> {
        self.backends.idle
    }
}
