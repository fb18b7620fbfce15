//! What `--so_flags` may say.

use std::time::Duration;

use netyard_stack::{Algorithm, Settings};

/// What a script is run with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flags {
    pub(crate) settings: Settings,
    /// The largest IP packet, bytes.
    pub(crate) mtu: u32,
}

impl Flags {
    /// Reads pairs `key=value` with spaces or commas between them.
    ///
    /// # Errors
    /// The first pair that is wrong, and what is taken.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut flags = Self { settings: Settings::default(), mtu: 1500 };
        for pair in text.split([' ', ',']).filter(|pair| !pair.is_empty()) {
            let known = pair.split_once('=').and_then(|(key, value)| flags.set(key, value));
            known.ok_or_else(|| {
                format!(
                    "{pair}: wanted cc=cubic|newreno, sack=0|1, timestamps=0|1, window_scaling=0|1, \
                     rmem=BYTES, wmem=BYTES, mtu=BYTES, rto_min=MS, ack_delay=MS, time_wait=MS or \
                     fin_wait=MS"
                )
            })?;
        }
        Ok(flags)
    }

    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        let settings = &mut self.settings;
        let milliseconds = || value.parse().ok().map(Duration::from_millis);
        match key {
            "cc" => settings.congestion = algorithm(value)?,
            "sack" => settings.sack = switch(value)?,
            "timestamps" => settings.timestamps = switch(value)?,
            "window_scaling" => settings.window_scaling = switch(value)?,
            "rmem" => settings.receive_buffer = value.parse().ok()?,
            "wmem" => settings.send_buffer = value.parse().ok()?,
            "mtu" => self.mtu = value.parse().ok()?,
            "rto_min" => settings.min_rto = milliseconds()?,
            "ack_delay" => settings.ack_delay = milliseconds()?,
            "time_wait" => settings.time_wait = milliseconds()?,
            "fin_wait" => settings.fin_wait = milliseconds()?,
            _ => return None,
        }
        Some(())
    }
}

fn algorithm(name: &str) -> Option<Algorithm> {
    match name {
        "cubic" => Some(Algorithm::Cubic),
        "newreno" => Some(Algorithm::NewReno),
        _ => None,
    }
}

fn switch(value: &str) -> Option<bool> {
    match value {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn pairs_change_what_they_name() {
        let flags = Flags::parse("cc=newreno, sack=0 rmem=1000,rto_min=50").unwrap();
        assert_eq!(flags.settings.congestion, Algorithm::NewReno);
        assert!(!flags.settings.sack && flags.settings.timestamps);
        assert_eq!(flags.settings.receive_buffer, 1000);
        assert_eq!(flags.settings.min_rto, Duration::from_millis(50));
        assert_eq!(Flags::parse("").unwrap().settings, Settings::default());
    }

    #[test]
    fn what_is_not_known_is_told() {
        for wrong in ["cc=bbr", "sack=yes", "sack", "mss=1000", "rmem=-1"] {
            assert!(Flags::parse(wrong).unwrap_err().starts_with(wrong));
        }
    }
}
