//! The text of an error page for visitors: title, explanation, and when to retry. Pure.

/// A title and an explanation for visitors without technical knowledge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Words {
    pub(super) title: &'static str,
    pub(super) explanation: &'static str,
}

const fn words(title: &'static str, explanation: &'static str) -> Words {
    Words { title, explanation }
}

/// The title in maintenance; the operator's message is the explanation.
pub(super) const MAINTENANCE: &str = "Down for maintenance";

/// The text for a status.
pub(super) fn of(status: u16) -> Words {
    match status {
        301..=308 => {
            words("This page has moved", "It is at another address. Your browser should go there by itself.")
        }
        403 => words("You can't open this page", "This page is only available from certain networks."),
        404 => words("Page not found", "There is no site at this address. Check it for typing errors."),
        408 => words(
            "The request took too long",
            "Your request didn't arrive in time. Your connection may be slow.",
        ),
        413 => words("This is too large", "What you tried to send is larger than this site accepts."),
        421 => words(
            "This isn't available over HTTPS",
            "There is no secure site at this address, and this site allows no other connections.",
        ),
        429 => {
            words("Too many connections", "There are too many connections from your network at the moment.")
        }
        502 => words(
            "The site isn't responding",
            "The site is running into a problem and couldn't answer your request. The fault isn't on your side.",
        ),
        503 => words(
            "The site is unavailable",
            "The site can't answer your request at the moment. The fault isn't on your side.",
        ),
        504 => words(
            "The site is too slow to answer",
            "The site didn't answer your request in time. The fault isn't on your side.",
        ),
        500.. => words(
            "This isn't supported",
            "Your browser or app asked for something that this site doesn't support.",
        ),
        _ => words(
            "The request couldn't be processed",
            "Your browser or app sent a request that this site doesn't accept.",
        ),
    }
}

/// When to retry, as a sentence. Empty: unknown.
pub(super) fn retry(after_s: Option<u32>) -> String {
    let plural = |count: u32| if count == 1 { "" } else { "s" };
    let rounded_up = |seconds: u32, unit: u32, name: &str| {
        let count = seconds.div_ceil(unit);
        format!("Please come back in about {count} {name}{}.", plural(count))
    };
    match after_s {
        None => String::new(),
        Some(0..=5) => "Please try again in a moment.".to_owned(),
        Some(seconds @ ..90) => format!("Please come back in {seconds} seconds."),
        Some(seconds @ ..5400) => rounded_up(seconds, 60, "minute"),
        Some(seconds @ ..129_600) => rounded_up(seconds, 3600, "hour"),
        Some(seconds) => rounded_up(seconds, 86_400, "day"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_to_retry_is_in_the_largest_exact_unit() {
        for (after_s, sentence) in [
            (None, ""),
            (Some(1), "Please try again in a moment."),
            (Some(30), "Please come back in 30 seconds."),
            (Some(120), "Please come back in about 2 minutes."),
            (Some(300), "Please come back in about 5 minutes."),
            (Some(5400), "Please come back in about 2 hours."),
            (Some(604_800), "Please come back in about 7 days."),
            (Some(u32::MAX), "Please come back in about 49711 days."),
        ] {
            assert_eq!(retry(after_s), sentence, "{after_s:?}");
        }
    }
}
