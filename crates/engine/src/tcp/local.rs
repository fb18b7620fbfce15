//! Connections that end at the gateway itself: to its DNS server.
//!
//! Their host stream is one end of a pair, and who answers has the other. They leave the network
//! for nowhere, so the policy is not asked; each plug may have so many of them.

use std::collections::HashMap;

use crate::context::Context;
use crate::edge::{PlugId, SocketId};

/// Such connections of one plug, and of the network. Each costs two descriptors.
const MAX_PER_PLUG: usize = 64;
const MAX_FLOWS: usize = 1024;

/// How many connections end here.
#[derive(Debug, Default)]
pub(super) struct Local {
    per_plug: HashMap<PlugId, usize>,
    total: usize,
}

impl Local {
    /// Opens a pair for a connection of `plug` and counts it: the end that is joined to the guest,
    /// and the end of who answers. `None` if there are too many, or no descriptors.
    pub(super) fn open(
        &mut self,
        cx: &mut Context<'_>,
        plug: PlugId,
    ) -> Option<(SocketId, SocketId)> {
        let of_plug = self.per_plug.get(&plug).copied().unwrap_or_default();
        if of_plug >= MAX_PER_PLUG || self.total >= MAX_FLOWS {
            cx.counters.drop("dns-streams-full");
            return None;
        }
        let pair = cx.edge.stream_pair().ok()?;
        self.per_plug.insert(plug, of_plug + 1);
        self.total += 1;
        Some(pair)
    }

    /// A connection of `plug` is over.
    pub(super) fn close(&mut self, plug: PlugId) {
        if let Some(count) = self.per_plug.get_mut(&plug) {
            *count -= 1;
            self.total -= 1;
            if *count == 0 {
                self.per_plug.remove(&plug);
            }
        }
    }
}
