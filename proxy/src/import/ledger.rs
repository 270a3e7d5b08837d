//! What happened to each directive. One without an entry at the end changes behaviour, so nothing is dropped in silence.

use super::files;
use super::syntax::{Block, Directive};
use super::table::{self, Class};

/// Longer directives are cut in the report.
const MAX_SHOWN: usize = 100;

/// Where in the configuration a directive stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Scope {
    Main,
    /// The server with this number.
    Server(usize),
    /// The location with this number.
    Location(usize),
}

/// What happened to one directive.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fate {
    class: Class,
    why: String,
    scope: Scope,
}

/// What happened to all of them, by their numbers.
#[derive(Debug)]
pub(super) struct Ledger {
    fates: Vec<Option<Fate>>,
}

/// A directive in the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// `file:line`
    pub place: String,
    /// The directive, as it is written.
    pub directive: String,
    /// What happened to it.
    pub class: Class,
    /// Why, and what to do. Empty if it was carried over.
    pub why: String,
    pub(super) scope: Scope,
}

impl Ledger {
    pub(super) fn new(count: usize) -> Self {
        Self { fates: vec![None; count] }
    }

    /// Records what happened. If a directive has several effects, the worst counts.
    pub(super) fn set(&mut self, id: usize, class: Class, scope: Scope, why: impl Into<String>) {
        let Some(fate) = self.fates.get_mut(id) else { return };
        if fate.as_ref().is_none_or(|fate| fate.class < class) {
            *fate = Some(Fate { class, why: why.into(), scope });
        }
    }

    /// Records what happened, unless it is known.
    pub(super) fn set_rest(&mut self, id: usize, class: Class, scope: Scope, why: &str) {
        if self.fates.get(id).is_some_and(Option::is_none) {
            self.set(id, class, scope, why);
        }
    }

    pub(super) fn carried(&mut self, directive: &Directive, scope: Scope) {
        self.set(directive.id, Class::Carried, scope, "");
    }

    /// With the words of the table.
    pub(super) fn by_table(&mut self, directive: &Directive, class: Class, scope: Scope) {
        self.set(directive.id, class, scope, table::words(&directive.name, class));
    }

    pub(super) fn changes(&mut self, directive: &Directive, scope: Scope, why: impl Into<String>) {
        self.set(directive.id, Class::Changes, scope, why);
    }

    pub(super) fn look(&mut self, directive: &Directive, scope: Scope, why: impl Into<String>) {
        self.set(directive.id, Class::Look, scope, why);
    }

    /// A directive for which there is no code: the table knows, or nobody.
    pub(super) fn rest(&mut self, directive: &Directive, scope: Scope) {
        if directive.name == "include" {
            if files::is_needless(directive.arg(0)) {
                return self.set(directive.id, Class::NotNeeded, scope, "nothing in it is needed");
            }
            return self.carried(directive, scope);
        }
        let (class, why) = match table::find(&directive.name) {
            Some(row) if row.class != Class::Carried => (row.class, row.plain()),
            Some(_) => (
                Class::Changes,
                "not understood here; write it as in docs/from-nginx.md, or remove it".into(),
            ),
            None if table::is_script(&directive.name) => {
                (Class::Changes, "Lua and JavaScript aren't understood; move it to the app".into())
            }
            None => (Class::Changes, "unknown; find out what it does, or remove it".into()),
        };
        self.set(directive.id, class, scope, why);
        self.inside(directive, class, scope);
    }

    /// What is in a block shares its fate.
    pub(super) fn inside(&mut self, directive: &Directive, class: Class, scope: Scope) {
        let why = format!("as {} in line {}", directive.name, directive.place.line);
        let mut blocks: Vec<&Directive> = directive.inner().iter().collect();
        while let Some(inner) = blocks.pop() {
            self.set(inner.id, class, scope, why.as_str());
            blocks.extend(inner.inner());
        }
    }

    /// Every directive, in order.
    pub(super) fn notes(&self, root: &Block) -> Vec<Note> {
        let mut notes = Vec::new();
        self.collect(root, &mut notes);
        notes
    }

    fn collect(&self, block: &Block, notes: &mut Vec<Note>) {
        for directive in &block.directives {
            let fate = self.fates.get(directive.id).cloned().flatten().unwrap_or_else(|| Fate {
                class: Class::Changes,
                why: "not understood at this place".to_owned(),
                scope: Scope::Main,
            });
            notes.push(Note {
                place: directive.place.to_string(),
                directive: shown(directive),
                class: fate.class,
                why: fate.why,
                scope: fate.scope,
            });
            if let Some(block) = &directive.block {
                self.collect(block, notes);
            }
        }
    }
}

fn shown(directive: &Directive) -> String {
    let line = directive.line();
    let mut text: String =
        line.chars().take(MAX_SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.chars().count() > MAX_SHOWN {
        text.push('…');
    }
    text
}
