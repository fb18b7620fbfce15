//! Sockets of the blocking kind become tokio's, and the other way round.

/// Gives a socket the ways to and from that of the same name in [`crate::blocking`].
macro_rules! conversions {
    ($socket:ident) => {
        impl $socket {
            /// The same socket in tokio's manner; clones of it stay as they are.
            ///
            /// # Errors
            /// None.
            pub fn from_std(socket: crate::blocking::$socket) -> io::Result<Self> {
                Ok(Self(socket.0))
            }

            /// The same socket in the standard library's manner: its calls do not wait, until it is told by
            /// `set_nonblocking`.
            ///
            /// # Errors
            /// None.
            pub fn into_std(self) -> io::Result<crate::blocking::$socket> {
                self.0.patience.set_nonblocking(true);
                Ok(crate::blocking::$socket(self.0))
            }
        }

        impl TryFrom<crate::blocking::$socket> for $socket {
            type Error = io::Error;

            fn try_from(socket: crate::blocking::$socket) -> io::Result<Self> {
                Self::from_std(socket)
            }
        }
    };
}

pub(super) use conversions;
