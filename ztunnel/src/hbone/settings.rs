//! The numbers of HBONE connections. On the wire they are Istio's.

use std::time::Duration;

/// The largest window (RFC 9113, 6.9.1).
pub(super) const LARGEST_WINDOW: u32 = (1 << 31) - 1;
/// The smallest and the largest value of SETTINGS_MAX_FRAME_SIZE (RFC 9113, 6.5.2).
const FRAME_SIZES: (u32, u32) = (1 << 14, (1 << 24) - 1);
/// Streams that the client resets before this side has looked at them; more in one go ends the connection
/// (CVE-2023-44487). A client that dies with all its streams in the making is not an attack.
const RESETS_BEFORE_ACCEPT: usize = 256;
/// Streams that this side has reset and still knows, so that what is under way for them is ignored. What comes for a
/// forgotten one counts as an error.
const RESETS_REMEMBERED: usize = 1024;
/// For how long: any round trip.
const RESET_MEMORY: Duration = Duration::from_secs(30);
/// Errors in streams that the peer may make in a connection's life. h2's 1024 could be used up over months by frames that
/// cross a reset; a peer that makes errors on purpose (CVE-2025-8671) gets this far in a moment.
const STREAM_ERRORS: usize = 16_384;
/// h2 counts 256 bytes against this for each small DATA frame that nobody has fetched, and ends the connection, with all
/// its streams, when it is used up. A burst of 1-byte messages to a worker that was busy for a moment must not do that.
const SMALL_FRAMES: usize = 32 << 20;

/// The numbers of HBONE connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What one stream may have under way to this side: the most memory a slow reader costs.
    pub stream_window: u32,
    /// What all streams of a connection may have under way together.
    pub connection_window: u32,
    /// The largest frame that is accepted.
    pub frame_size: u32,
    /// Streams that a client may have open on one connection.
    pub max_streams: u32,
    /// Bytes of a request's headers, as HTTP/2 counts them.
    pub request_header_bytes: u32,
    /// Bytes of a response's headers.
    pub response_header_bytes: u32,
    /// What one stream may have waiting to be sent, in bytes of its buffers.
    pub send_buffer: usize,
    /// A peer that has been silent for this long is asked for a sign of life.
    pub ping_interval: Duration,
    /// One that stays silent for this long after it was asked is dead.
    pub ping_timeout: Duration,
    /// Streams that a client puts on one connection before it makes another.
    pub streams_per_connection: usize,
    /// Connections to one place.
    pub connections_per_key: usize,
    /// A client closes a connection that has had no stream for this long; a server after twice the time, so that it is
    /// the client that does it.
    pub idle_release: Duration,
    /// How long a peer may take to answer a CONNECT: longer than the 10 s that it gives the application.
    pub response_timeout: Duration,
    /// How long a connection may take to come about, and a stream may wait for one.
    pub dial_timeout: Duration,
    /// A client that has not begun to speak HTTP/2 after this long is closed.
    pub preface_timeout: Duration,
    /// A client that has opened no stream after this long is closed.
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
    /// How many stalled tunnels make a connection one that takes no further ones: one less than fill its window.
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

    /// Streams on one connection; never none, or nothing would ever get through.
    pub(super) fn slots(&self) -> usize {
        self.streams_per_connection.max(1)
    }

    /// When a server closes a connection without streams.
    pub(super) fn server_idle(&self) -> Duration {
        self.idle_release.saturating_mul(2)
    }

    fn h2_send_buffer(&self) -> usize {
        self.send_buffer.min(LARGEST_WINDOW as usize)
    }
}
