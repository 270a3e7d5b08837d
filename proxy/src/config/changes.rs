//! The difference between two configuration files, by key.

use toml::{Table, Value};

/// The keys of `[server]` that only take effect at a restart: bound sockets, held files and running threads.
const AT_START: [&str; 10] = [
    "admin_socket",
    "admin_users",
    "keeper",
    "listen",
    "listen_h2c",
    "listen_tls",
    "log",
    "metrics",
    "state_file",
    "threads",
];

/// The full keys of all values that differ, sorted. A table that is missing in one of the files is listed as a whole,
/// and so is a list.
#[must_use]
pub(crate) fn changed_keys(old: &str, new: &str) -> Vec<String> {
    let (old, new): (Table, Table) = (old.parse().unwrap_or_default(), new.parse().unwrap_or_default());
    let mut keys = Vec::new();
    compare("", &old, &new, &mut keys);
    keys.sort();
    keys
}

/// Whether a key only takes effect at a restart.
#[must_use]
pub(crate) fn needs_restart(key: &str) -> bool {
    // A table that is missing in one of the files is listed as a whole.
    key.strip_prefix("server.").is_some_and(|key| AT_START.contains(&key))
}

fn compare(path: &str, old: &Table, new: &Table, keys: &mut Vec<String>) {
    let full = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    for (key, value) in old {
        match (value, new.get(key)) {
            (Value::Table(old), Some(Value::Table(new))) => compare(&full(key), old, new, keys),
            (old, Some(new)) if old == new => {}
            _ => keys.push(full(key)),
        }
    }
    keys.extend(new.keys().filter(|key| !old.contains_key(*key)).map(|key| full(key)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_keys_are_named_in_full() {
        let old = "[server]\nlisten = [\"a\"]\n[services.app]\nactive = \"blue\"\n[services.app.timeouts]\nread = \"1s\"";
        let new = "[server]\nlisten = [\"b\"]\n[services.app]\nactive = \"blue\"\n[services.app.timeouts]\nread = \"2s\"\n[services.web]\nactive = \"a\"";
        assert_eq!(changed_keys(old, new), ["server.listen", "services.app.timeouts.read", "services.web"]);
        assert_eq!(changed_keys(new, old), changed_keys(old, new));
        assert!(changed_keys(old, old).is_empty());
    }

    #[test]
    fn what_is_bound_or_held_needs_a_restart() {
        assert!(needs_restart("server.listen") && needs_restart("server.threads"));
        for key in ["server.limits", "server.access_log", "server.listener", "services.app.listen"] {
            assert!(!needs_restart(key), "{key}");
        }
    }
}
