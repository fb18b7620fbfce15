//! What can be set for TCP: for a whole stack, and for one connection.

use std::time::Duration;

use super::congestion::Algorithm;
use super::rtt::RTO_FLOOR;

/// Settings of all connections of a stack that are opened from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Congestion control.
    pub congestion: Algorithm,
    /// The most that a program may queue for one connection, bytes; it begins with 64 KiB.
    pub send_buffer: usize,
    /// The most that waits for a program to read it, for one connection, bytes; it begins with 128
    /// KiB.
    pub receive_buffer: usize,
    /// The shortest retransmission timeout.
    pub min_rto: Duration,
    /// The longest delay of an acknowledgement.
    pub ack_delay: Duration,
    /// How long the ends of a closed connection are remembered.
    pub time_wait: Duration,
    /// How long a closed connection waits for the other end to finish.
    pub fin_wait: Duration,
    /// Selective acknowledgements (RFC 2018).
    pub sack: bool,
    /// Timestamps (RFC 7323).
    pub timestamps: bool,
    /// Window scaling (RFC 7323).
    pub window_scaling: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            congestion: Algorithm::Cubic,
            send_buffer: 4 << 20,
            receive_buffer: 4 << 20,
            min_rto: RTO_FLOOR,
            // Linux's `TCP_DELACK_MIN`; RFC 1122 section 4.2.3.2 allows 500 ms.
            ack_delay: Duration::from_millis(40),
            // Linux's `TCP_TIMEWAIT_LEN`; RFC 9293 section 3.4.2 has 4 minutes.
            time_wait: Duration::from_secs(60),
            fin_wait: Duration::from_secs(60),
            sack: true,
            timestamps: true,
            window_scaling: true,
        }
    }
}

/// No time of a setting is longer: as good as for ever, and it can be added to any clock.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

impl Settings {
    /// With times that clocks can take.
    pub(super) fn bounded(self) -> Self {
        Self {
            ack_delay: self.ack_delay.min(FOREVER),
            time_wait: self.time_wait.min(FOREVER),
            fin_wait: self.fin_wait.min(FOREVER),
            ..self
        }
    }

    /// The shift of our windows that lets the largest one be told (RFC 7323 section 2.2).
    pub(super) fn window_scale(&self) -> u8 {
        let fits = |shift: &u8| self.receive_buffer >> shift <= usize::from(u16::MAX);
        if self.window_scaling { (0..14).find(fits).unwrap_or(14) } else { 0 }
    }
}

/// Options of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Small segments do not wait for acknowledgements (RFC 896 is off).
    pub no_delay: bool,
    /// Ask after a peer that is silent (RFC 9293 section 3.8.4).
    pub keepalive: Option<Keepalive>,
    /// How long data may remain unacknowledged before the connection is given up (RFC 5482).
    pub user_timeout: Option<Duration>,
    /// Closing ends the connection with a RST instead of a FIN: `SO_LINGER` with 0.
    pub reset_on_close: bool,
    /// Routers that its packets may pass; `None`: as the interface has it.
    pub hop_limit: Option<u8>,
    /// The type of service, or traffic class, of its packets (RFC 2474).
    pub traffic_class: u8,
    /// The most that may be queued, bytes, if that is less than [`Settings::send_buffer`]; at least 4096.
    pub send_buffer: Option<u32>,
    /// The most that may wait to be read, bytes, if that is less than [`Settings::receive_buffer`]; at least 2048.
    /// What a peer was offered before stays offered.
    pub receive_buffer: Option<u32>,
}

/// How a silent peer is asked after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first question.
    pub idle: Duration,
    /// Time between questions.
    pub interval: Duration,
    /// Questions without an answer before the connection is given up.
    pub count: u32,
}

impl Default for Keepalive {
    /// As Linux: two hours, 75 seconds, nine times.
    fn default() -> Self {
        let (idle, interval) = (Duration::from_secs(7200), Duration::from_secs(75));
        Self { idle, interval, count: 9 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_window_can_be_told() {
        for (buffer, shift) in [(1, 0), (65_535, 0), (65_536, 1), (4 << 20, 7), (1 << 40, 14)] {
            let settings = Settings { receive_buffer: buffer, ..Settings::default() };
            assert_eq!(settings.window_scale(), shift, "{buffer}");
        }
    }
}
