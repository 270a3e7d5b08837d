//! `split`, of a service: how long a split of its traffic lasts, and whether it may set a cookie.

use std::time::Duration;

use uh_settings::Section;
use uh_settings::units::{DAY, SECOND};

/// What applies to splits of a service's traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitSettings {
    /// How long one lasts that nobody renews.
    pub hold_timeout: Duration,
    /// Whether browsers get a cookie by which they are recognised. If not, their addresses decide.
    pub cookie: bool,
    /// Whether the old side is asked for what fails on the new one.
    pub rescue: bool,
}

/// Of a service.
pub(super) fn split(section: &mut Section) -> SplitSettings {
    SplitSettings {
        hold_timeout: section.duration("hold_timeout", 3600 * SECOND, (SECOND, 7 * DAY)),
        cookie: section.boolean("cookie", true),
        rescue: section.boolean("rescue", false),
    }
}
