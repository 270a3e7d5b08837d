//! Reads a configuration with all files that it includes.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use super::syntax::{self, Block, Directive, SyntaxError};

/// Of all files together: more than any real configuration.
const MAX_BYTES: u64 = 4 << 20;

/// Of a chain of includes. A file that includes itself ends here.
const MAX_DEPTH: usize = 8;

/// Of all includes together.
const MAX_FILES: usize = 512;

/// nginx's own directory: files below it are looked up next to the imported file if they aren't there.
const NGINX_DIRECTORY: &str = "/etc/nginx";

/// Files without anything that uh-proxy needs. They aren't read.
const NEEDLESS: [&str; 6] =
    ["mime.types", "fastcgi_params", "fastcgi.conf", "uwsgi_params", "scgi_params", "modules-enabled"];

/// Files of packages that only say what is usual. They are often missing where the configuration is imported.
const USUAL: [&str; 2] = ["options-ssl-nginx.conf", "proxy_params"];

/// Why a configuration can't be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file can't be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file that another one includes can't be read.
    #[error(
        "{from}: cannot read the included file {}; copy it next to the imported file, or comment this line out",
        path.display()
    )]
    Include {
        /// Where it is included.
        from: String,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It isn't in nginx's syntax; the message has the file and the line.
    #[error("{0}")]
    Syntax(String),
    /// Too much.
    #[error("{at}: {what}")]
    TooMuch {
        /// Where.
        at: String,
        /// What is too much.
        what: &'static str,
    },
}

impl From<SyntaxError> for LoadError {
    fn from(error: SyntaxError) -> Self {
        Self::Syntax(error.to_string())
    }
}

/// All directives, with the included ones behind their `include`. They are numbered in this order.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) root: Block,
    /// How many directives there are.
    pub(super) count: usize,
}

/// Reads a file and what it includes.
pub(super) fn load(path: &Path) -> Result<Source, LoadError> {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let directory = path.parent().map(Path::to_owned).unwrap_or_default();
    let mut loader = Loader { directory, bytes: 0, files: 0 };
    let unreadable = |source| LoadError::Unreadable { path: path.to_owned(), source };
    let text = loader.read(path).map_err(unreadable)?;
    let mut root = syntax::parse(&Rc::from(&*name), &text)?;
    loader.follow(&mut root, 0)?;
    let mut count = 0;
    number(&mut root, &mut count);
    Ok(Source { root, count })
}

fn number(block: &mut Block, next: &mut usize) {
    for directive in &mut block.directives {
        directive.id = *next;
        *next += 1;
        if let Some(inner) = &mut directive.block {
            number(inner, next);
        }
    }
}

/// Whether an included file isn't read.
pub(super) fn is_needless(pattern: &str) -> bool {
    pattern.split('/').any(|part| NEEDLESS.contains(&part))
}

/// Whether an included file may be missing.
pub(super) fn is_usual(pattern: &str) -> bool {
    USUAL.iter().any(|name| pattern.ends_with(name))
}

struct Loader {
    directory: PathBuf,
    bytes: u64,
    files: usize,
}

impl Loader {
    /// Puts the content of included files behind their `include`.
    fn follow(&mut self, block: &mut Block, depth: usize) -> Result<(), LoadError> {
        let mut followed = Vec::with_capacity(block.directives.len());
        for mut directive in std::mem::take(&mut block.directives) {
            if let Some(inner) = &mut directive.block {
                self.follow(inner, depth)?;
            }
            let included = if directive.name == "include" && directive.block.is_none() {
                self.included(&directive, depth)?
            } else {
                Vec::new()
            };
            followed.push(directive);
            for mut file in included {
                followed.append(&mut file.directives);
                block.comments.append(&mut file.comments);
            }
        }
        block.directives = followed;
        Ok(())
    }

    fn included(&mut self, include: &Directive, depth: usize) -> Result<Vec<Block>, LoadError> {
        let too_much = |what| Err(LoadError::TooMuch { at: include.place.to_string(), what });
        if depth == MAX_DEPTH {
            return too_much("files include each other too deeply");
        }
        let pattern = include.arg(0);
        let mut blocks = Vec::new();
        if is_needless(pattern) {
            return Ok(blocks);
        }
        for path in self.find(pattern) {
            self.files += 1;
            if self.files > MAX_FILES {
                return too_much("more than 512 files are included");
            }
            let text = match self.read(&path) {
                Ok(text) => text,
                Err(_) if is_usual(pattern) => continue,
                Err(source) => {
                    let from = include.place.to_string();
                    return Err(LoadError::Include { from, path, source });
                }
            };
            let name = path.strip_prefix(&self.directory).unwrap_or(&path).to_string_lossy();
            let mut block = syntax::parse(&Rc::from(&*name), &text)?;
            self.follow(&mut block, depth + 1)?;
            blocks.push(block);
        }
        Ok(blocks)
    }

    /// The files that a pattern names. Without wildcards it is always one, whether it exists or not.
    fn find(&self, pattern: &str) -> Vec<PathBuf> {
        let path = Path::new(pattern);
        let here = path.strip_prefix(NGINX_DIRECTORY).map(|rest| self.directory.join(rest));
        let places = [self.directory.join(path)].into_iter().chain(here);
        if !pattern.contains(['*', '?']) {
            let mut places: Vec<PathBuf> = places.collect();
            let found = places.iter().position(|place| place.is_file()).unwrap_or(0);
            return vec![places.swap_remove(found)];
        }
        places.map(|place| glob(&place)).find(|found| !found.is_empty()).unwrap_or_default()
    }

    /// Any bytes are text: nginx doesn't care for the encoding of comments.
    fn read(&mut self, path: &Path) -> io::Result<String> {
        let file = File::open(path)?;
        let mut bytes = Vec::new();
        file.take(MAX_BYTES - self.bytes + 1).read_to_end(&mut bytes)?;
        self.bytes += bytes.len() as u64;
        if self.bytes > MAX_BYTES {
            self.bytes = MAX_BYTES;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// The files that match a path with `*` and `?`, sorted.
fn glob(pattern: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::new()];
    for part in pattern.components() {
        let Component::Normal(part) = part else {
            found.iter_mut().for_each(|path| path.push(part));
            continue;
        };
        let part = part.to_string_lossy();
        if !part.contains(['*', '?']) {
            found.iter_mut().for_each(|path| path.push(&*part));
            continue;
        }
        let entries = |path: PathBuf| {
            let here = if path.as_os_str().is_empty() { Path::new(".") } else { &path };
            let names = fs::read_dir(here).into_iter().flatten().take(MAX_FILES);
            let names = names.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            // As in a shell, hidden files must be named.
            let matching =
                names.filter(|name| !name.starts_with('.') && matches(part.as_bytes(), name.as_bytes()));
            matching.map(|name| path.join(name)).collect::<Vec<_>>()
        };
        found = found.into_iter().flat_map(entries).take(MAX_FILES).collect();
    }
    found.retain(|path| path.is_file());
    found.sort();
    found
}

/// Whether a name matches a pattern, in a time that grows with the product of their lengths.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((at, from)) = star else { return false };
                star = Some((at, from + 1));
                p = at + 1;
                n = from + 1;
            }
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(block: &Block) -> Vec<String> {
        block.directives.iter().map(|d| format!("{} {}", d.place, d.line())).collect()
    }

    #[test]
    fn included_files_are_put_in_place_in_order() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("conf.d")).unwrap();
        for (name, text) in [
            (
                "nginx.conf",
                "a;\ninclude conf.d/*.conf;\ninclude mime.types;\ninclude /etc/nginx/none/*.conf;\nb;\n",
            ),
            ("conf.d/2.conf", "two;\n"),
            ("conf.d/1.conf", "one;\ninclude conf.d/x.inc;\n"),
            ("conf.d/x.inc", "x;\n"),
        ] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let source = load(&dir.path().join("nginx.conf")).unwrap();
        let expected = [
            "nginx.conf:1 a",
            "nginx.conf:2 include conf.d/*.conf",
            "conf.d/1.conf:1 one",
            "conf.d/1.conf:2 include conf.d/x.inc",
            "conf.d/x.inc:1 x",
            "conf.d/2.conf:1 two",
            "nginx.conf:3 include mime.types",
            "nginx.conf:4 include /etc/nginx/none/*.conf",
            "nginx.conf:5 b",
        ];
        assert_eq!(names(&source.root), expected);
        assert_eq!(source.count, 9);
    }

    #[test]
    fn files_of_nginx_are_found_next_to_the_imported_one() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("n.conf"), "include /etc/nginx/uh-proxy-test/a.conf;").unwrap();
        let error = load(&dir.path().join("n.conf")).unwrap_err().to_string();
        assert!(error.starts_with("n.conf:1: cannot read the included file"), "{error}");
        fs::create_dir(dir.path().join("uh-proxy-test")).unwrap();
        fs::write(dir.path().join("uh-proxy-test/a.conf"), "a;").unwrap();
        assert_eq!(load(&dir.path().join("n.conf")).unwrap().count, 2);
    }

    #[test]
    fn what_is_too_much_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n.conf");
        fs::write(&path, "include n.conf;").unwrap();
        assert!(load(&path).unwrap_err().to_string().contains("too deeply"));
        fs::write(&path, "#".repeat(MAX_BYTES as usize + 1)).unwrap();
        assert!(matches!(load(&path), Err(LoadError::Unreadable { .. })));
        assert!(matches!(load(&dir.path().join("none")), Err(LoadError::Unreadable { .. })));
        assert!(load(dir.path()).is_err());
    }

    #[test]
    fn wildcards_match_as_in_a_shell() {
        for (pattern, name, expected) in [
            ("*", "a", true),
            ("*.conf", "a.conf", true),
            ("*.conf", "a.conf.bak", false),
            ("a?c*", "abcd", true),
            ("a*b*c", "axxbxxc", true),
            ("a*b*c", "axxbxx", false),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }
}
