//! What can be fuzzed, and how a process comes to fuzz one of them.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use crate::{admin, body, exchange, files, proxy_protocol, request, response, shim};

/// Something that reads bytes.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    /// What holds for all bytes.
    pub(crate) check: fn(&[u8]) -> Result<(), String>,
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
    pub(crate) words: &'static [&'static [&'static str]],
}

pub(crate) const ALL: &[&Target] = &[
    &request::TARGET,
    &body::TARGET,
    &response::TARGET,
    &exchange::TARGET,
    &proxy_protocol::TARGET,
    &admin::TARGET,
    &files::CONFIG,
    &files::STATE,
    &files::JOURNAL,
    &files::DEPLOY_CONFIG,
    &files::DEPLOY_FILES,
    &shim::TARGET,
];

static TARGET: OnceLock<&Target> = OnceLock::new();

/// What the target's bytes are made of.
pub(crate) fn words() -> &'static [&'static str] {
    static WORDS: OnceLock<Vec<&str>> = OnceLock::new();
    WORDS.get_or_init(|| TARGET.get().map(|target| target.words.concat()).unwrap_or_default())
}

/// Takes the target that the environment names, and writes its seeds and its dictionary where the environment says.
pub(crate) fn prepare() {
    let name = std::env::var("UH_FUZZ_TARGET").expect("UH_FUZZ_TARGET names a target");
    let known = || ALL.iter().map(|target| target.name).collect::<Vec<_>>();
    let target = ALL.iter().find(|target| target.name == name);
    let target = target.unwrap_or_else(|| panic!("no target {name:?}: there are {:?}", known()));
    if let Some(corpus) = std::env::var_os("UH_FUZZ_CORPUS").map(PathBuf::from) {
        fs::create_dir_all(&corpus).expect("the corpus can be made");
        for (index, seed) in (target.seeds)().iter().enumerate() {
            fs::write(corpus.join(format!("seed-{index}")), seed).expect("a seed can be written");
        }
        let words = target.words.concat();
        fs::write(corpus.with_extension("dict"), dictionary(&words)).expect("the dictionary can be written");
    }
    let _ = TARGET.set(target);
}

/// Fails if the target's property does not hold.
pub(crate) fn check(bytes: &[u8]) {
    let target = TARGET.get().expect("it is prepared");
    if let Err(why) = (target.check)(bytes) {
        panic!("{why}\nof: {}", bytes.escape_ascii());
    }
}

/// In the format of libFuzzer.
fn dictionary(words: &[&str]) -> String {
    let escaped = |word: &str| word.bytes().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
    words.iter().filter(|word| !word.is_empty()).map(|word| format!("\"{}\"\n", escaped(word))).collect()
}

/// Each text behind each of these first bytes, which choose among configurations and circumstances.
pub(crate) fn behind(first: &[u8], texts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Vec<Vec<u8>> {
    let texts: Vec<_> = texts.into_iter().collect();
    let each = |first: &u8| texts.iter().map(|text| [&[*first], text.as_ref()].concat()).collect::<Vec<_>>();
    first.iter().flat_map(each).collect()
}
