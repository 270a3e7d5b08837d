//! What every manifest and every source file has.

use std::fs;

use super::workspace::Workspace;

#[test]
fn every_member_takes_the_workspace_lints() {
    for member in Workspace::load().members() {
        let manifest = fs::read_to_string(&member.manifest_path).unwrap();
        let mut lines = manifest.lines().map(str::trim).skip_while(|line| *line != "[lints]").skip(1);
        assert_eq!(lines.next(), Some("workspace = true"), "[lints] of {}", member.manifest_path.display());
    }
}

#[test]
fn every_source_file_opens_with_what_it_is_for() {
    let sources = Workspace::load().sources();
    assert!(sources.iter().any(|path| path.ends_with("benches/src/lib.rs")), "{sources:?}");
    for path in sources {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//! "), "{} does not open with //!", path.display());
    }
}
