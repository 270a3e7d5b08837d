//! Every configuration file of uh-deploy in `config/` passes the real parser, as it is and with every default
//! uncommented.

use std::path::Path;

use uh_controller::config;

/// The file with all commented keys uncommented, for one kind of runtime.
fn written_out(text: &str, kind: &str) -> String {
    let mut table = String::new();
    let mut written = String::new();
    for line in text.lines() {
        let bare = line.strip_prefix("# ").unwrap_or(line);
        if bare.starts_with('[') && bare.ends_with(']') {
            table = bare.to_owned();
        }
        // A release has a file of its own.
        let other =
            table.starts_with("[runtime.") && table != format!("[runtime.{kind}]") || table == "[release]";
        let name = bare.split(" = ").next().unwrap_or_default();
        let assignment = bare.contains(" = ") && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        if line.starts_with("kind = ") {
            written.push_str(&format!("kind = {kind:?}\n"));
        } else if !other && (assignment || bare == table) {
            written.push_str(&format!("{bare}\n"));
        }
    }
    written
}

#[test]
fn the_commented_file_is_valid_and_shows_every_default() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/uh-deploy.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let commented = config::load(&path).unwrap();
    for kind in ["process", "docker", "compose"] {
        let text = written_out(&text, kind);
        let written_out = config::parse(&text, path.parent().unwrap());
        let written_out = written_out.unwrap_or_else(|e| panic!("{kind}: {e}\n{text}"));
        assert_eq!(
            commented.gate,
            config::GateSettings { host: None, headers: Vec::new(), ..written_out.gate.clone() }
        );
        let deploy = |config: &config::Config| config::Deploy {
            service: None,
            proxy: commented.deploy.proxy.clone(),
            ..config.deploy.clone()
        };
        assert_eq!(deploy(&commented), deploy(&written_out));
        assert_eq!(commented.monitor, written_out.monitor);
        assert_eq!(commented.hooks.timeout, written_out.hooks.timeout);
        assert_eq!(commented.validate.min_disk, written_out.validate.min_disk);
    }
}

#[test]
fn the_commented_release_is_valid_and_shows_the_default() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/uh-deploy.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let release = text.split("# [release]").nth(1).unwrap();
    let assigned =
        |line: &str| line.strip_prefix("# ").filter(|line| line.contains(" = ")).map(str::to_owned);
    let lines: Vec<String> = release.lines().filter_map(assigned).collect();
    let dir = tempfile::tempdir().unwrap();
    let written = |lines: &[String]| {
        let file = dir.path().join("release.toml");
        std::fs::write(&file, format!("[release]\n{}\n", lines.join("\n"))).unwrap();
        config::release(&file).unwrap().unwrap()
    };
    assert_eq!(written(&lines), written(&lines[..1]));
    assert!(config::release(&path).unwrap().is_none(), "the file itself is of one service");
}

#[test]
fn the_files_of_the_container_stack_are_valid() {
    for file in ["uh-deploy.toml", "two-apps/shop.toml"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker").join(file);
        let config = config::load(&path).unwrap_or_else(|e| panic!("{file}: {e}"));
        assert!(matches!(config.runtime, config::RuntimeConfig::Docker(_)), "{file}");
    }
}
