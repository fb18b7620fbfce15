//! DNS messages (RFC 1035 section 4, RFC 6891): what a small authoritative server and a forwarder
//! need.
//!
//! Reading is total: lengths are checked, compression pointers go backwards only and are bounded,
//! a name is at most 255 bytes long. Writing compresses against the question's name.

mod keeping;
mod message;
mod multicast;
mod name;
mod table;
mod zone;

pub use keeping::{Kept, Manner};
pub use message::{
    Data, Edns, Flags, HEADER_LEN, Query, Question, Rcode, Record, Response, Soa, Srv,
    format_error, framed, set_id,
};
pub use multicast::{MulticastQuery, MulticastRecord, MulticastResponse};
pub use name::{Name, NameError};
pub use table::Table;
pub use zone::{Fact, Hosts, Zone};

/// Record type: an IPv4 address.
pub const A: u16 = 1;
/// Record type: the canonical name.
pub const CNAME: u16 = 5;
/// Record type: start of a zone of authority.
pub const SOA: u16 = 6;
/// Record type: a name, in reverse zones.
pub const PTR: u16 = 12;
/// Record type: a text.
pub const TXT: u16 = 16;
/// Record type: an IPv6 address (RFC 3596).
pub const AAAA: u16 = 28;
/// Record type: where a service is (RFC 2782).
pub const SRV: u16 = 33;
/// Record type: which records of a name there are (RFC 4034 section 4, RFC 6762 section 6.1).
pub const NSEC: u16 = 47;
/// Pseudo-record of EDNS (RFC 6891 section 6.1).
pub const OPT: u16 = 41;
/// Question type: whatever there is.
pub const ANY: u16 = 255;

/// Class: the Internet.
pub const IN: u16 = 1;

/// The longest message over UDP that everybody takes, bytes (RFC 1035 section 4.2.1).
pub const MIN_UDP_SIZE: u16 = 512;
