//! Where the app is between its start and its end. `lifecycle` decides it; requests and health checks depend on it.

/// The app's phase. It only ever moves on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AppPhase {
    /// The app doesn't accept connections yet.
    Starting,
    /// The app has accepted a connection.
    Serving,
    /// The drain has started.
    Draining,
}
