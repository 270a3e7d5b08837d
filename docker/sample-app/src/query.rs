//! The query string of a request. All values are numbers, so nothing needs decoding.

use std::ops::RangeInclusive;

use hyper::Uri;

use crate::reply::Rejection;

/// The `name=value` pairs of one request. The first value of a name counts; unknown names are ignored.
#[derive(Clone, Copy)]
pub(crate) struct Query<'a>(&'a str);

impl<'a> Query<'a> {
    pub(crate) fn of(uri: &'a Uri) -> Self {
        Self(uri.query().unwrap_or_default())
    }

    /// The number `name`, if given. A number out of range is rejected, not clamped.
    pub(crate) fn number(self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, Rejection> {
        let mut pairs = self.0.split('&').filter_map(|pair| pair.split_once('='));
        match pairs.find(|(key, _)| *key == name) {
            None => Ok(None),
            Some((_, value)) => number(name, value, range).map(Some),
        }
    }
}

/// Reads a number from a query or a path.
pub(crate) fn number(name: &str, value: &str, range: RangeInclusive<u64>) -> Result<u64, Rejection> {
    value.parse().ok().filter(|number| range.contains(number)).ok_or_else(|| {
        Rejection::bad_request(format!("{name} must be a number from {} to {}", range.start(), range.end()))
    })
}
