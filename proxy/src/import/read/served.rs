//! Files: `root`, `alias`, `index` and `try_files`.

use super::locations::pattern;
use super::{Reader, is_acme};
use crate::import::ledger::Scope;
use crate::import::nginx::{Action, FileSettings, Files, Location, Pattern, Server, Set};
use crate::import::syntax::Directive;
use crate::import::table::{self, Class};

/// Why no files of a server are carried over.
const GUARDED: &str = "the server has scripts, authentication or expressions that aren't carried over, so its files aren't either: some may not be for clients; see docs/files.md";

/// Directives that answer in another way.
const HANDLERS: [&str; 12] = [
    "internal",
    "proxy_pass",
    "return",
    "stub_status",
    "fastcgi_pass",
    "uwsgi_pass",
    "scgi_pass",
    "memcached_pass",
    "grpc_pass",
    "empty_gif",
    "mp4",
    "flv",
];

/// Directives that keep files from clients, which uh-proxy would serve.
const GUARDS: [&str; 11] = [
    "auth_basic",
    "auth_jwt",
    "auth_request",
    "dav_methods",
    "fastcgi_pass",
    "limit_except",
    "scgi_pass",
    "secure_link",
    "secure_link_md5",
    "uwsgi_pass",
    "valid_referers",
];

/// Whether a block has files that must not be served: scripts, or files for some clients only.
pub(super) fn is_guarded(block: &Directive) -> bool {
    let guards = match block.name.as_str() {
        // uh-proxy serves no hidden files.
        "location" => {
            pattern(block) == Pattern::Unknown
                && !block.args.iter().any(|arg| arg.starts_with(r"/\.") && !arg.contains("|/"))
        }
        name => (GUARDS.contains(&name) && block.arg(0) != "off") || table::is_script(name),
    };
    guards || block.inner().iter().any(is_guarded)
}

/// Whether a location, or a server without one for all paths, serves files.
fn serves_files(block: &Directive) -> bool {
    let handles =
        |inner: &Directive| HANDLERS.contains(&inner.name.as_str()) || table::is_script(&inner.name);
    !block.inner().iter().any(handles)
}

/// The files of a location. `None`: uh-proxy can't serve them.
fn files(settings: &FileSettings, pattern: &Pattern) -> Option<Files> {
    match pattern {
        Pattern::Prefix { path, .. } => {
            let below = path.trim_end_matches('/');
            let alias = settings.alias.as_ref().map(|alias| alias.value.trim_end_matches('/').to_owned());
            files_in(settings, alias.or_else(|| under_root(settings, below))?, below)
        }
        Pattern::Exact(path) => {
            // The last segment is looked up in the directory.
            let (above, name) = path.rsplit_once('/')?;
            let dir = match &settings.alias {
                Some(alias) => alias.value.strip_suffix(name)?.strip_suffix('/')?.to_owned(),
                None => under_root(settings, above)?,
            };
            files_in(settings, dir, above).filter(is_plain)
        }
        Pattern::Suffixes { .. } if settings.alias.is_none() => {
            files_in(settings, under_root(settings, "")?, "").filter(is_plain)
        }
        _ => None,
    }
}

/// The directory of a path below the root.
fn under_root(settings: &FileSettings, path: &str) -> Option<String> {
    settings.root.as_ref().map(|root| format!("{}{path}", root.value.trim_end_matches('/')))
}

/// Whether nothing else answers where there is no file.
fn is_plain(files: &Files) -> bool {
    files.spa.is_none() && files.fallback.is_none()
}

/// What is served out of a directory. `below`: what the path of its page begins with.
fn files_in(settings: &FileSettings, dir: String, below: &str) -> Option<Files> {
    let plain = dir.len() > 1 && dir.starts_with('/') && !dir.contains(['$', '{', '}', '\0']);
    let index =
        settings.index.as_ref().is_none_or(|index| index.value.iter().any(|name| name == "index.html"));
    if !plain || !index || settings.lists.is_some() {
        return None;
    }
    let (mut spa, mut fallback) = (None, None);
    if let Some(tries) = &settings.tries {
        let (last, others) = tries.value.split_last()?;
        let usual = |file: &String| matches!(file.as_str(), "$uri" | "$uri/" | "$uri/index.html");
        if !others.iter().all(usual) || !others.iter().any(|file| file == "$uri") {
            return None;
        }
        match last.as_str() {
            "=404" => {}
            name if name.starts_with('@') => fallback = Some(name.to_owned()),
            page => spa = Some(page.strip_prefix(below).filter(|page| is_page(page))?.to_owned()),
        }
    }
    let precompressed = !settings.stored.is_empty();
    Some(Files { dir, precompressed, spa, fallback, ids: settings.ids() })
}

/// What uh-proxy does otherwise than `try_files`.
fn differs(tries: &Set<Vec<String>>, files: &Files) -> Option<&'static str> {
    let directories = tries.value.iter().any(|file| matches!(file.as_str(), "$uri/" | "$uri/index.html"));
    if files.spa.is_some() {
        Some("the page is for navigations; other requests without a file get 404")
    } else if files.fallback.is_some() && !directories {
        Some("the index.html of a directory is a file too: remove those that the app should answer for")
    } else {
        None
    }
}

/// Whether it can be `spa`.
fn is_page(page: &str) -> bool {
    let name =
        |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains(['%', '?', '\\', '$']);
    page.ends_with(".html") && page.strip_prefix('/').is_some_and(|page| page.split('/').all(name))
}

impl Reader {
    /// A directive about files. What happens to it is decided where files are served.
    pub(super) fn file_setting(&mut self, directive: &Directive, files: &mut FileSettings, scope: Scope) {
        let (id, path) = (directive.id, directive.arg(0).to_owned());
        match directive.name.as_str() {
            "root" => files.root = Some(Set { value: path, id }),
            "alias" => files.alias = Some(Set { value: path, id }),
            "try_files" => files.tries = Some(Set { value: directive.args.clone(), id }),
            "index" => files.index = Some(Set { value: directive.args.clone(), id }),
            "gzip_static" | "brotli_static" if path == "on" => files.stored.push(id),
            "gzip_static" | "brotli_static" if path == "always" => {
                self.ledger.by_table(directive, Class::Look, scope);
            }
            "gzip_static" | "brotli_static" => {
                files.stored.clear();
                self.ledger.set(id, Class::NotNeeded, scope, "off");
            }
            _ if path == "off" => {
                files.lists = None;
                self.ledger.set(id, Class::NotNeeded, scope, "off");
            }
            _ => files.lists = Some(Set { value: (), id }),
        }
    }

    /// What a location does that nothing else is said about.
    pub(super) fn serve(&mut self, directive: &Directive, location: &mut Location) {
        let settings = &location.settings.files;
        let own = |id: &usize| location.inner.contains(id);
        let denied = is_acme(&location.pattern) || location.settings.extras.denies_all();
        if denied || !serves_files(directive) {
            for set in settings.tries.iter().filter(|set| own(&set.id)) {
                let why = "its location doesn't serve files; move try_files to one that does";
                self.ledger.set(set.id, Class::Changes, location.scope, why);
            }
            for id in settings.ids().iter().filter(|id| own(id)) {
                self.ledger.set_rest(
                    *id,
                    Class::NotNeeded,
                    location.scope,
                    "its location doesn't serve files",
                );
            }
            return;
        }
        let found = if self.is_guarded { None } else { files(settings, &location.pattern) };
        match found {
            Some(files) => {
                let scope = location.scope;
                files.ids.iter().for_each(|id| self.ledger.set(*id, Class::Carried, scope, ""));
                if let Some((set, why)) =
                    settings.tries.as_ref().and_then(|set| Some((set, differs(set, &files)?)))
                {
                    self.ledger.set(set.id, Class::Look, scope, why);
                }
                location.action = Action::Files(files);
            }
            None => {
                // Another pattern without files of its own has those of the prefix around it.
                let is_prefix = matches!(location.pattern, Pattern::Prefix { .. });
                let why = match self.is_guarded {
                    true => GUARDED.to_owned(),
                    false => table::words("root", Class::Changes),
                };
                for id in settings.ids().into_iter().filter(|id| is_prefix || own(id)) {
                    self.ledger.set(id, Class::Changes, location.scope, why.as_str());
                }
            }
        }
    }

    /// The location for all paths of a server that has none.
    pub(super) fn serve_rest(&mut self, directive: &Directive, server: &mut Server) {
        let settings = &server.settings;
        let files = &settings.files;
        let has_root = server.locations.iter().any(|location| location.pattern.is_root());
        if !has_root && (files.root.is_some() || files.tries.is_some()) && server.action == Action::None {
            let mut location = Location {
                scope: server.scope,
                id: directive.id,
                pattern: Pattern::Prefix { path: "/".to_owned(), first: false },
                settings: settings.clone(),
                action: Action::None,
                inner: Vec::new(),
                strips: None,
            };
            self.serve(directive, &mut location);
            if location.action != Action::None {
                server.locations.push(location);
            }
        }
        directive.inner().iter().for_each(|inner| self.unused(inner, server.scope));
    }

    /// A directive about files that nothing became of.
    pub(super) fn unused(&mut self, directive: &Directive, scope: Scope) {
        let about_files =
            ["root", "alias", "try_files", "index", "autoindex", "gzip_static", "brotli_static"];
        if about_files.contains(&directive.name.as_str()) {
            self.ledger.set_rest(directive.id, Class::NotNeeded, scope, "no location uses it");
        }
        directive.inner().iter().for_each(|inner| self.unused(inner, scope));
    }
}
