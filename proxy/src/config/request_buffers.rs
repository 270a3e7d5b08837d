//! `buffer_requests`, of a service and of some of its paths, and `[server.request_buffers]`, the limits of all of them.

use std::path::PathBuf;

use uh_settings::{Given, Section};

use super::service::Service;

/// Which requests are read as a whole before a backend is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestBuffer {
    /// Larger bodies are streamed.
    pub max_bytes: u64,
    /// Of one body, what is kept in memory. What is larger is written to a file.
    pub memory_bytes: u64,
}

impl Default for RequestBuffer {
    fn default() -> Self {
        Self { max_bytes: DEFAULT_BYTES, memory_bytes: DEFAULT_BYTES }
    }
}

/// The limits of all buffered requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestBuffers {
    /// Where files are created; `None`: bodies are only kept in memory.
    pub directory: Option<PathBuf>,
    /// What all bodies together may have in memory.
    pub memory_bytes: u64,
    /// The same on disk.
    pub disk_bytes: u64,
}

/// Most forms and JSON bodies are smaller.
const DEFAULT_BYTES: u64 = 1 << 20;

/// Less is in memory anyway, while it is read.
const MIN_BYTES: u64 = 1 << 10;

/// What is larger should be streamed: nobody wants to wait for a second transfer of more than this.
const MAX_BYTES: u64 = 64 << 30;

/// More memory than one body should have: larger ones belong into a file.
const MAX_MEMORY_BYTES: u64 = 1 << 30;

/// More than the memory or the disk of any machine that uh-proxy is meant for: a pebibyte.
const MAX_ALL_BYTES: u64 = 1 << 50;

/// Reads `[server.request_buffers]`.
pub(super) fn of_server(section: &mut Section) -> RequestBuffers {
    RequestBuffers {
        directory: section.optional_path("directory"),
        memory_bytes: section.size("memory_bytes", 64 << 20, (0, MAX_ALL_BYTES)),
        disk_bytes: section.size("disk_bytes", 1 << 30, (0, MAX_ALL_BYTES)),
    }
}

/// Reads `buffer_requests`. `inherited` applies if the key is absent; a table changes only what it names.
pub(super) fn of_paths(section: &mut Section, inherited: Option<RequestBuffer>) -> Option<RequestBuffer> {
    match section.given("buffer_requests") {
        None => inherited,
        Some(Given::Boolean(false)) => None,
        Some(Given::Boolean(true)) => Some(inherited.unwrap_or_default()),
        Some(Given::Table(table)) => Some(of_table(table, inherited)),
    }
}

fn of_table(mut section: Section, inherited: Option<RequestBuffer>) -> RequestBuffer {
    let outer = inherited.unwrap_or_default();
    let (has_most, has_memory) = (section.has("max_bytes"), section.has("memory_bytes"));
    let memory_bytes = section.size("memory_bytes", outer.memory_bytes, (MIN_BYTES, MAX_MEMORY_BYTES));
    // Without a bound of its own, a body is buffered as long as it fits into memory.
    let default = if inherited.is_some() { outer.max_bytes.max(memory_bytes) } else { memory_bytes };
    let max_bytes = section.size("max_bytes", default, (MIN_BYTES, MAX_BYTES));
    if has_most && has_memory && memory_bytes > max_bytes {
        section.mistake("memory_bytes", "more than max_bytes, so no body can have so much: make it smaller");
    }
    RequestBuffer { max_bytes, memory_bytes: memory_bytes.min(max_bytes) }
}

/// Bodies that don't fit into memory need a directory.
pub(super) fn check(root: &Section, server: &RequestBuffers, services: &[Service]) {
    if server.directory.is_some() {
        return;
    }
    let needs_files = |buffer: RequestBuffer| buffer.max_bytes > buffer.memory_bytes;
    for service in services {
        if service.rules.any(|settings| settings.buffer.is_some_and(needs_files)) {
            let reason = "max_bytes is more than memory_bytes, so larger bodies are written to files: set \
                          server.request_buffers.directory, or make max_bytes smaller";
            root.mistake(&format!("services.{}.buffer_requests", service.name), reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, ConfigError, parse};

    fn configured(server: &str, service: &str, rule: &str) -> Result<Config, ConfigError> {
        parse(&format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\n{server}\n[services.app]\nactive = \"blue\"\n{service}\n\
             [services.app.backends.blue]\nendpoints = [\"127.0.0.1:1\"]\n\
             [[services.app.paths]]\nmatch = \"/a\"\n{rule}\n"
        ))
    }

    const DIRECTORY: &str = "request_buffers = { directory = \"/tmp\" }";

    #[test]
    fn a_table_changes_what_it_names_and_a_path_begins_with_its_service() {
        let of = |service: &str, rule: &str| {
            let config = configured(DIRECTORY, service, rule).unwrap();
            let rules = &config.services[0].rules;
            ["/", "/a"].map(|path| {
                let buffer = rules.at(rules.find(path.as_bytes())).buffer?;
                Some((buffer.max_bytes >> 10, buffer.memory_bytes >> 10))
            })
        };
        let default = Some((1024, 1024));
        assert_eq!(of("", ""), [None, None]);
        assert_eq!(of("buffer_requests = true", ""), [default, default]);
        assert_eq!(of("buffer_requests = true", "buffer_requests = false"), [default, None]);
        assert_eq!(of("", "buffer_requests = true"), [None, default]);
        let service = "buffer_requests = { max_bytes = \"8MiB\", memory_bytes = \"64KiB\" }";
        assert_eq!(of(service, ""), [Some((8192, 64)); 2]);
        assert_eq!(
            of(service, "buffer_requests = { memory_bytes = \"128KiB\" }"),
            [Some((8192, 64)), Some((8192, 128))]
        );
        assert_eq!(of("buffer_requests = { max_bytes = \"16KiB\" }", ""), [Some((16, 16)); 2]);
        assert_eq!(of("buffer_requests = { memory_bytes = \"2MiB\" }", ""), [Some((2048, 2048)); 2]);
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        for (server, buffer, key, reason) in [
            ("", "1", "services.app.buffer_requests", "expected"),
            ("", "{ max_bytes = \"1B\" }", "services.app.buffer_requests.max_bytes", "out of range"),
            ("", "{ max_bytes = \"2MiB\" }", "services.app.buffer_requests", "request_buffers.directory"),
            (
                DIRECTORY,
                "{ max_bytes = \"2KiB\", memory_bytes = \"4KiB\" }",
                "services.app.buffer_requests.memory_bytes",
                "more than max_bytes",
            ),
            ("", "{ file = true }", "services.app.buffer_requests.file", "unknown key"),
            ("request_buffers = { directory = 1 }", "true", "server.request_buffers.directory", "expected"),
            ("request_buffers = { path = \"/\" }", "true", "server.request_buffers.path", "unknown key"),
        ] {
            let found = match configured(server, &format!("buffer_requests = {buffer}"), "") {
                Err(ConfigError::Mistakes(found)) => found.0,
                other => panic!("{server} {buffer}: {other:?}"),
            };
            let named = found.iter().any(|mistake| mistake.key == key && mistake.reason.contains(reason));
            assert!(named, "{server} {buffer}: {found:?}");
        }
    }
}
