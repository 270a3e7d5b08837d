//! System errors as readers want them: `Connection refused`, without the `(os error 111)` that the standard library adds.

/// The text without the numbers of system errors.
pub(crate) fn plain(text: &str) -> String {
    let Some((words, rest)) = text.split_once(" (os error ") else { return text.to_owned() };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    match rest[digits..].strip_prefix(')') {
        Some(rest) if digits > 0 => format!("{words}{}", plain(rest)),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn a_system_error_is_shown_without_its_number() {
        let error = std::io::Error::from_raw_os_error(111);
        assert_eq!(plain(&format!("a: {error}; b: {error}")), "a: Connection refused; b: Connection refused");
        assert_eq!(plain("not an (os error x)"), "not an (os error x)");
    }
}
