//! Shipped configurations as seeds.

/// A shipped configuration with its keys that are commented out.
pub(crate) fn with_all_keys(shipped: &str) -> String {
    let shown =
        |line: &str| line.strip_prefix("# ").filter(|rest| rest.contains(" = ")).unwrap_or(line).to_owned();
    shipped.lines().map(|line| shown(line) + "\n").collect()
}
