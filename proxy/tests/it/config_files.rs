//! Every uh-proxy configuration in `config/` and `docker/` passes the real parser.

use std::fs;
use std::path::Path;

#[test]
fn the_shipped_configuration_is_accepted() {
    let folder = |name| Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    let files = ["config", "docker"].into_iter().flat_map(|name| fs::read_dir(folder(name)).unwrap());
    let mut seen = 0;
    for entry in files {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy();
        if name.starts_with("uh-proxy") && name.ends_with(".toml") {
            uh_proxy::config::load(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            seen += 1;
        }
    }
    assert!(seen >= 3, "{seen} configurations were checked");
}
