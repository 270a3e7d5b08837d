//! `answer` and `redirect`: what uh-proxy answers by itself.

use hyper::StatusCode;
use hyper::header::HeaderValue;
use uh_settings::Section;

/// The longest body of a fixed answer: a `robots.txt`, a small page. It is kept in memory.
const MAX_BODY_BYTES: usize = 64 << 10;

/// What uh-proxy answers by itself. No backend is involved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Always the same.
    Fixed(FixedAnswer),
    /// To another address.
    Redirect(PathRedirect),
}

/// A fixed answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FixedAnswer {
    /// Its status: a success or an error.
    pub status: u16,
    /// Its body; `None`: none for a success, and the page for an error.
    pub body: Option<String>,
    /// The body's type.
    pub content_type: String,
}

/// A redirect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathRedirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// An absolute path or an `https` URL.
    pub to: String,
    /// Whether the request's query is appended.
    pub keeps_query: bool,
}

/// Reads the reply of a rule, if it has one.
pub(super) fn reply(rule: &mut Section) -> Option<Reply> {
    let (answers, redirects) = (rule.has("answer"), rule.has("redirect"));
    if answers && redirects {
        rule.mistake("redirect", "the rule has an answer too: leave out one of them");
    }
    let answer = fixed(&mut rule.section("answer"));
    let redirect = redirect(&mut rule.section("redirect"), redirects);
    if answers { Some(Reply::Fixed(answer)) } else { redirect.map(Reply::Redirect) }
}

fn fixed(section: &mut Section) -> FixedAnswer {
    let status = section.integer("status", 200, (200, 599));
    let body = section.text("body");
    let has_type = section.has("content_type");
    let content_type = section.text("content_type").unwrap_or_else(|| "text/plain; charset=utf-8".to_owned());
    if (300..400).contains(&status) {
        section.mistake("status", format!("{status} isn't an answer: use redirect"));
    }
    if body.as_ref().is_some_and(|body| body.len() > MAX_BODY_BYTES) {
        section.mistake("body", "longer than 64 KiB: serve it as a file");
    }
    if body.is_some() && matches!(status, 204 | 205) {
        section.mistake("body", format!("an answer with status {status} has no body: leave it out"));
    }
    if has_type && body.is_none() {
        section.mistake("content_type", "there is no body: set body, or leave this out");
    }
    if content_type.is_empty() || HeaderValue::try_from(content_type.as_str()).is_err() {
        section.mistake("content_type", "not a media type, such as \"text/html; charset=utf-8\"");
    }
    FixedAnswer { status: as_status(status), body, content_type }
}

fn redirect(section: &mut Section, given: bool) -> Option<PathRedirect> {
    let statuses = [301, 302, 303, 307, 308];
    let status = section.integer("status", 308, (300, 399));
    if !statuses.contains(&status) {
        section.mistake("status", format!("{status} isn't a redirect: use 301, 302, 303, 307 or 308"));
    }
    let has_target = section.has("to");
    if given && !has_target {
        section.mistake("to", "missing: where the redirect leads, such as \"/new\"");
    }
    let to = section.parsed::<Target>("to")?;
    // As in nginx's rewrite: a question mark decides about the query.
    let keeps_query = !to.0.contains(['?', '#']);
    let to = to.0.strip_suffix('?').map(str::to_owned).unwrap_or(to.0);
    Some(PathRedirect { status: as_status(status), to, keeps_query })
}

fn as_status(number: u32) -> u16 {
    u16::try_from(number).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR.as_u16())
}

/// Where a redirect leads.
struct Target(String);

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let odd = |b: u8| b <= b' ' || b >= 0x7f || matches!(b, b'\\' | b'"' | b'<' | b'>');
        let path = text.starts_with('/') && !text.starts_with("//");
        let host = text.strip_prefix("https://").and_then(|rest| rest.split(['/', '?', '#']).next());
        let url = host.is_some_and(|host| uh_http1::field::is_host(host.as_bytes()));
        if (path || url) && !text.bytes().any(odd) {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!(
                "{text:?} isn't a target: use a path that starts with one /, or a URL that starts with https://"
            ))
        }
    }
}
