//! What has become of requests that were to be buffered: the closed set of results of
//! `uh_proxy_request_buffering_total`.

/// How a request was buffered, or why it was streamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Buffered {
    /// Wholly in memory.
    Memory,
    /// Wholly, in a file.
    File,
    /// Streamed: it is larger than `max_bytes`.
    TooLarge,
    /// Streamed: it is an upload that can be resumed.
    Resumable,
    /// Streamed: all buffers together have as much memory as they may.
    MemoryFull,
    /// The same on disk.
    DiskFull,
    /// Streamed: the disk is full, or failed.
    DiskError,
}

impl Buffered {
    /// All of them, by their index.
    pub const ALL: [Self; 7] = [
        Self::Memory,
        Self::File,
        Self::TooLarge,
        Self::Resumable,
        Self::MemoryFull,
        Self::DiskFull,
        Self::DiskError,
    ];

    /// The value of the label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::File => "file",
            Self::TooLarge => "too_large",
            Self::Resumable => "resumable",
            Self::MemoryFull => "memory_full",
            Self::DiskFull => "disk_full",
            Self::DiskError => "disk_error",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_result_is_counted_in_a_place_of_its_own() {
        for (place, result) in Buffered::ALL.into_iter().enumerate() {
            assert_eq!(result as usize, place, "{}", result.as_str());
        }
    }
}
