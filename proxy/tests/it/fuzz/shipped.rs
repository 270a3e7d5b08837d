//! Shipped configurations as seeds.

/// A shipped configuration with its tables and keys that are commented out.
pub(crate) fn with_all_keys(shipped: &str) -> String {
    let is_name = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._".contains(&byte));
    let is_table =
        |rest: &str| rest.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).is_some_and(is_name);
    let is_pair = |rest: &str| rest.split_once(" = ").is_some_and(|(key, _)| is_name(key));
    let is_shown = |rest: &&str| is_table(rest) || is_pair(rest);
    let shown = |line: &str| line.strip_prefix("# ").filter(is_shown).unwrap_or(line).to_owned();
    shipped.lines().map(|line| shown(line) + "\n").collect()
}
