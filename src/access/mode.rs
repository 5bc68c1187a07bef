//! Whom the tracker is for.

/// What a torrent and a client need to be served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Any torrent, anybody.
    #[default]
    Open,
    /// Torrents that are registered, anybody.
    Registered,
    /// Torrents that are registered, for whoever shows a passkey.
    Private,
}

impl Mode {
    /// The setting's value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Registered => "registered",
            Self::Private => "private",
        }
    }

    /// Whether torrents have to be registered.
    pub const fn needs_registration(self) -> bool {
        !matches!(self, Self::Open)
    }
}
