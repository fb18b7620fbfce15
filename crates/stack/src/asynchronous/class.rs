//! What routers may look at, and by which interface packets go.

use std::io;

/// A type of service, or traffic class, as programs write one.
///
/// # Errors
/// `InvalidInput`: more than 255.
pub(super) fn traffic_class(class: u32) -> io::Result<u8> {
    u8::try_from(class).map_err(|_| {
        let message = format!("a type of service is 0 to 255, found {class}");
        io::Error::new(io::ErrorKind::InvalidInput, message)
    })
}

/// What a socket that is to be held to an interface is told.
pub(super) fn held(interface: Option<&[u8]>) -> io::Result<()> {
    match interface {
        None => Ok(()),
        Some(_) => {
            let message =
                "a socket of the stack is held to an interface by its address: bind it to one";
            Err(io::Error::new(io::ErrorKind::Unsupported, message))
        }
    }
}

/// Gives a socket, which keeps its class by `class` and `set_class`, what tokio's has for it.
macro_rules! traffic_classes {
    ($socket:ident) => {
        impl $socket {
            /// Sets the type of service; there is one setting for both families.
            ///
            /// # Errors
            /// `InvalidInput`: more than 255; the stack has ended.
            pub fn set_tos_v4(&self, tos: u32) -> io::Result<()> {
                self.set_class(class::traffic_class(tos)?)
            }

            /// The type of service.
            ///
            /// # Errors
            /// None.
            pub fn tos_v4(&self) -> io::Result<u32> {
                Ok(self.class().into())
            }

            /// As [`set_tos_v4`](Self::set_tos_v4).
            ///
            /// # Errors
            /// As there.
            #[deprecated(note = "as tokio's: use `set_tos_v4`")]
            pub fn set_tos(&self, tos: u32) -> io::Result<()> {
                self.set_tos_v4(tos)
            }

            /// As [`tos_v4`](Self::tos_v4).
            ///
            /// # Errors
            /// As there.
            #[deprecated(note = "as tokio's: use `tos_v4`")]
            pub fn tos(&self) -> io::Result<u32> {
                self.tos_v4()
            }

            /// Sets the traffic class, which is the type of service of IPv6.
            ///
            /// # Errors
            /// As [`set_tos_v4`](Self::set_tos_v4).
            pub fn set_tclass_v6(&self, class: u32) -> io::Result<()> {
                self.set_tos_v4(class)
            }

            /// The traffic class.
            ///
            /// # Errors
            /// None.
            pub fn tclass_v6(&self) -> io::Result<u32> {
                self.tos_v4()
            }

            /// The interface that it is held to: none.
            ///
            /// # Errors
            /// None.
            pub fn device(&self) -> io::Result<Option<Vec<u8>>> {
                Ok(None)
            }

            /// Holds it to no interface.
            ///
            /// # Errors
            /// `Unsupported`: it is to be held to one.
            pub fn bind_device(&self, interface: Option<&[u8]>) -> io::Result<()> {
                class::held(interface)
            }
        }
    };
}

pub(super) use traffic_classes;
