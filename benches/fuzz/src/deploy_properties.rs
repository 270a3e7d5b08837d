//! Properties of every file that `uh-deploy` reads, for any bytes.

use std::fs;
use std::path::Path;
use std::rc::Rc;

use uh_controller::config;
use uh_controller::deploy::journal::{self, Journal};

/// An accepted configuration is valid.
pub(crate) fn of_config(bytes: &[u8]) -> Result<(), String> {
    let text = String::from_utf8_lossy(bytes);
    let parse = |text: &str| config::parse(text, Path::new("/nowhere"));
    let Ok(config) = parse(&text) else { return Ok(()) };
    let mut endpoints: Vec<_> =
        config.backends.iter().flat_map(|backend| &backend.endpoints).map(ToString::to_string).collect();
    let all = endpoints.len();
    endpoints.sort();
    endpoints.dedup();
    let shared = endpoints.len() < all;
    if shared || config.backends.len() < 2 || config.backends.iter().any(|b| b.endpoints.is_empty()) {
        return Err(format!("accepted: {config:?}"));
    }
    // No table has such a key.
    match parse(&format!("{text}\nno-such-key = 1\n")) {
        Ok(_) => Err("an unknown key is accepted".to_owned()),
        Err(_) => Ok(()),
    }
}

/// A journal is read or reported as damaged. Reading changes nothing. Opening removes at most an unreadable last
/// line, and gives the same result.
pub(crate) fn of_journal(bytes: &[u8], directory: &Path) -> Result<(), String> {
    let path = directory.join("journal.jsonl");
    fs::write(&path, bytes).map_err(|e| e.to_string())?;
    let read = || fs::read(&path).map_err(|e| e.to_string());
    let looked = journal::look(directory).map(|replayed| format!("{replayed:?}")).map_err(|e| e.to_string());
    if read()? != bytes {
        return Err("looking has changed it".to_owned());
    }
    for _ in 0..2 {
        let file = fs::File::options().append(true).open(&path).map_err(|e| e.to_string())?;
        let opened = Journal::open(directory, Rc::new(file))
            .map(|(_, replayed)| format!("{replayed:?}"))
            .map_err(|e| e.to_string());
        if opened != looked {
            return Err(format!("looked: {looked:?}\nopened: {opened:?}"));
        }
    }
    let left = read()?;
    // The next entry must be on its own line.
    if looked.is_ok() && !left.is_empty() && !left.ends_with(b"\n") {
        return Err("a torn line is left".to_owned());
    }
    let lost = bytes.strip_prefix(left.as_slice()).ok_or("more than its end has changed")?;
    if lost.iter().filter(|&&byte| byte == b'\n').count() > 1 {
        return Err(format!("lost: {:?}", String::from_utf8_lossy(lost)));
    }
    Ok(())
}
