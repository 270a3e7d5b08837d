//! Which paths a rule matches: `match`, `exact` and `suffixes`.

use std::fmt;
use std::str::FromStr;

use uh_settings::Section;
use uh_switching::route::is_under;

/// What a path must be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pattern {
    /// It is this one, apart from its query.
    Exact(Box<[u8]>),
    /// It is under a prefix, in whole segments.
    Under {
        /// Without its final slash, so empty for every path.
        prefix: Box<[u8]>,
        /// How it must end, in lowercase; empty: in any way.
        suffix: Box<[u8]>,
    },
}

impl Pattern {
    /// Where files are looked up: below the prefix, or below the directory of a single path. Without its final slash.
    pub(super) fn directory(&self) -> Option<&str> {
        match self {
            Self::Exact(path) => Some(std::str::from_utf8(path).ok()?.rsplit_once('/')?.0),
            Self::Under { prefix, .. } => std::str::from_utf8(prefix).ok(),
        }
    }

    /// The same with other paths.
    pub(super) fn map(&self, change: impl Fn(&[u8]) -> Box<[u8]>) -> Self {
        match self {
            Self::Exact(path) => Self::Exact(change(path)),
            Self::Under { prefix, suffix } => Self::Under { prefix: change(prefix), suffix: suffix.clone() },
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = String::from_utf8_lossy;
        match self {
            Self::Exact(path) => write!(f, "the path {}", text(path)),
            Self::Under { prefix, suffix } if suffix.is_empty() => write!(f, "the prefix {}/", text(prefix)),
            Self::Under { prefix, suffix } => {
                write!(f, "the prefix {}/ with the suffix {}", text(prefix), text(suffix))
            }
        }
    }
}

/// The patterns of a rule in a service with this prefix.
pub(super) fn patterns(section: &mut Section, service: &str) -> Vec<Pattern> {
    let (given, suffixes) = (section.has("match"), section.has("suffixes"));
    let none = ["match", "suffixes"].into_iter().find(|key| section.is_empty_list(key));
    let prefixes = section.one_or_more::<PathPrefix>("match").unwrap_or_default();
    let endings = section.one_or_more::<Suffix>("suffixes").unwrap_or_default();
    let exact = section.boolean("exact", false);
    let service = service.trim_end_matches('/');
    for PathPrefix(prefix) in &prefixes {
        if !is_under(prefix.as_bytes(), service.as_bytes()) {
            let reason =
                format!("{prefix} isn't under the service's path_prefix {service}, so no request matches it");
            section.mistake("match", reason);
        }
    }
    if !given && !suffixes {
        section.mistake("match", "missing: set the paths of this rule, such as \"/uploads\", or suffixes");
    }
    if let Some(key) = none {
        section.mistake(key, "empty: no request matches it");
    }
    if exact && (suffixes || !given) {
        section.mistake("exact", "needs match, without suffixes: a path is either exact or has a suffix");
    }
    if exact {
        return prefixes.into_iter().map(|path| Pattern::Exact(path.0.into_bytes().into())).collect();
    }
    let prefixes = if given { prefixes } else { vec![PathPrefix(service.to_owned())] };
    let endings = if suffixes { endings } else { vec![Suffix(String::new())] };
    let with = |PathPrefix(prefix): &PathPrefix| {
        let prefix: Box<[u8]> = prefix.trim_end_matches('/').as_bytes().into();
        endings
            .iter()
            .map(|Suffix(suffix)| Pattern::Under { prefix: prefix.clone(), suffix: suffix.as_bytes().into() })
            .collect::<Vec<_>>()
    };
    prefixes.iter().flat_map(with).collect()
}

/// The start of a path.
#[derive(Debug)]
pub(in crate::config) struct PathPrefix(pub String);

impl FromStr for PathPrefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.starts_with('/') || text.bytes().any(|b| b <= b' ' || matches!(b, b'?' | b'#' | 0x7f)) {
            return Err(format!("{text:?} isn't a path: it must start with / and have no query"));
        }
        if text.split('/').any(|segment| matches!(segment, "." | "..")) {
            return Err(format!("{text:?} has a dot segment, so no request path can match it"));
        }
        Ok(Self(text.to_owned()))
    }
}

/// The end of a path, in lowercase.
struct Suffix(String);

impl FromStr for Suffix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let odd = |b: u8| b <= b' ' || matches!(b, b'/' | b'?' | b'#' | b'*' | 0x7f);
        if text.is_empty() || text.bytes().any(odd) {
            return Err(format!("{text:?} isn't a suffix: use the end of a file name, such as \".js\""));
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}
