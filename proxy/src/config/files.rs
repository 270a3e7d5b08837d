//! `files` of a service and of some of its paths: static files of its backends.

use std::path::Path;
use std::sync::Arc;

use uh_protocol::BackendName;
use uh_settings::Section;
use uh_switching::BackendDefinition;
use uh_switching::route::is_under;

/// Replaced by the name of the backend that serves.
const BACKEND: &str = "{backend}";

/// Where the files for some paths are, and what happens if there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The root of each backend.
    roots: Box<[(BackendName, Arc<Path>)]>,
    /// Paths are looked up below the longest of these that they begin with. Without final slashes, the longest first.
    prefixes: Box<[Box<str>]>,
    /// A path without a file is answered with 404, and the app isn't asked.
    pub only: bool,
    /// The page for navigations to paths without a file.
    pub spa: Option<Box<str>>,
    /// Whether files may be stored compressed next to themselves.
    pub precompressed: bool,
}

impl Files {
    /// The root of a backend.
    #[must_use]
    pub fn root(&self, backend: &BackendName) -> Option<&Arc<Path>> {
        self.roots.iter().find(|(name, _)| name == backend).map(|(_, root)| root)
    }

    /// What a path is below its prefix.
    #[must_use]
    pub fn below<'a>(&self, path: &'a [u8]) -> Option<&'a [u8]> {
        let prefix = self.prefixes.iter().find(|prefix| is_under(path, prefix.as_bytes()))?;
        path.get(prefix.len()..)
    }
}

/// What the keys of a section are about.
pub(super) struct FilesFor<'a> {
    /// The backends of the service.
    pub backends: &'a [BackendDefinition],
    /// The prefixes that are matched, and the directories of single paths.
    pub prefixes: Vec<Box<str>>,
    /// What holds where a key is missing.
    pub outer: Option<&'a Files>,
}

/// Reads `files` and the keys that go with it.
pub(super) fn files(section: &mut Section, of: FilesFor<'_>) -> Option<Files> {
    let given = section.text("files");
    let off = given.as_deref() == Some("off");
    let outer = of.outer.filter(|_| !off);
    let own = given.filter(|_| !off).map(|root| roots(section, &root, of.backends));
    let others = ["files_only", "spa", "precompressed"].map(|key| (key, section.has(key)));
    let only = section.boolean("files_only", outer.is_some_and(|outer| outer.only));
    let precompressed = section.boolean("precompressed", outer.is_some_and(|outer| outer.precompressed));
    let spa = section.text("spa").map(|page| spa(section, page));
    let spa = spa.or_else(|| outer.and_then(|outer| outer.spa.clone()));
    let (roots, mut prefixes) = match (own, outer) {
        (Some(roots), _) => (roots, of.prefixes),
        (None, Some(outer)) => (outer.roots.clone(), outer.prefixes.to_vec()),
        (None, None) => {
            for (key, _) in others.into_iter().filter(|&(_, given)| given) {
                section.mistake(key, "needs files, such as files = \"/srv/app-{backend}/public\"");
            }
            return None;
        }
    };
    prefixes.sort_by_key(|prefix| std::cmp::Reverse(prefix.len()));
    Some(Files { roots, prefixes: prefixes.into(), only, spa, precompressed })
}

fn roots(section: &Section, root: &str, backends: &[BackendDefinition]) -> Box<[(BackendName, Arc<Path>)]> {
    let rest = root.replace(BACKEND, "");
    if root.is_empty() || rest.contains(['{', '}', '\0']) {
        let reason = format!("{root:?} isn't a directory: the only placeholder is {BACKEND}");
        section.mistake("files", reason);
    }
    let of = |backend: &BackendDefinition| {
        let root = section.resolve(&root.replace(BACKEND, backend.name.as_str()));
        (backend.name.clone(), root.into())
    };
    backends.iter().map(of).collect()
}

fn spa(section: &Section, page: String) -> Box<str> {
    let odd =
        |segment: &str| segment.is_empty() || segment.starts_with('.') || segment.contains(['%', '?', '\\']);
    if page.strip_prefix('/').is_none_or(|page| page.split('/').any(odd)) {
        section.mistake("spa", format!("{page:?} isn't a file of the root, such as \"/index.html\""));
    }
    page.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ConfigError, Service, parse};

    fn parsed(service: &str, paths: &str) -> Result<Service, Vec<String>> {
        let text = format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\n[services.app]\nactive = \"blue\"\n{service}\n\
             [services.app.backends.blue]\nendpoints = [\"127.0.0.1:1\"]\n\
             [services.app.backends.green]\nendpoints = [\"127.0.0.1:2\"]\n{paths}"
        );
        match parse(&text) {
            Ok(mut config) => Ok(config.services.remove(0)),
            Err(ConfigError::Mistakes(mistakes)) => Err(mistakes.0.into_iter().map(|m| m.key).collect()),
            Err(other) => panic!("{other}"),
        }
    }

    fn files_for(service: &Service, path: &str) -> Option<Arc<Files>> {
        service.rules.at(service.rules.find(path.as_bytes())).files.clone()
    }

    #[test]
    fn each_backend_has_its_root_and_rules_inherit_what_they_do_not_set() {
        let service = parsed(
            "files = \"/srv/app-{backend}/public\"\nspa = \"/index.html\"",
            "[[services.app.paths]]\nmatch = [\"/a\", \"/a/b/\"]\nfiles = \"/other\"\nfiles_only = true\n\
             [[services.app.paths]]\nmatch = \"/c\"\nprecompressed = true\n\
             [[services.app.paths]]\nmatch = \"/d\"\nfiles = \"off\"\n\
             [[services.app.paths]]\nmatch = \"/e\"\nexact = true\naccess_log = false\n\
             [[services.app.paths]]\nmatch = [\"/x.ico\", \"/f/y.ico\", \"/f/\"]\nexact = true\nfiles = \"/icons\"\n",
        )
        .unwrap();
        let own = files_for(&service, "/x").unwrap();
        let root = |files: &Files, backend: &str| {
            files.root(&backend.parse().unwrap()).map(|root| root.to_path_buf())
        };
        assert_eq!(root(&own, "green"), Some("/srv/app-green/public".into()));
        assert_eq!((root(&own, "red"), own.only, own.spa.as_deref()), (None, false, Some("/index.html")));
        assert_eq!(own.below(b"/x/y?z"), Some(&b"/x/y?z"[..]));
        let other = files_for(&service, "/a/x").unwrap();
        assert_eq!((root(&other, "blue"), other.only), (Some("/other".into()), true));
        assert_eq!(other.below(b"/a/x"), Some(&b"/x"[..]));
        assert_eq!(other.below(b"/a/b/x"), Some(&b"/x"[..]), "the longest");
        assert_eq!(other.below(b"/a"), Some(&b""[..]));
        let more = files_for(&service, "/c/x").unwrap();
        assert!(more.precompressed && more.below(b"/c/x") == Some(b"/c/x"), "the root is the service's");
        assert!(files_for(&service, "/d").is_none());
        assert_eq!(files_for(&service, "/e"), Some(own));
        let single = files_for(&service, "/x.ico").unwrap();
        assert_eq!(root(&single, "blue"), Some("/icons".into()));
        for (path, below) in [("/x.ico?1", "/x.ico?1"), ("/f/y.ico", "/y.ico"), ("/f/", "/")] {
            assert_eq!(single.below(path.as_bytes()), Some(below.as_bytes()), "{path}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_a_mistake() {
        for (service, rule, key) in [
            ("files = \"/srv/{version}\"", "", "files"),
            ("files = \"\"", "", "files"),
            ("files = 5", "", "files"),
            ("files_only = true", "", "files_only"),
            ("spa = \"/index.html\"", "", "spa"),
            ("precompressed = true", "", "precompressed"),
            ("files = \"/srv\"\nspa = \"index.html\"", "", "spa"),
            ("files = \"/srv\"\nspa = \"/../index.html\"", "", "spa"),
            ("files = \"/srv\"", "match = \"/a\"\nfiles = \"off\"\nspa = \"/a.html\"", "spa"),
        ] {
            let rule =
                if rule.is_empty() { String::new() } else { format!("[[services.app.paths]]\n{rule}\n") };
            let keys = parsed(service, &rule).unwrap_err();
            assert!(keys.iter().any(|found| found.ends_with(key)), "{service} {rule}: {keys:?}");
        }
    }
}
