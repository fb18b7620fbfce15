//! What a front end asks of the device, and what it has set up.

use std::fs::File;
use std::io;

use netyard_sys::guest_memory::{GuestMemory, Region};
use netyard_wire::Features;
use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::messages::{MAX_FILES, Message, Words, wrong};
use super::ring::{Place, Ring};

/// What of virtio we take part in. Each of these is the number of a bit.
const OFFERED: &[u32] = &[
    VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_INDIRECT_DESC,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_NET_F_MRG_RXBUF,
    // The monitor says which it is.
    VIRTIO_NET_F_MTU,
    // What the guest may leave to us.
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_USO,
    // What we may leave to the guest.
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6,
];

/// The rings, by their numbers.
pub(super) const TO_GUEST: usize = 0;
pub(super) const FROM_GUEST: usize = 1;

/// The device, as one front end sees it.
#[derive(Debug)]
pub(super) struct Backend {
    /// What the guest has agreed to; nothing, as long as that was not told.
    features: u64,
    /// What the front end has agreed to.
    protocol: u64,
    pub(super) memory: Option<GuestMemory>,
    pub(super) rings: [Ring; 2],
    /// Why the machine has no network was told.
    warned: bool,
}

impl Backend {
    pub(super) fn new() -> io::Result<Self> {
        let ring = || Ring::new().map_err(io::Error::other);
        let rings = [ring()?, ring()?];
        Ok(Self { features: 0, protocol: 0, memory: None, rings, warned: false })
    }

    fn has(&self, feature: u32) -> bool {
        self.features & (1 << feature) != 0
    }

    /// Whether the front end wants answers to the messages that say so.
    pub(super) fn answers(&self) -> bool {
        self.protocol & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0
    }

    /// Whether the guest puts chains together to have room for one frame.
    pub(super) fn merges(&self) -> bool {
        self.has(VIRTIO_NET_F_MRG_RXBUF)
    }

    /// What the guest takes.
    pub(super) fn guest_features(&self) -> Features {
        let mut features = Features::NONE;
        let taken: [(&[u32], Features); 5] = [
            (&[VIRTIO_NET_F_GUEST_CSUM], Features::CSUM),
            (&[VIRTIO_NET_F_GUEST_TSO4], Features::TSO4),
            (&[VIRTIO_NET_F_GUEST_TSO6], Features::TSO6),
            (&[VIRTIO_NET_F_GUEST_ECN], Features::ECN),
            (&[VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6], Features::USO),
        ];
        for (bits, feature) in taken {
            if bits.iter().all(|bit| self.has(*bit)) {
                features = features | feature;
            }
        }
        features
    }

    /// Looks again which rings can be used.
    pub(super) fn settle(&mut self) {
        // Headers of older guests are shorter, and in the order of their processor.
        let modern = self.has(VIRTIO_F_VERSION_1);
        let memory = self.memory.as_ref().filter(|_| modern);
        let mut why = None;
        for ring in &mut self.rings {
            if ring.settle(memory).is_err() {
                why = Some("a ring is not in its memory");
            } else if !modern && ring.is_set_up() && self.memory.is_some() {
                // QEMU 7.2 forgets what its guest agrees to while it is not connected.
                why = Some("its guest does not know virtio 1.0, or its monitor does not know so");
            }
        }
        if let Some(why) = why.filter(|_| !self.warned) {
            self.warned = true;
            tracing::warn!("a machine by vhost-user has no network: {why}");
        }
    }

    /// Tells the guest of what it has back.
    ///
    /// # Errors
    /// A ring is broken, or memory was taken away.
    pub(super) fn tell(&mut self) -> io::Result<()> {
        let Some(memory) = &self.memory else { return Ok(()) };
        let mut live = self.rings.iter_mut().filter(|ring| ring.is_live());
        live.try_for_each(|ring| ring.tell(memory.bytes()))?;
        self.check_memory()
    }

    /// # Errors
    /// Some of the memory was taken away.
    pub(super) fn check_memory(&self) -> io::Result<()> {
        if self.memory.as_ref().is_some_and(GuestMemory::is_lost) {
            return Err(wrong("memory of the machine was taken away"));
        }
        Ok(())
    }

    /// Does what a message asks; what it is to be answered, if it asks something.
    ///
    /// # Errors
    /// It is wrong, or asks for what was not offered.
    pub(super) fn handle(&mut self, message: Message) -> io::Result<Option<[u8; 8]>> {
        let Message { kind, body, mut files, .. } = message;
        let mut words = Words(&body);
        let mut answer = None;
        match kind {
            FrontendReq::SET_OWNER => {}
            FrontendReq::RESET_OWNER => self.rings.iter_mut().for_each(Ring::stop),
            FrontendReq::GET_FEATURES => answer = Some(offered().to_ne_bytes()),
            FrontendReq::SET_FEATURES => self.set_features(words.u64()?)?,
            FrontendReq::GET_PROTOCOL_FEATURES => {
                answer = Some(VhostUserProtocolFeatures::REPLY_ACK.bits().to_ne_bytes());
            }
            FrontendReq::SET_PROTOCOL_FEATURES => self.protocol = words.u64()?,
            FrontendReq::SET_MEM_TABLE => {
                self.set_memory(&mut words, std::mem::take(&mut files))?;
            }
            FrontendReq::SET_VRING_NUM => {
                let ring = self.ring(words.u32()?)?;
                if !ring.set_len(words.u32()?) {
                    return Err(wrong("a ring of an impossible length"));
                }
            }
            FrontendReq::SET_VRING_ADDR => self.set_place(&mut words)?,
            FrontendReq::SET_VRING_BASE => {
                let ring = self.ring(words.u32()?)?;
                let next = u16::try_from(words.u32()?);
                ring.set_next(next.map_err(|_| wrong("a ring begins beyond its end"))?);
            }
            FrontendReq::GET_VRING_BASE => {
                let (index, _) = (words.u32()?, words.u32()?);
                let ring = self.ring(index)?;
                ring.stop();
                let mut pair = [0; 8];
                let numbers = [index, u32::from(ring.next())].map(u32::to_ne_bytes);
                pair.copy_from_slice(numbers.as_flattened());
                answer = Some(pair);
            }
            FrontendReq::SET_VRING_KICK => {
                let (ring, kick) = self.event(&mut words, &mut files)?;
                // Nobody looks at rings all the time.
                ring.set_kick(kick.ok_or_else(|| wrong("a ring that is not told of"))?)?;
            }
            FrontendReq::SET_VRING_CALL => {
                let (ring, call) = self.event(&mut words, &mut files)?;
                ring.set_call(call)?;
            }
            // Errors are told by the end of the connection.
            FrontendReq::SET_VRING_ERR => drop(self.event(&mut words, &mut files)?),
            // QEMU enables rings before it says what was agreed to.
            FrontendReq::SET_VRING_ENABLE => {
                let ring = self.ring(words.u32()?)?;
                match words.u32()? {
                    0 => ring.set_enabled(false),
                    1 => ring.set_enabled(true),
                    _ => return Err(wrong("a ring that is neither on nor off")),
                }
            }
            _ => return Err(wrong("a message asks for what was not offered")),
        }
        words.end()?;
        if !files.is_empty() {
            return Err(wrong("a message comes with files that nobody wants"));
        }
        Ok(answer)
    }

    fn set_features(&mut self, features: u64) -> io::Result<()> {
        if features & !offered() != 0 {
            return Err(wrong("a guest agrees to what was not offered"));
        }
        self.features = features;
        let event_index = self.has(VIRTIO_RING_F_EVENT_IDX);
        // Without the protocol's own features, rings need not be enabled.
        let enabled = features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0;
        for ring in &mut self.rings {
            ring.set_event_index(event_index);
            if enabled {
                ring.set_enabled(true);
            }
        }
        Ok(())
    }

    fn set_memory(&mut self, words: &mut Words<'_>, files: Vec<File>) -> io::Result<()> {
        let (count, _) = (words.u32()?, words.u32()?);
        if usize::try_from(count).ok() != Some(files.len()) || files.len() > MAX_FILES {
            return Err(wrong("parts of the memory without files"));
        }
        let region = |file| {
            let (guest, len, user) = (words.u64()?, words.u64()?, words.u64()?);
            Ok(Region { guest, user, len, offset: words.u64()?, file })
        };
        let regions = files.into_iter().map(region).collect::<io::Result<_>>()?;
        // The old memory goes first: there may be no room for both.
        self.memory = None;
        self.memory = Some(GuestMemory::map(regions)?);
        Ok(())
    }

    fn set_place(&mut self, words: &mut Words<'_>) -> io::Result<()> {
        let (index, flags) = (words.u32()?, words.u32()?);
        let (descriptors, used, available) = (words.u64()?, words.u64()?, words.u64()?);
        let _log = words.u64()?;
        // What changes can be written down, which was not offered.
        if flags != 0 {
            return Err(wrong("a ring with flags that were not offered"));
        }
        self.ring(index)?.set_place(Place { descriptors, available, used });
        Ok(())
    }

    /// A ring and the file for it.
    fn event(
        &mut self,
        words: &mut Words<'_>,
        files: &mut Vec<File>,
    ) -> io::Result<(&mut Ring, Option<File>)> {
        const INDEX: u64 = 0xff;
        const NO_FILE: u64 = 0x100;
        let word = words.u64()?;
        let file = files.pop();
        if file.is_none() != (word & NO_FILE != 0) {
            return Err(wrong("a ring's file is missing, or too many"));
        }
        Ok((self.ring(u32::try_from(word & INDEX).unwrap_or_default())?, file))
    }

    fn ring(&mut self, index: u32) -> io::Result<&mut Ring> {
        let ring = usize::try_from(index).ok().and_then(|index| self.rings.get_mut(index));
        ring.ok_or_else(|| wrong("there is no such ring"))
    }
}

/// The bits that we offer.
fn offered() -> u64 {
    let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    OFFERED.iter().fold(protocol, |all, bit| all | 1 << bit)
}
