//! Every file in `config/` that is ours goes through the real parser, as it is and with every default written out.

use std::path::Path;

use uh_controller::config;

#[test]
fn the_commented_file_is_right_and_shows_every_default() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/uh-deploy.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let commented = config::load(&path).unwrap();
    // A commented line that is an assignment with a default, and not an example.
    let written_out: String = text
        .lines()
        .map(|line| {
            let assignment = line.strip_prefix("# ").filter(|rest| {
                let name = rest.split(" = ").next().unwrap_or_default();
                rest.contains(" = ") && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
            });
            assignment.unwrap_or(line).to_owned() + "\n"
        })
        .collect();
    let written_out = config::parse(&written_out, path.parent().unwrap()).unwrap();
    assert_eq!(commented.gate, config::Gate { host: None, ..written_out.gate });
    assert_eq!(commented.deploy.warm, written_out.deploy.warm);
    assert_eq!(commented.deploy.settle, written_out.deploy.settle);
    assert_eq!(commented.deploy.state_dir, written_out.deploy.state_dir);
    assert_eq!(commented.monitor, written_out.monitor);
    assert_eq!(commented.hooks.timeout, written_out.hooks.timeout);
    assert_eq!(commented.validate.min_disk, written_out.validate.min_disk);
}
