//! Expressions as the kernel lists them, read back into instructions.

use super::expression::{Comparison, Expression, FIRST, Header};
use super::set::Verdict;
use crate::attribute::Attributes;

/// The kernel lists the first of four registers in a row by the number of the whole row:
/// `NFT_REG_1` to `NFT_REG_4`, 16 bytes each.
const fn register(listed: u32) -> u32 {
    match listed {
        1..=4 => FIRST + (listed - 1) * 4,
        other => other,
    }
}

impl Expression {
    /// The instruction of this name; `None`: none that is known here. The attributes are
    /// `NFTA_<EXPRESSION>_*` of linux/nf_tables.h.
    pub(super) fn read(name: &str, data: Attributes<'_>) -> Option<Self> {
        let number = |kind| data.find(kind).and_then(|value| value.be32());
        let at = |kind| number(kind).map(register);
        let value = |kind| {
            let value = data.find(kind)?.nested().find(1)?;
            Some(value.0.to_vec())
        };
        Some(match name {
            "meta" => match (at(1), at(3)) {
                (Some(to), _) => Self::Meta { key: number(2)?, to },
                (None, from) => Self::SetMeta { key: number(2)?, from: from? },
            },
            "ct" => match (at(1), at(4)) {
                (Some(to), _) => {
                    let direction = data.find(3).and_then(|value| value.u8());
                    Self::Ct { key: number(2)?, direction, to }
                }
                (None, from) => Self::SetCt { key: number(2)?, from: from? },
            },
            "notrack" => Self::NoTrack,
            "counter" => Self::Counter,
            "payload" => {
                let header = match number(2)? {
                    0 => Header::Link,
                    1 => Header::Network,
                    2 => Header::Transport,
                    _ => return None,
                };
                Self::Payload { header, offset: number(3)?, len: number(4)?, to: at(1)? }
            }
            "fib" => Self::Fib { result: number(2)?, flags: number(3)?, to: at(1)? },
            "numgen" => Self::Turn {
                modulus: number(2)?,
                offset: number(4).unwrap_or_default(),
                random: number(3)? == 1,
                to: at(1)?,
            },
            "rt" if number(2)? == 3 => Self::RouteMss { to: at(1)? },
            "byteorder" if at(1) == at(2) => {
                Self::ToNetworkOrder { register: at(1)?, len: number(4)? }
            }
            "exthdr" => Self::SetTcpOption {
                kind: data.find(2)?.u8()?,
                offset: number(3)?,
                len: number(4)?,
                from: at(7)?,
            },
            "cmp" => {
                let how = match number(2)? {
                    0 => Comparison::Equal,
                    1 => Comparison::Unequal,
                    3 => Comparison::AtMost,
                    5 => Comparison::AtLeast,
                    _ => return None,
                };
                Self::Compare { how, register: at(1)?, value: value(3)? }
            }
            "bitwise" => {
                let (mask, flipped) = (value(4)?, value(5)?);
                let only_masks = at(1) == at(2) && flipped.iter().all(|byte| *byte == 0);
                Self::Mask { register: at(1)?, mask: only_masks.then_some(mask)? }
            }
            "lookup" => Self::Lookup {
                set: data.find(1)?.text(),
                from: at(2)?,
                invert: number(5).unwrap_or_default() & 1 != 0,
                to: at(3),
            },
            "immediate" if number(1)? == 0 => {
                let verdict = data.find(2)?.nested().find(2)?.nested();
                let chain = verdict.find(2).map(|chain| chain.text());
                Self::Verdict(Verdict::read(verdict.find(1)?.be32()?.cast_signed(), chain)?)
            }
            "immediate" => Self::Immediate { value: value(2)?, to: at(1)? },
            "nat" => Self::Nat {
                source: number(1)? == 0,
                family: u8::try_from(number(2)?).ok()?,
                address: at(3),
                port: at(5),
                flags: number(7).unwrap_or_default(),
            },
            "masq" => Self::Masquerade { flags: number(1).unwrap_or_default() },
            "redir" => Self::Redirect { port: at(1) },
            "reject" => {
                let code = data.find(2).and_then(|code| code.u8()).unwrap_or_default();
                Self::Reject { kind: number(1)?, code }
            }
            "limit" => Self::Limit {
                rate: data.find(1)?.be64()?,
                per_seconds: data.find(2)?.be64()?,
                burst: number(3).unwrap_or_default(),
                over: number(5).unwrap_or_default() & 1 != 0,
            },
            "log" => {
                Self::Log { prefix: data.find(2).map(|prefix| prefix.text()).unwrap_or_default() }
            }
            "dynset" if number(3)? == 2 => {
                Self::Forget { set: data.find(1)?.text(), key: at(4)?, data: at(5) }
            }
            "dynset" => Self::Update {
                set: data.find(1)?.text(),
                key: at(4)?,
                data: at(5),
                timeout_ms: data.find(6).and_then(|time| time.be64()),
            },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::expression::LIST_ELEM;
    use super::*;
    use crate::attribute::{Answer, Message};

    fn again(expression: &Expression) -> Option<Expression> {
        let mut message = Message::new(0, 0);
        expression.put(&mut message);
        let bytes = message.finish(1).unwrap();
        let parts = Attributes(Answer::all(&bytes).next()?.body).find(LIST_ELEM)?.nested();
        Expression::read(&parts.find(1)?.text(), parts.find(2)?.nested())
    }

    #[test]
    fn what_is_written_is_read_again() {
        let address = Some(FIRST);
        for expression in [
            Expression::Meta { key: 6, to: FIRST },
            Expression::SetMeta { key: 3, from: FIRST },
            Expression::Ct { key: 12, direction: Some(0), to: 9 },
            Expression::SetCt { key: 3, from: FIRST },
            Expression::NoTrack,
            Expression::Payload { header: Header::Network, offset: 16, len: 4, to: FIRST },
            Expression::Fib { result: 3, flags: 2, to: FIRST },
            Expression::Turn { modulus: 3, offset: 1, random: false, to: FIRST },
            Expression::RouteMss { to: FIRST },
            Expression::ToNetworkOrder { register: FIRST, len: 2 },
            Expression::SetTcpOption { kind: 2, offset: 2, len: 2, from: FIRST },
            Expression::Compare { how: Comparison::AtMost, register: FIRST, value: vec![0, 80] },
            Expression::Mask { register: FIRST, mask: vec![255, 0] },
            Expression::Lookup { set: "s".into(), from: FIRST, invert: true, to: None },
            Expression::Lookup { set: "m".into(), from: FIRST, invert: false, to: Some(0) },
            Expression::Immediate { value: vec![10, 0, 0, 1], to: FIRST },
            Expression::Verdict(Verdict::Drop),
            Expression::Verdict(Verdict::Jump("chain".into())),
            Expression::Nat { source: true, family: 2, address, port: None, flags: 0 },
            Expression::Masquerade { flags: 16 },
            Expression::Redirect { port: Some(FIRST) },
            Expression::Reject { kind: 2, code: 3 },
            Expression::Counter,
            Expression::Limit { rate: 5, per_seconds: 1, burst: 5, over: true },
            Expression::Log { prefix: "x".into() },
            Expression::Update { set: "d".into(), key: FIRST, data: Some(9), timeout_ms: Some(7) },
            Expression::Forget { set: "d".into(), key: FIRST, data: None },
        ] {
            assert_eq!(again(&expression), Some(expression.clone()), "{expression:?}");
        }
    }

    #[test]
    fn registers_have_two_numbers() {
        assert_eq!([1, 2, 4, 8, 9, 0].map(register), [8, 12, 20, 8, 9, 0]);
    }

    #[test]
    fn what_is_not_known_is_nothing() {
        assert_eq!(Expression::read("match", Attributes(&[])), None);
        assert_eq!(Expression::read("cmp", Attributes(&[9, 0, 1, 0, 7])), None);
    }
}
