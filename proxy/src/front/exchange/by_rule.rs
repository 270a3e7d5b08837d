//! What a path rule of a service answers by itself: a redirect, a fixed answer, or that the client isn't allowed.

use crate::config::{FixedAnswer, PathId, PathRedirect, PathRules, PathSettings, Reply};
use crate::front::answer::{Answer, Content};
use crate::front::client::Client;
use crate::front::preview;
use crate::observe::termination::Termination;
use uh_http1::request::RequestHead;

/// What is answered.
pub(super) enum ByRule {
    /// The client's address isn't allowed.
    NotAllowed,
    /// The fixed answer in the settings.
    Fixed,
    /// A redirect with this status.
    Redirect { status: u16, to: String },
}

/// The answer for a request by the rules of its service; `None`: the backend answers. `path` is the rule that was found;
/// it is replaced if another one keeps the client out.
pub(super) fn of<L>(
    client: &Client<L>,
    request: &RequestHead,
    rules: &PathRules,
    path: &mut PathId,
) -> Option<ByRule> {
    if !rules.answer() {
        return None;
    }
    let target = request.path.of_head(client.request_head());
    if refuses(client, request, rules.at(*path)) {
        return Some(ByRule::NotAllowed);
    }
    for other in rules.other_readings(target) {
        let settings = rules.at(other);
        if settings.restricts() {
            if refuses(client, request, settings) {
                return Some(ByRule::NotAllowed);
            }
            if settings.reply.is_some() {
                *path = other;
                break;
            }
        }
    }
    match rules.at(*path).reply.as_ref()? {
        Reply::Fixed(_) => Some(ByRule::Fixed),
        Reply::Redirect(redirect) => Some(ByRule::redirect(redirect, target)),
    }
}

/// Whether a client isn't among those that are allowed.
fn refuses<L>(client: &Client<L>, request: &RequestHead, settings: &PathSettings) -> bool {
    let Some(allowed) = &settings.allow else { return false };
    !client.source(request).is_some_and(|address| allowed.iter().any(|network| network.contains(address)))
}

impl ByRule {
    fn redirect(redirect: &PathRedirect, target: &[u8]) -> Self {
        let query = memchr::memchr(b'?', target).filter(|_| redirect.keeps_query);
        let query = query.map(|at| preview::without_tokens(&target[at..])).unwrap_or_default();
        let query = std::str::from_utf8(&query).unwrap_or_default();
        Self::Redirect { status: redirect.status, to: format!("{}{query}", redirect.to) }
    }

    /// The answer, and how it is logged. `settings`: those of the request.
    pub(super) fn answer<'a>(&'a self, settings: Option<&'a PathSettings>) -> (Answer<'a>, Termination) {
        match self {
            Self::NotAllowed => {
                let detail = "the client's address isn't allowed here";
                (Answer { status: 403, detail, ..Answer::default() }, Termination::NotAllowed)
            }
            Self::Fixed => {
                let reply = settings.and_then(|settings| settings.reply.as_ref());
                let Some(Reply::Fixed(fixed)) = reply else {
                    return (Answer { status: 404, ..Answer::default() }, Termination::FixedAnswer);
                };
                (answer(fixed), Termination::FixedAnswer)
            }
            Self::Redirect { status, to } => {
                let detail = "the page has moved to the address in Location";
                let location = Some(to.as_str());
                (Answer { status: *status, detail, location, ..Answer::default() }, Termination::Redirect)
            }
        }
    }
}

/// An error without a body is explained by a page, as other errors are.
fn answer(fixed: &FixedAnswer) -> Answer<'_> {
    let media_type = &fixed.content_type;
    let content = match &fixed.body {
        Some(text) => Some(Content { media_type, text }),
        None if fixed.status < 400 => Some(Content { media_type, text: "" }),
        None => None,
    };
    Answer { status: fixed.status, detail: "this is the answer for this path", content, ..Answer::default() }
}
