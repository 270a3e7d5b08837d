//! `POST /v1/services/{s}/maintenance`: check → swap → persist → reply, and one audit line.

use jiff::Timestamp;
use uh_protocol::request::{Maintained, MaintenanceRequest};
use uh_protocol::{Code, Problem, ServiceName};
use uh_switching::Maintenance;

use super::audit::{Audit, Changed, Did, Wait};
use super::control::{Control, internal};
use super::socket::Peer;
use super::status::maintenance_status;

/// The default maintenance message.
const MESSAGE: &str = "We are working on this service. It will be back soon.";

/// The default of `Retry-After`, in seconds.
const RETRY_AFTER_S: u32 = 300;

/// The longest message, in characters: it is sent with every answer.
const MAX_MESSAGE_CHARS: usize = 1000;

/// The largest `Retry-After`, in seconds: a week.
const MAX_RETRY_AFTER_S: u32 = 7 * 24 * 60 * 60;

impl Control {
    /// Turns maintenance on or off.
    ///
    /// # Errors
    /// If refused; nothing has changed then.
    pub(crate) async fn maintenance(
        &self,
        service: &str,
        request: MaintenanceRequest,
        peer: Peer,
    ) -> Result<Maintained, Problem> {
        let wanted = wanted(request)?;
        let set = self.board.set_maintenance(service, wanted);
        let audit = Audit::new(peer, "maintenance", service);
        let (now, changed) = set.map_err(|refusal| self.refuse(audit, &refusal))?;
        let service: ServiceName = service.parse().map_err(|_| internal("the service name isn't valid"))?;
        let did = Did {
            changed: Changed::Whether(changed),
            on: Some(now.is_some()),
            message: now.as_ref().map(|now| now.message.as_str()),
            retry_after_s: now.as_ref().map(|now| now.retry_after_s),
            ..Did::default()
        };
        let persisted = self.settle(Wait::after(changed), audit, did).await;
        Ok(Maintained {
            service,
            on: now.is_some(),
            changed,
            details: now.as_deref().map(maintenance_status),
            persisted: persisted.is_ok(),
            persist_error: persisted.error(),
        })
    }
}

/// The requested maintenance; `None`: turn it off.
fn wanted(request: MaintenanceRequest) -> Result<Option<Maintenance>, Problem> {
    let invalid = |detail: String| Err(Problem::with_status(Code::InvalidRequest, 422, detail));
    let MaintenanceRequest { on, message, retry_after_s } = request;
    if !on && (message.is_some() || retry_after_s.is_some()) {
        return invalid("message and retry_after_s are only valid when turning maintenance on".to_owned());
    }
    let message = message.unwrap_or_else(|| MESSAGE.to_owned());
    let odd = |c: char| c.is_control() && c != '\n' && c != '\t';
    if message.trim().is_empty() || message.chars().count() > MAX_MESSAGE_CHARS || message.contains(odd) {
        return invalid(format!(
            "message: use 1 to {MAX_MESSAGE_CHARS} characters and no control characters"
        ));
    }
    let retry_after_s = retry_after_s.unwrap_or(RETRY_AFTER_S);
    if !(1..=MAX_RETRY_AFTER_S).contains(&retry_after_s) {
        return invalid(format!("retry_after_s: use 1 to {MAX_RETRY_AFTER_S}"));
    }
    Ok(on.then(|| Maintenance { message, retry_after_s, since: Timestamp::now() }))
}
