//! Every uh-proxy configuration in `config/` passes the real parser.

use std::fs;
use std::path::Path;

#[test]
fn the_shipped_configuration_is_accepted() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config");
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy();
        if name.starts_with("uh-proxy") && name.ends_with(".toml") {
            uh_proxy::config::load(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            seen += 1;
        }
    }
    assert!(seen > 0, "there is no configuration to check");
}
