//! The numbers of HBONE connections. On the wire they are Istio's.

use std::time::Duration;

/// The largest window (RFC 9113, 6.9.1).
pub(super) const LARGEST_WINDOW: u32 = (1 << 31) - 1;
/// The smallest and the largest value of SETTINGS_MAX_FRAME_SIZE (RFC 9113, 6.5.2).
const FRAME_SIZES: (u32, u32) = (1 << 14, (1 << 24) - 1);
/// Streams that the client resets before this side has accepted them; more of them at once end the connection
/// (CVE-2023-44487). A client that dies while it opens all its streams is not an attack.
const RESETS_BEFORE_ACCEPT: usize = 256;
/// Streams that this side has reset and still remembers, so that frames on the way to them are ignored. A frame for a forgotten
/// stream counts as an error.
const RESETS_REMEMBERED: usize = 1024;
/// How long they are remembered: longer than any round trip.
const RESET_MEMORY: Duration = Duration::from_secs(30);
/// Stream errors that the peer may make during a connection. Frames that cross a reset could use up h2's default of 1024 over
/// months. A peer that makes errors on purpose (CVE-2025-8671) reaches this limit in a moment.
const STREAM_ERRORS: usize = 16_384;
/// The budget for small DATA frames that have not been read: h2 counts 256 bytes for each, and ends the connection with all its
/// streams when the budget is used up. A burst of 1-byte messages to a worker that is busy for a moment must not use it up.
const SMALL_FRAMES: usize = 32 << 20;

/// The numbers of HBONE connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Bytes that the peer may send on one stream before they are read: the largest memory cost of a slow reader.
    pub stream_window: u32,
    /// Bytes that the peer may send on all streams of a connection together before they are read.
    pub connection_window: u32,
    /// The largest frame that is accepted, in bytes.
    pub frame_size: u32,
    /// Streams that a client may have open on one connection.
    pub max_streams: u32,
    /// Bytes of a request's headers, as HTTP/2 counts them.
    pub request_header_bytes: u32,
    /// Bytes of a response's headers.
    pub response_header_bytes: u32,
    /// Bytes of buffers that may wait to be sent on one stream.
    pub send_buffer: usize,
    /// A peer that has sent nothing for this long gets a PING.
    pub ping_interval: Duration,
    /// A peer that sends nothing for this long after the PING is dead.
    pub ping_timeout: Duration,
    /// Streams that a client opens on one connection before it makes another.
    pub streams_per_connection: usize,
    /// Connections with the same key.
    pub connections_per_key: usize,
    /// A client closes a connection that has had no stream for this long. A server waits twice the time, so that usually the
    /// client closes first.
    pub idle_release: Duration,
    /// How long a peer may take to answer a CONNECT: longer than the 10 s that it waits for the application.
    pub response_timeout: Duration,
    /// How long a dial may take, and how long a stream may wait for a connection.
    pub dial_timeout: Duration,
    /// The connection of a client that has sent no HTTP/2 preface after this time is closed.
    pub preface_timeout: Duration,
    /// The connection of a client that has opened no stream after this time is closed.
    pub first_stream_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            stream_window: 4 << 20,
            connection_window: 16 << 20,
            frame_size: 1 << 20,
            max_streams: 200,
            request_header_bytes: 64 << 10,
            response_header_bytes: 16 << 10,
            send_buffer: 256 << 10,
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(10),
            streams_per_connection: 100,
            connections_per_key: 64,
            idle_release: Duration::from_secs(300),
            response_timeout: Duration::from_secs(15),
            dial_timeout: Duration::from_secs(20),
            preface_timeout: Duration::from_secs(5),
            first_stream_timeout: Duration::from_secs(60),
        }
    }
}

impl Settings {
    /// The number of stalled streams from which a connection gets no further ones: one less than the number that fills its
    /// window.
    pub(super) fn stalls(&self) -> usize {
        (self.connection_window / self.stream_window.max(1)).saturating_sub(1).max(1) as usize
    }

    /// The server's side of a connection.
    pub(super) fn server(&self) -> h2::server::Builder {
        let mut builder = h2::server::Builder::new();
        builder
            .initial_window_size(self.stream_window.min(LARGEST_WINDOW))
            .initial_connection_window_size(self.connection_window.min(LARGEST_WINDOW))
            .max_frame_size(self.frame_size.clamp(FRAME_SIZES.0, FRAME_SIZES.1))
            .max_concurrent_streams(self.max_streams)
            .max_header_list_size(self.request_header_bytes)
            .max_send_buffer_size(self.h2_send_buffer())
            .max_pending_accept_reset_streams(RESETS_BEFORE_ACCEPT)
            .max_concurrent_reset_streams(RESETS_REMEMBERED)
            .reset_stream_duration(RESET_MEMORY)
            .max_local_error_reset_streams(Some(STREAM_ERRORS))
            .data_frame_budget(SMALL_FRAMES);
        builder
    }

    /// The client's side of a connection.
    pub(super) fn client(&self) -> h2::client::Builder {
        let mut builder = h2::client::Builder::new();
        builder
            .enable_push(false)
            .initial_window_size(self.stream_window.min(LARGEST_WINDOW))
            .initial_connection_window_size(self.connection_window.min(LARGEST_WINDOW))
            .max_frame_size(self.frame_size.clamp(FRAME_SIZES.0, FRAME_SIZES.1))
            .max_header_list_size(self.response_header_bytes)
            .initial_max_send_streams(self.slots())
            .max_send_buffer_size(self.h2_send_buffer())
            .max_concurrent_reset_streams(RESETS_REMEMBERED)
            .reset_stream_duration(RESET_MEMORY)
            .max_local_error_reset_streams(Some(STREAM_ERRORS))
            .data_frame_budget(SMALL_FRAMES);
        builder
    }

    /// The number of streams on one connection, at least 1.
    pub(super) fn slots(&self) -> usize {
        self.streams_per_connection.max(1)
    }

    /// The time after which a server closes a connection without streams.
    pub(super) fn server_idle(&self) -> Duration {
        self.idle_release.saturating_mul(2)
    }

    fn h2_send_buffer(&self) -> usize {
        self.send_buffer.min(LARGEST_WINDOW as usize)
    }
}
