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

#[test]
fn every_action_in_ci_is_pinned_and_every_job_has_a_limit() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../.github/workflows");
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let name = path.display();
        for action in text.lines().filter_map(|line| line.split_once("uses: ")).map(|(_, action)| action) {
            let version = action.split_once('@').map_or("", |(_, version)| version);
            let (hash, tag) = version.split_once(" # v").unwrap_or_default();
            let pinned = hash.len() == 40 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
            assert!(pinned && !tag.is_empty(), "{name}: {action} is not pinned as @HASH # vVERSION");
        }
        let count = |what: &str| text.matches(what).count();
        assert_eq!(count("runs-on:"), count("timeout-minutes:"), "{name}: a job has no timeout-minutes");
    }
}
