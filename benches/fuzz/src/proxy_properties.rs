//! Properties of every configuration and state file of uh-proxy, whatever their bytes.

use uh_proxy::config::{self, Config};
use uh_proxy::state::file::{StateError, StateFile};

/// No configuration panics, and what is accepted is valid.
pub(crate) fn of_config(bytes: &[u8]) -> Result<(), String> {
    let text = String::from_utf8_lossy(bytes);
    let config = match config::parse(&text) {
        Ok(config) => config,
        Err(error) => {
            return if error.to_string().is_empty() { Err("it says nothing".to_owned()) } else { Ok(()) };
        }
    };
    for service in &config.services {
        let names: Vec<_> = service.backends.iter().map(|backend| &backend.name).collect();
        let well = names.contains(&&service.active)
            && service.backends.iter().all(|backend| !backend.endpoints.is_empty())
            && (1..names.len()).all(|at| !names[at..].contains(&names[at - 1]));
        let (timeouts, health) = (&service.rules.own().timeouts, &service.health);
        let never_zero =
            [timeouts.connect, timeouts.read, timeouts.write, timeouts.client].into_iter().chain([
                timeouts.tunnel_idle,
                health.interval,
                health.timeout,
                service.rules.own().limits.rate_window,
            ]);
        let whole = service.path_prefix.starts_with('/') && health.path.starts_with('/');
        if !well || !whole || never_zero.into_iter().any(|time| time.is_zero()) {
            return Err(format!("accepted: {service:?}"));
        }
    }
    // There is no such key in any table.
    match config::parse(&format!("{text}\nno-such-key = 1\n")) {
        Ok(_) => Err("a key that nobody knows is accepted".to_owned()),
        Err(_) => Ok(()),
    }
}

/// No state file panics, what is read can be written, and what is written is read back unchanged.
pub(crate) fn of_state(bytes: &[u8], config: &Config) -> Result<(), String> {
    let mut state = match StateFile::parse(bytes) {
        Ok(state) => state,
        // What the checksum protects must hold as well: anyone can compute a valid checksum.
        Err(StateError::Checksum { found, right }) => {
            let text = String::from_utf8_lossy(bytes);
            if found.is_empty() || text.matches(found.as_str()).count() != 1 {
                return Ok(());
            }
            let Ok(state) = StateFile::parse(text.replace(&found, &right).as_bytes()) else { return Ok(()) };
            state
        }
        Err(_) => return Ok(()),
    };
    for service in &config.services {
        let _ = state.record(&service.name, true);
    }
    // A file of the old scripts, or of a newer version with known fields, is written in this version's format.
    state.schema = 1;
    let text = state.text().map_err(|e| e.to_string())?;
    match StateFile::parse(&text) {
        Ok(again) if again == state => Ok(()),
        other => Err(format!("{state:?} became {other:?}")),
    }
}
