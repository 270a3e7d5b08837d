//! Redacts secrets from foreign text.
//!
//! App logs, build output, probe answers and errors of other programs are turned into a [`Foreign`] as soon as they
//! are read. From then on the text contains no secrets, and is safe to print on a terminal. uh-deploy's own words,
//! versions, names and JSON keys never pass through here: a secret that happens to equal one of them would mask it.
//!
//! The secrets are global to the process. [`remember`] adds to them at the start of every command, and whenever
//! something new is about to be started or followed.

mod sources;

use std::fmt::{self, Write as _};
use std::sync::{PoisonError, RwLock};

use serde::{Serialize, Serializer};

pub(crate) use self::sources::of_config;

/// Shorter values aren't redacted: they would mask too much of every text, and are easy to guess anyway.
pub(crate) const MIN_SECRET_BYTES: usize = 6;

/// The replacement for a secret.
const MASK: &str = "***";

static SECRETS: RwLock<Redactor> = RwLock::new(Redactor { secrets: Vec::new() });

/// Redacts these values from now on.
#[expect(clippy::needless_pass_by_value, reason = "no caller needs them afterwards")]
pub(crate) fn remember(values: Vec<String>) {
    SECRETS.write().unwrap_or_else(PoisonError::into_inner).add(&values);
}

/// Foreign text without secrets. Control characters are escaped when it is displayed, but not in JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Foreign(String);

impl Foreign {
    /// Redacts a text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(SECRETS.read().unwrap_or_else(PoisonError::into_inner).clean(text))
    }

    /// The same for bytes; invalid UTF-8 is replaced.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self::new(&String::from_utf8_lossy(bytes))
    }

    /// The beginning of a longer text: a secret that was cut in two is redacted too. `left_out`: how many bytes are
    /// missing.
    #[must_use]
    pub fn beginning(bytes: &[u8], left_out: u64) -> Self {
        let secrets = SECRETS.read().unwrap_or_else(PoisonError::into_inner);
        let text = secrets.clean(&String::from_utf8_lossy(bytes));
        Self(format!("{} … ({left_out} more bytes)", secrets.without_cut_secret(&text)))
    }

    /// An error of another program or library, with its causes.
    #[must_use]
    pub fn error(error: &dyn std::error::Error) -> Self {
        Self::new(&crate::chain(error))
    }

    /// Its first characters.
    #[must_use]
    pub fn shortened(&self, characters: usize) -> Self {
        Self(self.0.chars().take(characters).collect())
    }

    /// Without trailing white space.
    #[must_use]
    pub fn trimmed(&self) -> Self {
        Self(self.0.trim_end().to_owned())
    }

    /// Whether it is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The text without secrets, with its control characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&escaped(&self.0, |c| c == '\t'))
    }
}

impl Serialize for Foreign {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl std::error::Error for Foreign {}

/// Characters that change the direction of writing, which can disguise text.
fn turns(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A JSON document without terminal control characters. They can only occur within its strings.
pub(crate) fn escaped_in_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for c in json.chars() {
        if (c.is_control() && c != '\n') || turns(c) {
            let _ = write!(shown, "\\u{:04x}", u32::from(c));
        } else {
            shown.push(c);
        }
    }
    shown
}

/// A text with its control characters escaped.
pub(crate) fn escaped(text: &str, harmless: impl Fn(char) -> bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        // Writing to a String does not fail.
        let _ = match c {
            c if !turns(c) && (harmless(c) || !c.is_control()) => {
                shown.push(c);
                Ok(())
            }
            '\r' => write!(shown, "\\r"),
            '\n' => write!(shown, "\\n"),
            c if u32::from(c) < 0x100 => write!(shown, "\\x{:02x}", u32::from(c)),
            c => write!(shown, "\\u{{{:x}}}", u32::from(c)),
        };
    }
    shown
}

/// The secrets, the longest first, because one may contain another.
#[derive(Debug, Default)]
struct Redactor {
    secrets: Vec<String>,
}

impl Redactor {
    fn add(&mut self, values: &[String]) {
        self.secrets.extend(values.iter().flat_map(|value| forms(value)));
        self.secrets.retain(|secret| secret.len() >= MIN_SECRET_BYTES);
        self.secrets.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        self.secrets.dedup();
    }

    fn clean(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in &self.secrets {
            if text.contains(secret.as_str()) {
                text = text.replace(secret.as_str(), MASK);
            }
        }
        text
    }

    /// A cut text, without the beginning of a secret at its end.
    fn without_cut_secret(&self, text: &str) -> String {
        let begun = |secret: &String| {
            let fits =
                |length: &usize| secret.is_char_boundary(*length) && text.ends_with(&secret[..*length]);
            (MIN_SECRET_BYTES..secret.len()).rev().find(fits)
        };
        match self.secrets.iter().filter_map(begun).max() {
            Some(length) => format!("{}{MASK}", &text[..text.len() - length]),
            None => text.to_owned(),
        }
    }
}

/// The forms in which a secret may occur: as a whole, line by line, in JSON, and the password in a URL.
fn forms(value: &str) -> Vec<String> {
    let mut forms = vec![value.to_owned()];
    if value.contains('\n') {
        forms.extend(value.lines().map(|line| line.trim().to_owned()));
    }
    if let Ok(quoted) = serde_json::to_string(value) {
        forms.push(quoted.trim_matches('"').to_owned());
    }
    forms.extend(password(value));
    forms
}

/// `scheme://user:PASSWORD@host`
fn password(value: &str) -> Option<String> {
    let (_, rest) = value.split_once("://")?;
    let (credentials, _) = rest.rsplit_once('@')?;
    Some(credentials.split_once(':')?.1.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redactor(values: &[&str]) -> Redactor {
        let mut redactor = Redactor::default();
        redactor.add(&values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>());
        redactor
    }

    #[test]
    fn secrets_and_the_passwords_in_them_are_redacted() {
        let redactor = redactor(&["postgres://me:hunter22@db/x", "s3cr3t", "12345"]);
        assert_eq!(redactor.clean("url postgres://me:hunter22@db/x, 12345 s3cr3t"), "url ***, 12345 ***");
        assert_eq!(redactor.clean("the password hunter22 was refused"), "the password *** was refused");
    }

    #[test]
    fn a_secret_of_several_lines_is_redacted_in_each_line_and_in_json() {
        let redactor = redactor(&["-----BEGIN KEY-----\nMIIEvQIBADAN\n-----END KEY-----", "two\"words"]);
        assert_eq!(redactor.clean("read MIIEvQIBADAN"), "read ***");
        assert_eq!(redactor.clean(r#"{"key":"two\"words"}"#), r#"{"key":"***"}"#);
    }

    #[test]
    fn a_secret_that_is_cut_in_two_is_not_shown_by_its_beginning() {
        let redactor = redactor(&["correct-horse-battery"]);
        assert_eq!(redactor.without_cut_secret("it is correct-horse"), "it is ***");
        assert_eq!(redactor.without_cut_secret("it is corr"), "it is corr");
        assert_eq!(redactor.without_cut_secret("nothing"), "nothing");
    }

    #[test]
    fn a_terminal_gets_no_control_character_and_json_gets_what_came() {
        let foreign = Foreign::new("a\tb\u{1b}[2J\0\r\u{9b}\u{202e}ü");
        assert_eq!(foreign.to_string(), "a\tb\\x1b[2J\\x00\\r\\x9b\\u{202e}ü");
        let json = escaped_in_json(&serde_json::to_string(&foreign).unwrap());
        assert!(!json.chars().any(|c| c.is_control() || turns(c)), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), "a\tb\u{1b}[2J\0\r\u{9b}\u{202e}ü");
    }
}
