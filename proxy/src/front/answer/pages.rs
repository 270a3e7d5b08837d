//! Error pages: a built-in one, or the operator's, read and checked when a configuration is loaded.
//!
//! `404.html` is for a status, `5xx.html` for every status of its hundred without a page of its own, and
//! `maintenance.html` for a service in maintenance.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use uh_system::plain;

use super::words;

/// The largest page: it is rendered in memory for every answer.
const MAX_PAGE_BYTES: u64 = 64 << 10;

/// The placeholders of a page, as in `{{detail}}`.
const PLACEHOLDERS: [&str; 8] =
    ["status", "reason", "detail", "request_id", "title", "explanation", "cause", "retry"];

/// The longest word between braces that counts as a placeholder.
const MAX_PLACEHOLDER_CHARS: usize = 32;

/// Self-contained: it loads nothing, runs nothing, and is small enough to be rendered for every answer.
const BUILT_IN: &str = include_str!("page.html");

/// Which answers a page is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum For {
    Status(u16),
    Hundred(u16),
    Maintenance,
}

/// The pages. Cheap to clone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Pages {
    own: Arc<BTreeMap<For, String>>,
}

/// What a page shows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Values<'a> {
    /// `{{status}}`
    pub status: u16,
    /// `{{reason}}`
    pub reason: &'a str,
    /// `{{detail}}`: the explanation for humans; in maintenance, the operator's message.
    pub detail: &'a str,
    /// `{{request_id}}`
    pub request_id: &'a str,
    /// `Retry-After`, in seconds: `{{retry}}`, a sentence.
    pub retry_after_s: Option<u32>,
    /// Whether the service is in maintenance. Then `{{explanation}}` is the operator's message.
    pub maintenance: bool,
}

impl Values<'_> {
    fn push(&self, name: &str, out: &mut String) {
        let words = words::of(self.status);
        match name {
            "status" => out.push_str(&self.status.to_string()),
            "reason" => escape(self.reason, out),
            "detail" => escape(self.detail, out),
            "request_id" => escape(self.request_id, out),
            "title" => escape(if self.maintenance { words::MAINTENANCE } else { words.title }, out),
            "explanation" => escape(if self.maintenance { self.detail } else { words.explanation }, out),
            "retry" => escape(&words::retry(self.retry_after_s), out),
            // In maintenance, the explanation already is the detail.
            "cause" if self.maintenance => out.push_str("planned maintenance"),
            "cause" => escape(self.detail, out),
            _ => {}
        }
    }
}

impl Pages {
    /// Reads and checks the pages in a directory. `None`: there are only built-in ones.
    ///
    /// # Errors
    /// Everything that is wrong, each with its file.
    pub(crate) fn load(directory: Option<&Path>) -> io::Result<Self> {
        let Some(directory) = directory else { return Ok(Self::default()) };
        let mut own = BTreeMap::new();
        let mut faults = Vec::new();
        let unreadable = |e: io::Error| {
            let (directory, reason) = (directory.display(), plain(&e));
            io::Error::other(format!("server.error_pages: cannot read the directory {directory}: {reason}"))
        };
        for entry in fs::read_dir(directory).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            match read_page(&path) {
                Ok((target, text)) => {
                    own.insert(target, text);
                }
                Err(fault) => faults.push(format!("{}: {fault}", path.display())),
            }
        }
        faults.sort();
        match faults.as_slice() {
            [] => Ok(Self { own: Arc::new(own) }),
            faults => Err(io::Error::other(format!("server.error_pages: {}", faults.join("; ")))),
        }
    }

    /// The operator's page for an answer, with its values.
    #[must_use]
    pub(crate) fn own(&self, values: &Values<'_>) -> Option<String> {
        let of = |target| self.own.get(&target);
        let maintenance = if values.maintenance { of(For::Maintenance) } else { None };
        let template = maintenance
            .or_else(|| of(For::Status(values.status)))
            .or_else(|| of(For::Hundred(values.status / 100)))?;
        Some(Self::fill(template, values))
    }

    /// The built-in page, with its values.
    #[must_use]
    pub(crate) fn built_in(values: &Values<'_>) -> String {
        Self::fill(BUILT_IN, values)
    }

    fn fill(template: &str, values: &Values<'_>) -> String {
        let mut out = String::with_capacity(template.len() + 256);
        let mut rest = template;
        while let Some((before, name, after)) = next_placeholder(rest) {
            out.push_str(before);
            values.push(name, &mut out);
            rest = after;
        }
        out.push_str(rest);
        out
    }
}

fn read_page(path: &Path) -> Result<(For, String), String> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let target =
        target(name).ok_or("not the name of an error page: use 404.html, 5xx.html or maintenance.html")?;
    let metadata = fs::metadata(path).map_err(|e| plain(&e))?;
    if !metadata.is_file() {
        return Err("not a file".to_owned());
    }
    if metadata.len() > MAX_PAGE_BYTES {
        return Err(format!("larger than {} KiB", MAX_PAGE_BYTES >> 10));
    }
    let text = fs::read_to_string(path).map_err(|e| plain(&e))?;
    let mut rest = text.as_str();
    while let Some((_, name, after)) = next_placeholder(rest) {
        if !PLACEHOLDERS.contains(&name) {
            let known = PLACEHOLDERS.map(|known| format!("{{{{{known}}}}}")).join(", ");
            return Err(format!("unknown placeholder {{{{{name}}}}}; valid placeholders: {known}"));
        }
        rest = after;
    }
    Ok((target, text))
}

fn target(name: &str) -> Option<For> {
    let stem = name.strip_suffix(".html")?;
    match (stem, stem.as_bytes()) {
        ("maintenance", _) => Some(For::Maintenance),
        (_, [hundred @ b'4'..=b'5', b'x', b'x']) => Some(For::Hundred(u16::from(hundred - b'0'))),
        (_, [b'4'..=b'5', _, _]) => stem.parse().ok().map(For::Status),
        _ => None,
    }
}

/// The text before the next `{{word}}`, the word, and the text after it.
fn next_placeholder(text: &str) -> Option<(&str, &str, &str)> {
    let mut from = 0;
    while let Some(at) = text[from..].find("{{").map(|at| from + at) {
        let word = &text[at + 2..];
        let end =
            word.bytes().take(MAX_PLACEHOLDER_CHARS + 1).take_while(|b| b.is_ascii_lowercase() || *b == b'_');
        let end = end.count();
        if end > 0 && word[end..].starts_with("}}") {
            return Some((&text[..at], &word[..end], &word[end + 2..]));
        }
        from = at + 2;
    }
    None
}

fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUES: Values<'_> = Values {
        status: 504,
        reason: "Gateway Timeout",
        detail: "<slow>",
        request_id: "id-1",
        retry_after_s: None,
        maintenance: false,
    };

    /// The largest built-in page, with the longest detail.
    const MAX_BUILT_IN_BYTES: usize = 4 << 10;

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        directory
    }

    fn load(files: &[(&str, &str)]) -> io::Result<Pages> {
        Pages::load(Some(directory(files).path()))
    }

    #[test]
    fn the_page_for_a_status_comes_before_the_one_for_its_hundred() {
        let files = [
            ("504.html", "own {{status}}"),
            ("5xx.html", "any {{detail}} {{ x }}"),
            ("maintenance.html", "m"),
        ];
        let pages = load(&files).unwrap();
        assert_eq!(pages.own.len(), 3);
        let own = |values: Values<'_>| pages.own(&values);
        assert_eq!(own(VALUES).as_deref(), Some("own 504"));
        assert_eq!(own(Values { status: 502, ..VALUES }).as_deref(), Some("any &lt;slow&gt; {{ x }}"));
        assert_eq!(own(Values { status: 503, maintenance: true, ..VALUES }).as_deref(), Some("m"));
        assert_eq!(own(Values { status: 404, ..VALUES }), None);
    }

    #[test]
    fn the_built_in_page_is_small_whole_in_itself_and_well_formed() {
        for status in [308, 400, 404, 405, 408, 413, 417, 421, 429, 431, 501, 502, 503, 504, 505] {
            for maintenance in [false, true] {
                let page =
                    Pages::built_in(&Values { status, maintenance, retry_after_s: Some(120), ..VALUES });
                assert!(page.len() <= MAX_BUILT_IN_BYTES, "{status}: {} bytes", page.len());
                let fetches = ["http:", "https:", "//", "url(", "src=", "@import", "<script", "<link", "{{"];
                assert_eq!(fetches.iter().find(|part| page.contains(**part)), None, "{page}");
                assert!(page.starts_with("<!doctype html>\n<html lang=\"en\">"), "{page}");
                assert!(page.contains("<code>id-1</code>") && page.contains("in about 2 minutes."), "{page}");
                assert!(page.contains("&lt;slow&gt;") && !page.contains("<slow>"), "{page}");
                demand_closed(&page);
            }
        }
    }

    /// Every element that is opened is closed, in order.
    fn demand_closed(page: &str) {
        let mut open = Vec::new();
        for tag in page.split('<').skip(1).filter_map(|rest| rest.split_once('>')).map(|(tag, _)| tag) {
            let name = tag.split(' ').next().unwrap();
            match name.strip_prefix('/') {
                Some(closed) => assert_eq!(open.pop(), Some(closed), "{page}"),
                None if ["!doctype", "meta"].contains(&name) => {}
                None => open.push(name),
            }
        }
        assert!(open.is_empty(), "{open:?} stay open in {page}");
    }

    #[test]
    fn every_mistake_in_the_pages_is_reported_at_once() {
        let large = "x".repeat(65 << 10);
        let error =
            load(&[("500.htm", ""), ("600.html", ""), ("404.html", "{{host}}"), ("502.html", &large)]);
        let error = error.unwrap_err().to_string();
        for part in ["500.htm", "600.html", "unknown placeholder {{host}}", "larger than 64 KiB"] {
            assert!(error.contains(part), "{part} is missing in {error}");
        }
        let error = Pages::load(Some(Path::new("/nonexistent/pages"))).unwrap_err().to_string();
        assert!(error.contains("server.error_pages") && error.contains("/nonexistent/pages"), "{error}");
        let directory = directory(&[]);
        fs::write(directory.path().join("404.html"), [0xff]).unwrap();
        assert!(Pages::load(Some(directory.path())).is_err(), "a page that is not UTF-8 passed");
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics_it(text in "[{}a-zé_]{0,80}") {
            let mut rest = text.as_str();
            while let Some((_, _, after)) = next_placeholder(rest) {
                rest = after;
            }
        }
    }
}
