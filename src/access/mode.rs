//! Access modes.

/// What a torrent and a client need to be served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Any torrent, any client.
    #[default]
    Open,
    /// Registered torrents, any client.
    Registered,
    /// Registered torrents, clients with a passkey.
    Private,
}

impl Mode {
    /// The value of the setting `access.mode`.
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
