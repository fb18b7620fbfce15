//! Expressions: the instructions that rules are made of, as the kernel takes them.

use super::set::Verdict;
use crate::attribute::Message;

/// `NFTA_LIST_ELEM`.
pub(super) const LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;

/// `NFT_REG32_00`: the first of 16 registers of 4 bytes.
pub(super) const FIRST: u32 = 8;
/// How many there are.
pub(super) const REGISTERS: u32 = 16;
/// `NFT_REG_VERDICT`.
const VERDICT: u32 = 0;

/// Where bytes of a packet are counted from (`enum nft_payload_bases`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Header {
    Link,
    Network,
    Transport,
}

impl Header {
    const fn number(self) -> u32 {
        match self {
            Self::Link => 0,
            Self::Network => 1,
            Self::Transport => 2,
        }
    }
}

/// `enum nft_cmp_ops`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    Unequal,
    AtMost,
    AtLeast,
}

impl Comparison {
    const fn number(self) -> u32 {
        match self {
            Self::Equal => 0,
            Self::Unequal => 1,
            Self::AtMost => 3,
            Self::AtLeast => 5,
        }
    }
}

/// One instruction. Registers are the kernel's numbers; keys are those of linux/nf_tables.h.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expression {
    Meta { key: u32, to: u32 },
    SetMeta { key: u32, from: u32 },
    Ct { key: u32, direction: Option<u8>, to: u32 },
    SetCt { key: u32, from: u32 },
    NoTrack,
    Payload { header: Header, offset: u32, len: u32, to: u32 },
    Fib { result: u32, flags: u32, to: u32 },
    Turn { modulus: u32, offset: u32, random: bool, to: u32 },
    RouteMss { to: u32 },
    ToNetworkOrder { register: u32, len: u32 },
    SetTcpOption { kind: u8, offset: u32, len: u32, from: u32 },
    Compare { how: Comparison, register: u32, value: Vec<u8> },
    Mask { register: u32, mask: Vec<u8> },
    Lookup { set: String, from: u32, invert: bool, to: Option<u32> },
    Immediate { value: Vec<u8>, to: u32 },
    Verdict(Verdict),
    Nat { source: bool, family: u8, address: Option<u32>, port: Option<u32>, flags: u32 },
    Masquerade { flags: u32 },
    Redirect { port: Option<u32> },
    Reject { kind: u32, code: u8 },
    Counter,
    Limit { rate: u64, per_seconds: u64, burst: u32, over: bool },
    Log { prefix: String },
    Update { set: String, key: u32, data: Option<u32>, timeout_ms: Option<u64> },
    Forget { set: String, key: u32, data: Option<u32> },
}

impl Expression {
    const fn name(&self) -> &'static str {
        match self {
            Self::Meta { .. } | Self::SetMeta { .. } => "meta",
            Self::Ct { .. } | Self::SetCt { .. } => "ct",
            Self::NoTrack => "notrack",
            Self::Payload { .. } => "payload",
            Self::Fib { .. } => "fib",
            Self::Turn { .. } => "numgen",
            Self::RouteMss { .. } => "rt",
            Self::ToNetworkOrder { .. } => "byteorder",
            Self::SetTcpOption { .. } => "exthdr",
            Self::Compare { .. } => "cmp",
            Self::Mask { .. } => "bitwise",
            Self::Lookup { .. } => "lookup",
            Self::Immediate { .. } | Self::Verdict(_) => "immediate",
            Self::Nat { .. } => "nat",
            Self::Masquerade { .. } => "masq",
            Self::Redirect { .. } => "redir",
            Self::Reject { .. } => "reject",
            Self::Counter => "counter",
            Self::Limit { .. } => "limit",
            Self::Log { .. } => "log",
            Self::Update { .. } | Self::Forget { .. } => "dynset",
        }
    }

    /// Adds it to a rule's list.
    pub(super) fn put(&self, list: &mut Message) {
        self.put_as(list, LIST_ELEM);
    }

    /// Adds it as an attribute of that kind.
    pub(super) fn put_as(&self, message: &mut Message, kind: u16) {
        message.nest(kind, |element| {
            element.put_text(NFTA_EXPR_NAME, self.name());
            element.nest(NFTA_EXPR_DATA, |data| self.put_data(data));
        });
    }

    /// The attributes are `NFTA_<EXPRESSION>_*` of linux/nf_tables.h, in that order.
    fn put_data(&self, data: &mut Message) {
        match self {
            Self::Meta { key, to } => {
                data.put_be32(1, *to).put_be32(2, *key);
            }
            Self::SetMeta { key, from } => {
                data.put_be32(2, *key).put_be32(3, *from);
            }
            Self::Ct { key, direction, to } => {
                data.put_be32(1, *to).put_be32(2, *key);
                if let Some(direction) = direction {
                    data.put_u8(3, *direction);
                }
            }
            Self::SetCt { key, from } => {
                data.put_be32(2, *key).put_be32(4, *from);
            }
            Self::NoTrack | Self::Counter => {}
            Self::Payload { header, offset, len, to } => {
                data.put_be32(1, *to).put_be32(2, header.number());
                data.put_be32(3, *offset).put_be32(4, *len);
            }
            Self::Fib { result, flags, to } => {
                data.put_be32(1, *to).put_be32(2, *result).put_be32(3, *flags);
            }
            Self::Turn { modulus, offset, random, to } => {
                data.put_be32(1, *to).put_be32(2, *modulus);
                data.put_be32(3, (*random).into()).put_be32(4, *offset);
            }
            Self::RouteMss { to } => {
                const NFT_RT_TCPMSS: u32 = 3;
                data.put_be32(1, *to).put_be32(2, NFT_RT_TCPMSS);
            }
            Self::ToNetworkOrder { register, len } => {
                const NFT_BYTEORDER_HTON: u32 = 1;
                data.put_be32(1, *register).put_be32(2, *register);
                data.put_be32(3, NFT_BYTEORDER_HTON).put_be32(4, *len).put_be32(5, *len);
            }
            Self::SetTcpOption { kind, offset, len, from } => {
                const NFT_EXTHDR_OP_TCPOPT: u32 = 1;
                data.put_u8(2, *kind).put_be32(3, *offset).put_be32(4, *len);
                data.put_be32(6, NFT_EXTHDR_OP_TCPOPT).put_be32(7, *from);
            }
            Self::Compare { how, register, value } => {
                data.put_be32(1, *register).put_be32(2, how.number());
                put_value(data, 3, value);
            }
            Self::Mask { register, mask } => {
                let len = u32::try_from(mask.len()).unwrap_or(u32::MAX);
                data.put_be32(1, *register).put_be32(2, *register).put_be32(3, len);
                put_value(data, 4, mask);
                put_value(data, 5, &vec![0; mask.len()]);
            }
            Self::Lookup { set, from, invert, to } => {
                data.put_text(1, set).put_be32(2, *from);
                if let Some(to) = to {
                    data.put_be32(3, *to);
                }
                if *invert {
                    data.put_be32(5, 1);
                }
            }
            Self::Immediate { value, to } => {
                data.put_be32(1, *to);
                put_value(data, 2, value);
            }
            Self::Verdict(verdict) => {
                data.put_be32(1, VERDICT);
                put_verdict(data, 2, verdict);
            }
            Self::Nat { source, family, address, port, flags } => {
                data.put_be32(1, (!*source).into()).put_be32(2, (*family).into());
                for (kind, register) in [(3, address), (5, port)] {
                    if let Some(register) = register {
                        data.put_be32(kind, *register);
                    }
                }
                if *flags != 0 {
                    data.put_be32(7, *flags);
                }
            }
            Self::Masquerade { flags } => {
                if *flags != 0 {
                    data.put_be32(1, *flags);
                }
            }
            Self::Redirect { port } => {
                if let Some(register) = port {
                    data.put_be32(1, *register);
                }
            }
            Self::Reject { kind, code } => {
                data.put_be32(1, *kind).put_u8(2, *code);
            }
            Self::Limit { rate, per_seconds, burst, over } => {
                data.put_be64(1, *rate).put_be64(2, *per_seconds).put_be32(3, *burst);
                data.put_be32(4, 0).put_be32(5, (*over).into());
            }
            Self::Log { prefix } => {
                data.put_text(2, prefix);
            }
            Self::Update { set, key, data: value, timeout_ms } => {
                const NFT_DYNSET_OP_UPDATE: u32 = 1;
                data.put_text(1, set).put_be32(3, NFT_DYNSET_OP_UPDATE).put_be32(4, *key);
                if let Some(register) = value {
                    data.put_be32(5, *register);
                }
                if let Some(timeout) = timeout_ms {
                    data.put_be64(6, *timeout);
                }
            }
            Self::Forget { set, key, data: value } => {
                const NFT_DYNSET_OP_DELETE: u32 = 2;
                data.put_text(1, set).put_be32(3, NFT_DYNSET_OP_DELETE).put_be32(4, *key);
                if let Some(register) = value {
                    data.put_be32(5, *register);
                }
            }
        }
    }
}

/// A value as a nested `NFTA_DATA_VALUE`.
pub(super) fn put_value(message: &mut Message, kind: u16, value: &[u8]) {
    message.nest(kind, |data| {
        data.put(NFTA_DATA_VALUE, value);
    });
}

/// A verdict as a nested `NFTA_DATA_VERDICT`.
pub(super) fn put_verdict(message: &mut Message, kind: u16, verdict: &Verdict) {
    const NFTA_VERDICT_CODE: u16 = 1;
    const NFTA_VERDICT_CHAIN: u16 = 2;
    message.nest(kind, |data| {
        data.nest(NFTA_DATA_VERDICT, |inside| {
            inside.put(NFTA_VERDICT_CODE, &verdict.code().to_be_bytes());
            if let Some(chain) = verdict.chain() {
                inside.put_text(NFTA_VERDICT_CHAIN, chain);
            }
        });
    });
}
