//! `compress`: which responses are compressed, of a service or of some of its paths.

use std::sync::Arc;

use uh_http1::compression::Compression;
use uh_settings::{Given, Section};

/// A longer response is always compressed, if its type is listed: more would only be a way to turn compression off.
const MAX_MIN_BYTES: u64 = 1 << 30;

/// Reads `compress`. `inherited` applies if the key is absent; a table changes only what it names.
pub(super) fn compress(
    section: &mut Section,
    inherited: Option<&Arc<Compression>>,
) -> Option<Arc<Compression>> {
    match section.given("compress") {
        None => inherited.cloned(),
        Some(Given::Boolean(false)) => None,
        Some(Given::Boolean(true)) => Some(inherited.cloned().unwrap_or_default()),
        Some(Given::Table(table)) => Some(Arc::new(of_table(table, &inherited.cloned().unwrap_or_default()))),
    }
}

fn of_table(mut section: Section, inherited: &Compression) -> Compression {
    if section.is_empty_list("types") {
        section.mistake("types", "empty: give at least one, or turn compression off with compress = false");
    }
    let level = section.integer("level", u32::from(inherited.level), (1, 9));
    Compression {
        types: section.list("types").unwrap_or_else(|| inherited.types.clone()),
        min_bytes: section.size("min_bytes", inherited.min_bytes, (1, MAX_MIN_BYTES)),
        level: u8::try_from(level).unwrap_or(inherited.level),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{ConfigError, parse};

    fn text(service: &str, rule: &str) -> String {
        format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\n[services.app]\nactive = \"blue\"\n{service}\n\
             [services.app.backends.blue]\nendpoints = [\"127.0.0.1:1\"]\n\
             [[services.app.paths]]\nmatch = \"/a\"\n{rule}\n"
        )
    }

    #[test]
    fn a_table_changes_what_it_names_and_a_path_begins_with_its_service() {
        let of = |service: &str, rule: &str| {
            let config = parse(&text(service, rule)).unwrap();
            let rules = &config.services[0].rules;
            ["/", "/a"].map(|path| {
                let compress = rules.at(rules.find(path.as_bytes())).compress.as_ref()?;
                Some((compress.types.len(), compress.min_bytes, compress.level))
            })
        };
        let default = Some((27, 1024, 6));
        assert_eq!(of("", ""), [None, None]);
        assert_eq!(of("compress = true", ""), [default, default]);
        assert_eq!(of("compress = true", "compress = false"), [default, None]);
        assert_eq!(of("", "compress = true"), [None, default]);
        assert_eq!(of("compress = false", "compress = { level = 1 }"), [None, Some((27, 1024, 1))]);
        let service = "compress = { types = [\"text/*\"], min_bytes = \"2KiB\" }";
        assert_eq!(of(service, "compress = { level = 9 }"), [Some((1, 2048, 6)), Some((1, 2048, 9))]);
        assert_eq!(of(service, "compress = true"), [Some((1, 2048, 6)); 2]);
    }

    #[test]
    fn what_is_no_compression_is_refused() {
        for (compress, key) in [
            ("\"gzip\"", "compress"),
            ("{ types = [] }", "compress.types"),
            ("{ types = [\"html\"] }", "compress.types[0]"),
            ("{ level = 0 }", "compress.level"),
            ("{ level = 10 }", "compress.level"),
            ("{ min_bytes = \"0B\" }", "compress.min_bytes"),
            ("{ min_bytes = 1024 }", "compress.min_bytes"),
            ("{ brotli = true }", "compress.brotli"),
        ] {
            let Err(ConfigError::Mistakes(found)) = parse(&text(&format!("compress = {compress}"), ""))
            else {
                panic!("{compress} passed")
            };
            let key = format!("services.app.{key}");
            assert!(found.0.iter().any(|mistake| mistake.key == key), "{compress}: {found:?}");
        }
    }
}
