//! The mapping: what happens to each directive of nginx. The importer reads it, and the table in docs/from-nginx.md is
//! made of it.
//!
//! What a directive becomes is decided where it is read (`read`), if its row says that it is carried over. All others
//! need no code. A directive without a row changes behaviour, because nobody knows what it does.

mod rows;

use std::fmt;

pub(super) use rows::rows;

/// What happens to a directive. If several apply, the last one does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// It became a key, or follows from the result.
    Carried,
    /// uh-proxy does it without configuration, or it has no meaning there.
    NotNeeded,
    /// A person must decide.
    Look,
    /// uh-proxy can't do it, so requests are handled differently.
    Changes,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Carried => "carried over",
            Self::NotNeeded => "not needed",
            Self::Changes => "changes behaviour",
            Self::Look => "look at this",
        })
    }
}

/// Where the example of a row stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Context {
    Main,
    Http,
    Server,
    Location,
    Upstream,
}

/// What happens to some directives, in one form.
#[derive(Debug)]
#[cfg_attr(not(test), expect(dead_code, reason = "the documentation is made of the examples, by a test"))]
pub(super) struct Row {
    /// Their names.
    pub(super) names: &'static [&'static str],
    /// An example, complete enough to be imported. Empty: the names, with any arguments.
    pub(super) example: &'static str,
    /// Where the example stands.
    pub(super) context: Context,
    /// What happens to it.
    pub(super) class: Class,
    /// The key it becomes, why it isn't needed, or what to do. Markdown, with links relative to docs/.
    pub(super) what: &'static str,
}

const fn row(
    names: &'static [&'static str],
    example: &'static str,
    context: Context,
    class: Class,
    what: &'static str,
) -> Row {
    Row { names, example, context, class, what }
}

/// A row for any form of its directives.
const fn any(names: &'static [&'static str], context: Context, class: Class, what: &'static str) -> Row {
    row(names, "", context, class, what)
}

/// The first row for a directive, which isn't for one of its special forms.
pub(super) fn find(name: &str) -> Option<&'static Row> {
    rows().find(|row| row.names.contains(&name))
}

/// What the first row of a directive with this class says.
pub(super) fn words(name: &str, class: Class) -> String {
    let row = rows().find(|row| row.class == class && row.names.contains(&name));
    row.map(Row::plain).unwrap_or_default()
}

/// Whether a directive is one of Lua or njs.
pub(super) fn is_script(name: &str) -> bool {
    name.contains("_by_lua") || name.starts_with("lua_") || name.starts_with("js_")
}

impl Row {
    /// What it says, without links.
    pub(super) fn plain(&self) -> String {
        let mut text = String::new();
        let mut rest = self.what;
        while let Some((before, after)) = rest.split_once("](") {
            let Some((_, next)) = after.split_once(')') else { break };
            let mut depth = 0_i32;
            // The words may have brackets of their own: [`[server.acme]`](acme.md).
            let start = before.rfind(|c| {
                depth += match c {
                    ']' => 1,
                    '[' => -1,
                    _ => 0,
                };
                depth < 0
            });
            match start {
                Some(start) => text.extend([&before[..start], &before[start + 1..]]),
                None => text.push_str(before),
            }
            rest = next;
        }
        text + rest
    }
}

#[cfg(test)]
mod tests;
