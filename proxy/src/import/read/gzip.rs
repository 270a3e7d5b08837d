//! `gzip` and what belongs to it.

use uh_http1::compression::MediaType;

use super::Reader;
use crate::import::ledger::Scope;
use crate::import::nginx::Gzip;
use crate::import::syntax::Directive;
use crate::import::table::Class;
use crate::import::values::size;

/// The bounds of `compress.min_bytes`.
const MIN_BYTES: (u64, u64) = (1, 1 << 30);

impl Reader {
    pub(super) fn gzip(&mut self, directive: &Directive, gzip: &mut Gzip, scope: Scope) {
        let first = directive.arg(0);
        let done = match directive.name.as_str() {
            "gzip_types" => {
                gzip.types.clone_from(&directive.args);
                gzip.types.retain(|name| name != "text/html" && name.parse::<MediaType>().is_ok());
                directive.args.iter().all(|name| name.parse::<MediaType>().is_ok())
            }
            "gzip_min_length" => {
                let (low, high) = MIN_BYTES;
                gzip.min_bytes = size(first).map(|bytes| bytes.clamp(low, high));
                gzip.min_bytes.is_some()
            }
            "gzip_comp_level" => {
                gzip.level = first.parse().ok().filter(|level| (1..=9).contains(level));
                gzip.level.is_some()
            }
            _ => {
                gzip.on = first == "on";
                true
            }
        };
        if done {
            self.ledger.carried(directive, scope);
        } else {
            self.ledger.by_table(directive, Class::Look, scope);
        }
    }
}
