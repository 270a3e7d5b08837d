//! `POST /v1/services/{s}/preview`: check → sign → reply, and one audit line. Nothing is stored, so nothing changes.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use uh_protocol::request::{
    MAX_PREVIEW_TTL_MS, MIN_PREVIEW_TTL_MS, PREVIEW_TTL_MS, PreviewReply, PreviewRequest, preview_link,
};
use uh_protocol::{Code, Problem};

use super::audit::{Audit, Changed, Did, Wait};
use super::control::{Control, internal};
use super::socket::Peer;
use crate::config::Service;
use crate::front::preview_token;
use crate::front::settings::HTTPS_PORT;
use crate::state::time::iso_millis;

/// The port of HTTP where none is named.
const HTTP_PORT: &str = "80";

impl Control {
    /// Makes a link by which its holder looks at a standby.
    ///
    /// # Errors
    /// If refused.
    pub(crate) async fn preview(
        &self,
        service: &str,
        request: PreviewRequest,
        peer: Peer,
    ) -> Result<PreviewReply, Problem> {
        let backend = request.to;
        let audit = Audit { to: Some(&backend), ..Audit::new(peer, "preview", service) };
        let refused = |problem: Problem| {
            audit.refused(&problem);
            problem
        };
        let until = until(request.ttl_ms).map_err(refused)?;
        let service =
            self.board.try_preview(service, &backend).map_err(|refusal| self.refuse(audit, &refusal))?;
        let cookies = Arc::clone(&self.cookies);
        // It may write the key.
        let kept = tokio::task::spawn_blocking(move || {
            cookies.prepare();
            cookies.demand_kept()
        });
        if let Ok(Err(error)) = kept.await {
            let detail = format!(
                "can't keep the key that signs links, so a link would end with the next restart of uh-proxy; no link was made: {error}"
            );
            return Err(refused(internal(&detail)));
        }
        let second = u64::try_from(until.as_second()).unwrap_or_default();
        let token = preview_token::issue(&self.cookies, &service, &backend, second);
        let token = token.ok_or_else(|| refused(internal("the system has no random numbers for a key")))?;
        let until = iso_millis(until);
        let did = Did { changed: Changed::Whether(false), until: Some(&until), ..Did::default() };
        self.settle(Wait::Nothing, audit, did).await;
        let link = self.address(&service).map(|address| preview_link(&address, &token));
        Ok(PreviewReply { service: service.name.clone(), backend, token, until, link })
    }

    /// An address of a service at which previews work, as far as it is known from here.
    fn address(&self, service: &Service) -> Option<String> {
        let own = service.preview.hosts.iter().chain(service.served_hosts());
        let host = own.into_iter().find(|host| !host.starts_with('*'))?;
        let path = &service.path_prefix;
        if self.tls.is_some() {
            let port = self.reloading.settings.first().map_or(HTTPS_PORT, |cell| cell.load().redirect_port());
            let port = if port == HTTPS_PORT { String::new() } else { format!(":{port}") };
            return Some(format!("https://{host}{port}{path}"));
        }
        let port = self.listen.first().and_then(|address| address.rsplit_once(':')).map(|(_, port)| port);
        let port = port.filter(|port| *port != HTTP_PORT).map(|port| format!(":{port}")).unwrap_or_default();
        Some(format!("http://{host}{port}{path}"))
    }
}

/// When a link ends: at a whole second.
fn until(ttl_ms: Option<u64>) -> Result<Timestamp, Problem> {
    let ttl_ms = ttl_ms.unwrap_or(PREVIEW_TTL_MS);
    if !(MIN_PREVIEW_TTL_MS..=MAX_PREVIEW_TTL_MS).contains(&ttl_ms) {
        let detail =
            format!("ttl_ms is {ttl_ms}: use {MIN_PREVIEW_TTL_MS} to {MAX_PREVIEW_TTL_MS}, which is a week");
        return Err(Problem::with_status(Code::InvalidRequest, 422, detail));
    }
    let until = SystemTime::now() + Duration::from_millis(ttl_ms);
    let until = Timestamp::try_from(until).map_err(|_| internal("the system's clock is out of range"))?;
    // Not earlier than was asked for.
    let second = until.as_second() + i64::from(until.subsec_nanosecond() > 0);
    Timestamp::from_second(second).map_err(|_| internal("the system's clock is out of range"))
}
