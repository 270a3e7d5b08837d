//! How backends and versions are named in everything that is printed.

use uh_protocol::BackendName;

/// `blue (v1.0.0)`
pub(crate) fn named(backend: &BackendName, version: Option<&str>) -> String {
    version.map_or_else(|| backend.to_string(), |version| format!("{backend} ({})", version_text(version)))
}

/// `v1.0.0`, for both `1.0.0` and `v1.0.0`.
pub(crate) fn version_text(version: &str) -> String {
    let has_v =
        version.strip_prefix(['v', 'V']).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    if has_v { version.to_owned() } else { format!("v{version}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_shown_with_one_v() {
        let blue = "blue".parse().unwrap();
        let shown = |version| named(&blue, Some(version));
        assert_eq!(shown("1.0.0"), "blue (v1.0.0)");
        assert_eq!(shown("v1"), "blue (v1)");
        assert_eq!(shown("vivid-9"), "blue (vvivid-9)");
    }
}
