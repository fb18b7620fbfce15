//! What can be set for UDP sockets of both kinds, by the same words.

/// Methods of a UDP socket, which is a handle and nothing else.
macro_rules! udp_options {
    ($socket:ty) => {
        impl $socket {
            /// Lets it send to broadcast addresses, or not.
            ///
            /// # Errors
            /// The stack has ended.
            pub fn set_broadcast(&self, broadcast: bool) -> io::Result<()> {
                self.0.change(|settings| settings.broadcast = broadcast)
            }

            /// Whether it may send to broadcast addresses.
            ///
            /// # Errors
            /// None.
            pub fn broadcast(&self) -> io::Result<bool> {
                Ok(self.0.settings().broadcast)
            }

            /// Lets this host's own sockets hear what it sends to groups, or not.
            ///
            /// # Errors
            /// The stack has ended.
            pub fn set_multicast_loop_v4(&self, looped: bool) -> io::Result<()> {
                self.0.change(|settings| settings.multicast_loop = looped)
            }

            /// Whether this host's own sockets hear what it sends to groups.
            ///
            /// # Errors
            /// None.
            pub fn multicast_loop_v4(&self) -> io::Result<bool> {
                Ok(self.0.settings().multicast_loop)
            }

            /// The same for IPv6: there is one setting for both.
            ///
            /// # Errors
            /// The stack has ended.
            pub fn set_multicast_loop_v6(&self, looped: bool) -> io::Result<()> {
                self.set_multicast_loop_v4(looped)
            }

            /// The same for IPv6.
            ///
            /// # Errors
            /// None.
            pub fn multicast_loop_v6(&self) -> io::Result<bool> {
                self.multicast_loop_v4()
            }

            /// Sets how many routers datagrams to groups may pass.
            ///
            /// # Errors
            /// `InvalidInput`: more than 255.
            pub fn set_multicast_ttl_v4(&self, ttl: u32) -> io::Result<()> {
                let hops = u8::try_from(ttl).map_err(|_| io::ErrorKind::InvalidInput)?;
                self.0.change(|settings| settings.multicast_hops = hops)
            }

            /// How many routers datagrams to groups may pass.
            ///
            /// # Errors
            /// None.
            pub fn multicast_ttl_v4(&self) -> io::Result<u32> {
                Ok(self.0.settings().multicast_hops.into())
            }

            /// Sets how many routers datagrams to single hosts may pass.
            ///
            /// # Errors
            /// `InvalidInput`: not 1 to 255.
            pub fn set_ttl(&self, ttl: u32) -> io::Result<()> {
                let hops = crate::host::hop_limit(ttl)?;
                self.0.change(|settings| settings.hops = Some(hops))
            }

            /// How many routers datagrams to single hosts may pass.
            ///
            /// # Errors
            /// None.
            pub fn ttl(&self) -> io::Result<u32> {
                Ok(crate::host::ttl(self.0.settings().hops))
            }

            /// Joins a group, on the interface with this number, from 1; 0 is the first interface.
            ///
            /// # Errors
            /// As [`join_multicast_v4`](Self::join_multicast_v4).
            pub fn join_multicast_v6(&self, group: &Ipv6Addr, interface: u32) -> io::Result<()> {
                self.0.member(true, IpAddr::V6(*group), Place::Number(interface))
            }
        }
    };
}

pub(crate) use udp_options;
