//! Options of sockets, as far as the stack has them.

use std::time::Duration;

use libc::c_int;
use netyard_stack::{Keepalive, Options};

use crate::errno::Errno;
use crate::sockets::Kind;
use crate::world::{State, World};

/// An option by its level and number.
type Name = (c_int, c_int);

const REUSE_ADDRESS: Name = (libc::SOL_SOCKET, libc::SO_REUSEADDR);
const REUSE_PORT: Name = (libc::SOL_SOCKET, libc::SO_REUSEPORT);
const SEND_BUFFER: Name = (libc::SOL_SOCKET, libc::SO_SNDBUF);
const RECEIVE_BUFFER: Name = (libc::SOL_SOCKET, libc::SO_RCVBUF);
const ERROR: Name = (libc::SOL_SOCKET, libc::SO_ERROR);
const KIND: Name = (libc::SOL_SOCKET, libc::SO_TYPE);
const BROADCAST: Name = (libc::SOL_SOCKET, libc::SO_BROADCAST);
const KEEPALIVE: Name = (libc::SOL_SOCKET, libc::SO_KEEPALIVE);
const LINGER: Name = (libc::SOL_SOCKET, libc::SO_LINGER);
const NO_DELAY: Name = (libc::IPPROTO_TCP, libc::TCP_NODELAY);
const SEGMENT: Name = (libc::IPPROTO_TCP, libc::TCP_MAXSEG);
const KEEP_IDLE: Name = (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE);
const KEEP_INTERVAL: Name = (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL);
const KEEP_COUNT: Name = (libc::IPPROTO_TCP, libc::TCP_KEEPCNT);
const USER_TIMEOUT: Name = (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT);
const TTL: Name = (libc::IPPROTO_IP, libc::IP_TTL);
const HOPS: Name = (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS);

const UNKNOWN: Errno = Errno(libc::ENOPROTOOPT);
const INVALID: Errno = Errno(libc::EINVAL);

impl World {
    /// Sets an option; `value`: the number it is set to, and for `SO_LINGER` the seconds behind it.
    pub(crate) fn set_option(
        &self,
        fd: c_int,
        name: (c_int, c_int),
        value: c_int,
        seconds: c_int,
    ) -> Result<(), Errno> {
        self.call(|state| {
            if matches!(name, REUSE_ADDRESS | REUSE_PORT | SEND_BUFFER | RECEIVE_BUFFER) {
                // Ends that are remembered hinder nobody here, and buffers have the size that they need.
                return state.get(fd).map(|_| ());
            }
            let kind = state.get(fd)?.kind;
            match (kind, name) {
                (Kind::Udp(id), BROADCAST) => {
                    return Ok(state.stack.udp_set_broadcast(id, value != 0)?);
                }
                (Kind::Udp(id), TTL | HOPS) => {
                    return Ok(state.stack.udp_set_hop_limit(id, hops(value)?)?);
                }
                (Kind::Udp(_), _) => return Err(UNKNOWN),
                _ => {}
            }
            let mut options = state.options(fd)?;
            set(&mut options, name, value, seconds)?;
            state.get_mut(fd)?.options = options;
            if let Kind::Stream { id, .. } = kind {
                state.stack.tcp_set_options(id, options)?;
            }
            Ok(())
        })
    }

    /// The number that an option is set to.
    pub(crate) fn option(&self, fd: c_int, name: (c_int, c_int)) -> Result<c_int, Errno> {
        self.call(|state| {
            let kind = state.get(fd)?.kind;
            match (name, kind) {
                (ERROR, _) => return Ok(state.take_error(fd)?.map_or(0, |error| error.errno())),
                (KIND, _) if state.get(fd)?.is_stream() => return Ok(libc::SOCK_STREAM),
                (KIND, _) => return Ok(libc::SOCK_DGRAM),
                (SEGMENT, Kind::Stream { id, .. }) => {
                    return Ok(state.stack.tcp_info(id)?.segment_len.into());
                }
                (_, Kind::Udp(_)) => return Err(UNKNOWN),
                _ => {}
            }
            get(&state.options(fd)?, name)
        })
    }
}

impl State {
    fn options(&self, fd: c_int) -> Result<Options, Errno> {
        let socket = self.get(fd)?;
        match socket.kind {
            Kind::Stream { id, .. } => Ok(self.stack.tcp_options(id)?),
            _ => Ok(socket.options),
        }
    }
}

fn set(options: &mut Options, name: Name, value: c_int, seconds: c_int) -> Result<(), Errno> {
    match name {
        NO_DELAY => options.no_delay = value != 0,
        KEEPALIVE => options.keepalive = (value != 0).then(Keepalive::default),
        KEEP_IDLE => keepalive(options)?.idle = whole_seconds(value)?,
        KEEP_INTERVAL => keepalive(options)?.interval = whole_seconds(value)?,
        KEEP_COUNT => keepalive(options)?.count = u32::try_from(value).map_err(|_| INVALID)?,
        USER_TIMEOUT => {
            let limit = u64::try_from(value).map_err(|_| INVALID)?;
            options.user_timeout = (limit > 0).then(|| Duration::from_millis(limit));
        }
        // To wait in `close` is the business of a program's sockets, not of the core.
        LINGER if value != 0 && seconds != 0 => return Err(UNKNOWN),
        LINGER => options.reset_on_close = value != 0,
        TTL | HOPS => options.hop_limit = hops(value)?,
        _ => return Err(UNKNOWN),
    }
    Ok(())
}

fn get(options: &Options, name: Name) -> Result<c_int, Errno> {
    let keepalive = options.keepalive.unwrap_or_default();
    let number = |value: u128| c_int::try_from(value).unwrap_or(c_int::MAX);
    let seconds = |time: Duration| number(time.as_secs().into());
    Ok(match name {
        REUSE_ADDRESS | REUSE_PORT => 0,
        NO_DELAY => options.no_delay.into(),
        KEEPALIVE => options.keepalive.is_some().into(),
        KEEP_IDLE => seconds(keepalive.idle),
        KEEP_INTERVAL => seconds(keepalive.interval),
        KEEP_COUNT => number(keepalive.count.into()),
        USER_TIMEOUT => number(options.user_timeout.unwrap_or_default().as_millis()),
        _ => return Err(UNKNOWN),
    })
}

/// How a silent peer is asked after: to be set once it is switched on.
fn keepalive(options: &mut Options) -> Result<&mut Keepalive, Errno> {
    options.keepalive.as_mut().ok_or(INVALID)
}

fn whole_seconds(value: c_int) -> Result<Duration, Errno> {
    u64::try_from(value).map(Duration::from_secs).map_err(|_| INVALID)
}

/// -1 stands for what the interface has.
fn hops(value: c_int) -> Result<Option<u8>, Errno> {
    match value {
        -1 => Ok(None),
        _ => u8::try_from(value).ok().filter(|hops| *hops > 0).map(Some).ok_or(INVALID),
    }
}
