//! Files near valid ones, and a minimal case of what fails. `UH_FUZZ_CASES=1000000 cargo test near::` takes longer.

use std::fs;

use uh_testkit::fuzz::mutate::{fuzz, near};
use uh_testkit::fuzz::words::{CONFIG_WORDS, DEPLOY_WORDS, JSON_WORDS, STATE_WORDS, TOML_WORDS};
use uh_testkit::process::run;
use uh_testkit::uh_deploy::UhDeploy;
use uh_testkit::uh_proxy::Setup;
use uh_testkit::wait::{SOON, free_address};

use crate::files::{config_seeds, deploy_config_seeds, small_config, state_seeds};
use crate::{deploy_properties, proxy_properties};

#[test]
fn no_proxy_configuration_panics_and_what_is_accepted_can_be_meant() {
    let made = Setup::new("/x".as_ref(), "127.0.0.1:1", "127.0.0.1:2").config().into_bytes();
    let seeds = config_seeds().into_iter().chain([made]);
    fuzz(3000, near(seeds, &[TOML_WORDS, CONFIG_WORDS]), &[], proxy_properties::of_config);
}

#[test]
fn no_state_file_panics_and_what_is_read_can_be_written() {
    let near = near(state_seeds(), &[JSON_WORDS, STATE_WORDS]);
    fuzz(5000, near, &[], |bytes| proxy_properties::of_state(bytes, small_config()));
}

#[test]
fn no_deploy_configuration_panics() {
    let near = near(deploy_config_seeds(), &[TOML_WORDS, DEPLOY_WORDS]);
    fuzz(3000, near, &[], deploy_properties::of_config);
}

#[tokio::test]
async fn no_journal_panics_and_reading_it_twice_gives_the_same_result() {
    let dir = tempfile::tempdir().unwrap();
    let addresses = [free_address(), free_address()];
    let setup = Setup::new(dir.path(), addresses[0], addresses[1]).active("green");
    let _proxy = setup.start().await.unwrap();
    let mut deploy = UhDeploy::new(dir.path(), &setup.socket(), addresses).unwrap();
    deploy.add("[deploy]\nsettle = \"20ms\"\n[health]\ninterval = \"20ms\"\nsuccesses = 1");
    deploy.configure("uh-deploy.toml", "").unwrap();
    for args in
        [&["blue-green", "--version", "1.0.0"][..], &["blue-green", "--version", "1.0.1"], &["rollback"]]
    {
        let ran = run(deploy.command("uh-deploy.toml", args).unwrap(), SOON).await.unwrap();
        assert!(ran.status.success(), "{args:?}: {}", ran.output);
    }
    let journal = fs::read_to_string(deploy.state_dir().join("journal.jsonl")).unwrap();
    // An incomplete operation is valid too.
    let unfinished: String = journal.lines().take(4).map(|line| line.to_owned() + "\n").collect();
    let near = near([journal, unfinished], &[TOML_WORDS, JSON_WORDS, DEPLOY_WORDS]);
    let scratch = tempfile::tempdir().unwrap();
    fuzz(2000, near, &[], |bytes| deploy_properties::of_journal(bytes, scratch.path()));
}
