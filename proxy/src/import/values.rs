//! nginx's times, sizes and regular expressions.

use std::time::Duration;

/// `30`, `500ms`, `1h 30m`: nginx's default unit is a second.
pub(super) fn time(text: &str) -> Option<Duration> {
    let mut total = 0_u64;
    let mut rest = text.trim();
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let (unit, ms) = [
            ("ms", 1),
            ("s", 1_000),
            ("m", 60_000),
            ("h", 3_600_000),
            ("d", 86_400_000),
            ("w", 604_800_000),
            ("M", 2_592_000_000),
            ("y", 31_536_000_000),
            ("", 1_000),
        ]
        .into_iter()
        .find(|(unit, _)| rest.starts_with(unit))?;
        rest = rest[unit.len()..].trim_start();
        total = total.checked_add(number.checked_mul(ms)?)?;
    }
    (!text.trim().is_empty()).then(|| Duration::from_millis(total))
}

/// `20m`, `512k`, `1g`, in bytes.
pub(super) fn size(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().ok()?;
    let factor = match text[digits..].to_ascii_lowercase().as_str() {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(factor)
}

/// A duration as uh-proxy reads it.
pub(super) fn duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    match ms {
        0 => "0s".to_owned(),
        ms if ms % 3_600_000 == 0 => format!("{}h", ms / 3_600_000),
        ms if ms % 60_000 == 0 && ms > 120_000 => format!("{}m", ms / 60_000),
        ms if ms % 1_000 == 0 => format!("{}s", ms / 1_000),
        ms => format!("{ms}ms"),
    }
}

/// A size as uh-proxy reads it.
pub(super) fn bytes(bytes: u64) -> String {
    match bytes {
        0 => "0B".to_owned(),
        b if b % (1 << 30) == 0 => format!("{}GiB", b >> 30),
        b if b % (1 << 20) == 0 => format!("{}MiB", b >> 20),
        b if b % (1 << 10) == 0 => format!("{}KiB", b >> 10),
        b => format!("{b}B"),
    }
}

/// Which paths a regular expression matches, if it is a list of prefixes, paths or suffixes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Paths {
    Prefixes(Vec<String>),
    Exact(Vec<String>),
    /// Below each of these prefixes, of which there may be none.
    Suffixes(Vec<String>, Vec<String>),
}

/// The most paths of a regular expression that is a list.
const MAX_PATHS: usize = 64;

/// A part of a regular expression that is a list.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    /// `.*`
    Anything,
    /// `$`
    End,
}

/// Takes a regular expression apart. `None`: it isn't a list.
pub(super) fn regex(text: &str) -> Option<Paths> {
    let (anchored, body) = text.strip_prefix('^').map_or((false, text), |body| (true, body));
    let mut prefixes = Vec::new();
    let mut exact = Vec::new();
    let mut suffixes = Vec::new();
    let mut below = Vec::new();
    for parts in sequences(body)? {
        match parts.as_slice() {
            [Part::Text(path), Part::End] if anchored => exact.push(path.clone()),
            [Part::Text(path)] if anchored => prefixes.push(path.clone()),
            [Part::Text(path), Part::Anything] if anchored => prefixes.push(path.clone()),
            [Part::Text(path), Part::Anything, Part::End] if anchored => prefixes.push(path.clone()),
            [Part::Text(suffix), Part::End] => suffixes.push(suffix.clone()),
            [Part::Anything, Part::Text(suffix), Part::End] => suffixes.push(suffix.clone()),
            [Part::Text(path), Part::Anything, Part::Text(suffix), Part::End] if anchored => {
                below.push(path.clone());
                suffixes.push(suffix.clone());
            }
            _ => return None,
        }
    }
    // `^/api(/|$)`
    exact.retain(|path| !prefixes.contains(&format!("{path}/")));
    dedup(&mut suffixes);
    dedup(&mut below);
    let starts = |paths: &[String]| paths.iter().all(|path| path.starts_with('/'));
    match (prefixes.is_empty(), exact.is_empty(), suffixes.is_empty()) {
        (false, true, true) if starts(&prefixes) => Some(Paths::Prefixes(prefixes)),
        (true, false, true) if starts(&exact) => Some(Paths::Exact(exact)),
        (true, true, false) if starts(&below) && suffixes.iter().all(|suffix| !suffix.contains('/')) => {
            Some(Paths::Suffixes(below, suffixes))
        }
        _ => None,
    }
}

fn dedup(list: &mut Vec<String>) {
    let mut seen = Vec::new();
    list.retain(|item| {
        let new = !seen.contains(item);
        seen.push(item.clone());
        new
    });
}

/// All ways through the alternatives.
fn sequences(text: &str) -> Option<Vec<Vec<Part>>> {
    let mut all: Vec<Vec<Part>> = vec![Vec::new()];
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        let part = match c {
            '(' => {
                let group = rest.strip_prefix("?:").unwrap_or(rest);
                let (inside, after) = group.split_once(')')?;
                if inside.contains('(') {
                    return None;
                }
                rest = after;
                let mut options: Vec<Vec<Part>> = Vec::new();
                for option in inside.split('|') {
                    options.extend(sequences(option)?);
                }
                if rest.starts_with(['?', '*', '+', '{']) {
                    return None;
                }
                all = all
                    .iter()
                    .flat_map(|start| options.iter().map(move |end| joined(start, end)))
                    .take(MAX_PATHS + 1)
                    .collect();
                if all.len() > MAX_PATHS {
                    return None;
                }
                continue;
            }
            '.' => {
                rest = rest.strip_prefix(['*', '+'])?;
                rest = rest.strip_prefix('?').unwrap_or(rest);
                Part::Anything
            }
            '$' if rest.is_empty() => Part::End,
            '\\' => {
                let next = rest.chars().next().filter(|c| !c.is_alphanumeric())?;
                rest = &rest[next.len_utf8()..];
                Part::Text(next.to_string())
            }
            '^' | '$' | ')' | '|' | '[' | ']' | '{' | '}' | '?' | '*' | '+' => return None,
            c => Part::Text(c.to_string()),
        };
        if rest.starts_with(['*', '+', '{']) {
            return None;
        }
        let optional = matches!(part, Part::Text(_)) && rest.starts_with('?');
        let with: Vec<Vec<Part>> =
            all.iter().map(|start| joined(start, std::slice::from_ref(&part))).collect();
        if optional {
            rest = &rest[1..];
            all.extend(with);
        } else {
            all = with;
        }
        if all.len() > MAX_PATHS {
            return None;
        }
    }
    Some(all)
}

fn joined(start: &[Part], end: &[Part]) -> Vec<Part> {
    let mut parts = start.to_vec();
    for part in end {
        match (parts.last_mut(), part) {
            (Some(Part::Text(text)), Part::Text(more)) => text.push_str(more),
            _ => parts.push(part.clone()),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_and_sizes_are_nginxs() {
        for (text, ms) in [
            ("60", Some(60_000)),
            ("60s", Some(60_000)),
            ("1h30m", Some(5_400_000)),
            ("1d 2h", Some(93_600_000)),
            ("500ms", Some(500)),
            ("1M", Some(2_592_000_000)),
            ("", None),
            ("x", None),
            ("5x", None),
            ("99999999999999999999", None),
            ("99999999999999999y", None),
        ] {
            assert_eq!(time(text).map(|time| time.as_millis() as u64), ms, "{text}");
        }
        assert_eq!(
            (size("20m"), size("0"), size("8K"), size("m"), size("1t")),
            (Some(20 << 20), Some(0), Some(8192), None, None)
        );
    }

    #[test]
    fn regular_expressions_that_are_lists_are_understood() {
        let list = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
        let prefixes = |items: &[&str]| Some(Paths::Prefixes(list(items)));
        let exact = |items: &[&str]| Some(Paths::Exact(list(items)));
        let suffixes = |below: &[&str], items: &[&str]| Some(Paths::Suffixes(list(below), list(items)));
        for (text, expected) in [
            ("^/(api|admin)/", prefixes(&["/api/", "/admin/"])),
            ("^/(?:api|admin)(/|$)", prefixes(&["/api/", "/admin/"])),
            ("^/api/(.*)$", prefixes(&["/api/"])),
            ("^/api/.*", prefixes(&["/api/"])),
            ("^/(health|ready)$", exact(&["/health", "/ready"])),
            ("^/health/?$", exact(&["/health", "/health/"])),
            ("\\.(js|css)$", suffixes(&[], &[".js", ".css"])),
            ("\\.(?:jpe?g|woff2?)$", suffixes(&[], &[".jpg", ".jpeg", ".woff", ".woff2"])),
            (".*\\.php$", suffixes(&[], &[".php"])),
            ("^/assets/.*\\.(js|css)$", suffixes(&["/assets/"], &[".js", ".css"])),
            ("^/user/\\d+$", None),
            ("/\\.", None),
            ("/\\.(?!well-known)", None),
            ("^/[a-z]+/", None),
            ("^/(a|b(c|d))/", None),
            ("^/a|^/b", None),
            ("(", None),
            ("^/a{2}", None),
            ("api", None),
            ("", None),
        ] {
            assert_eq!(regex(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[a-z/.*+?()|^$\\\\{}0-9é]{0,40}") {
            let _ = (regex(&text), time(&text), size(&text));
        }
    }
}
