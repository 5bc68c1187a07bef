//! The sockets of the server: bound, inherited from the service manager, or handed over between two
//! trackers.
//!
//! ```text
//! service manager ─┐
//! predecessor ─────┴▶ inherited ─▶ bind ─▶ workers
//!                                   └────▶ inherited::OwnedSockets ─▶ handover ─▶ successor
//! ```

pub(crate) mod bind;
pub(crate) mod bind_retry;
pub(crate) mod handover;
pub(crate) mod inherited;
pub(crate) mod listeners;
pub(crate) mod socket_file;
pub(crate) mod stream_listeners;
pub(crate) mod trial;
