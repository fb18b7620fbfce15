//! What a front end asks of the device, and what it has set up.

use std::fs::File;
use std::io;

use netyard_sys::guest_memory::{GuestMemory, Region};
use netyard_wire::Features;
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

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
}

impl Backend {
    pub(super) fn new() -> io::Result<Self> {
        let ring = || Ring::new().map_err(io::Error::other);
        Ok(Self { features: 0, protocol: 0, memory: None, rings: [ring()?, ring()?] })
    }

    fn has(&self, feature: u32) -> bool {
        self.features & (1 << feature) != 0
    }

    /// Whether it was told what the guest has agreed to.
    pub(super) fn has_agreed(&self) -> bool {
        self.features != 0
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
        for (number, ring) in self.rings.iter_mut().enumerate() {
            if ring.settle(memory).is_err() {
                tracing::debug!(ring = number, "a ring of the machine is not in its memory");
            }
        }
    }

    /// Tells the guest of what it has back. False if a ring is broken.
    pub(super) fn tell(&mut self) -> bool {
        let Some(memory) = &self.memory else { return true };
        let mut live = self.rings.iter_mut().filter(|ring| ring.is_live());
        live.all(|ring| ring.tell(memory.bytes()).is_ok()) && !memory.is_lost()
    }

    fn ring(&mut self, index: u32) -> Result<&mut Ring> {
        let index = usize::try_from(index).map_err(|_| Error::InvalidParam)?;
        self.rings.get_mut(index).ok_or(Error::InvalidParam)
    }
}

/// The bits that we offer.
fn offered() -> u64 {
    let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    OFFERED.iter().fold(protocol, |all, bit| all | 1 << bit)
}

/// What the front end gets for a message that it has sent without leave.
const UNASKED: Error = Error::InvalidOperation("it was not offered");

impl VhostUserBackendReqHandlerMut for Backend {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.rings.iter_mut().for_each(Ring::stop);
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        Err(UNASKED)
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(offered())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !offered() != 0 {
            return Err(Error::InvalidParam);
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

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let regions = regions.iter().zip(files).map(|(region, file)| Region {
            guest: region.guest_phys_addr,
            user: region.user_addr,
            len: region.memory_size,
            offset: region.mmap_offset,
            file,
        });
        // What was written into the old memory is told there.
        self.tell();
        self.memory = None;
        self.memory = Some(GuestMemory::map(regions.collect()).map_err(Error::ReqHandlerError)?);
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        self.ring(index)?.set_len(num).then_some(()).ok_or(Error::InvalidParam)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _: u64,
    ) -> Result<()> {
        self.ring(index)?.set_place(Place { descriptors: descriptor, available, used });
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        self.ring(index)?.set_next(base);
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.tell();
        let ring = self.ring(index)?;
        ring.stop();
        Ok(VhostUserVringState::new(index, u32::from(ring.next())))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        // Nobody looks at rings all the time.
        let fd = fd.ok_or(Error::InvalidParam)?;
        self.ring(index.into())?.set_kick(Some(fd)).map_err(Error::ReqHandlerError)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.ring(index.into())?.set_call(fd).map_err(Error::ReqHandlerError)
    }

    /// Errors are told by the end of the connection.
    fn set_vring_err(&mut self, _: u8, _: Option<File>) -> Result<()> {
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::empty())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        self.protocol = features;
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Err(UNASKED)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.ring(index)?.set_enabled(enable);
        Ok(())
    }

    /// Monitors know the network's MTU and the hardware address by themselves.
    fn get_config(&mut self, _: u32, _: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Err(UNASKED)
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        Err(UNASKED)
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(UNASKED)
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(UNASKED)
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(UNASKED)
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        Err(UNASKED)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Err(UNASKED)
    }

    fn add_mem_region(
        &mut self,
        _: &VhostUserSingleMemoryRegion,
        _: File,
        _: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        Err(UNASKED)
    }

    fn remove_mem_region(&mut self, _: &VhostUserSingleMemoryRegion) -> Result<()> {
        Err(UNASKED)
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(UNASKED)
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(UNASKED)
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(UNASKED)
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        Err(UNASKED)
    }
}
