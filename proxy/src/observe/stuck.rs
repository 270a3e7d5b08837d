//! Whether requests of a sticky service have reached the endpoint that their client had: the closed set of results of
//! `uh_proxy_sticky_total`.

/// What has become of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stuck {
    /// It reached the endpoint that its client had, or that its address says.
    Kept,
    /// Its client had none: it has no cookie, or one that no endpoint of this backend has given.
    New,
    /// It reached another one: its own fails its probes, or couldn't be reached.
    Moved,
}

impl Stuck {
    /// All of them, by their index.
    pub const ALL: [Self; 3] = [Self::Kept, Self::New, Self::Moved];

    /// The value of the label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::New => "new",
            Self::Moved => "moved",
        }
    }
}
