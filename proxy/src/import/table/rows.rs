//! The rows, in the order of the documentation.

mod apps;
mod hosts;
mod messages;
mod rest;

use super::Row;

/// All rows, in groups. Of the rows for a directive, the first one is for what no other form says.
const GROUPS: [&[Row]; 4] = [hosts::ROWS, apps::ROWS, messages::ROWS, rest::ROWS];

/// All rows.
pub(in crate::import) fn rows() -> impl Iterator<Item = &'static Row> {
    GROUPS.into_iter().flatten()
}
