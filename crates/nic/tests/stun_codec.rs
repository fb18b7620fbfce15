//! The STUN codec: published vectors, every cut, hostile bytes, another implementation beside it.
#![allow(clippy::unwrap_used, reason = "a vector that cannot be made is a failed test")]

use std::net::SocketAddr;

use netyard_nic::stun::attribute::{parse_address, parse_response_port};
use netyard_nic::stun::framing::Framing;
use netyard_nic::stun::message::{MAX_ATTRIBUTES, MAX_LEN};
use netyard_nic::stun::{Builder, Change, Class, Kind, Malformed, Message, Method, TransactionId};
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use stun_types::attribute as theirs;
use stun_types::message as their;
use stun_types::message::{MessageWrite as _, MessageWriteExt as _};

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter_map(|letter| letter.to_digit(16))
        .map(|digit| u8::try_from(digit).unwrap())
        .collect();
    digits.as_chunks::<2>().0.iter().map(|[high, low]| high << 4 | low).collect()
}

/// RFC 5769, section 2.1: a request with short-term credentials.
fn sample_request() -> Vec<u8> {
    hex("00010058 2112a442 b7e7a701 bc34d686 fa87dfae \
         80220010 5354554e 20746573 7420636c 69656e74 \
         00240004 6e0001ff 80290008 932ff9b1 51263b36 \
         00060009 6576746a 3a683676 59202020 \
         00080014 9aeaa70c bfd8cb56 781ef2b5 b2d3f249 c1b571a2 \
         80280004 e57a3bcf")
}

/// RFC 5769, section 2.2: an answer with an IPv4 address.
fn sample_ip4() -> Vec<u8> {
    hex("0101003c 2112a442 b7e7a701 bc34d686 fa87dfae \
         8022000b 74657374 20766563 746f7220 00200008 0001a147 e112a643 \
         00080014 2b91f599 fd9e90c3 8c7489f9 2af9ba53 f06be7d7 80280004 c07d4c96")
}

/// RFC 5769, section 2.3: an answer with an IPv6 address.
fn sample_ip6() -> Vec<u8> {
    hex("01010048 2112a442 b7e7a701 bc34d686 fa87dfae \
         8022000b 74657374 20766563 746f7220 \
         00200014 0002a147 0113a9fa a5d3f179 bc25f4b5 bed2b9d9 \
         00080014 a382954e 4be67bf1 1784c97c 8292c275 bfe3ed41 80280004 c8fb0b4c")
}

fn id() -> TransactionId {
    TransactionId::modern([0xb7, 0xe7, 0xa7, 1, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae])
}

#[test]
fn c8_the_vectors_of_rfc_5769_are_read() {
    let bytes = sample_request();
    let request = Message::parse(&bytes).unwrap();
    assert_eq!((request.class(), request.method()), (Class::Request, Method::BINDING));
    assert_eq!(request.id(), id());
    assert_eq!(request.software().as_deref(), Some("STUN test client"));
    assert_eq!(request.value(Kind::USERNAME), Some(&b"evtj:h6vY"[..]));

    let bytes = sample_ip4();
    let answer = Message::parse(&bytes).unwrap();
    assert_eq!((answer.class(), answer.id()), (Class::Success, id()));
    assert_eq!(answer.mapped(), Some("192.0.2.1:32853".parse().unwrap()));
    assert_eq!(answer.software().as_deref(), Some("test vector"));

    let bytes = sample_ip6();
    let mapped = "[2001:db8:1234:5678:11:2233:4455:6677]:32853".parse().unwrap();
    assert_eq!(Message::parse(&bytes).unwrap().mapped(), Some(mapped));
}

#[test]
fn c8_a_fingerprint_tells_of_any_single_bit_changed() {
    for sample in [sample_request(), sample_ip4(), sample_ip6()] {
        for bit in 0..sample.len() * 8 {
            let mut bytes = sample.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            // A message that has lost its cookie is a classic one; one bit can also turn the
            // fingerprint into something else, or a length swallow it. Else it tells.
            if let Ok(message) = Message::parse(&bytes) {
                let told = message.value(Kind::FINGERPRINT).is_some();
                assert!(message.id().is_classic() || !told, "bit {bit}");
            }
        }
    }
}

#[test]
fn c8_every_cut_and_every_addition_is_refused() {
    for sample in [sample_request(), sample_ip4(), sample_ip6()] {
        for length in 0..sample.len() {
            assert_eq!(Message::parse(&sample[..length]).err(), Some(Malformed::Truncated));
            // The same with a length that agrees: the fingerprint, or an attribute, is cut.
            let mut bytes = sample[..length].to_vec();
            if length >= 20 {
                let shorter = u16::try_from(length - 20).unwrap().to_be_bytes();
                bytes[2..4].copy_from_slice(&shorter);
                let whole = Message::parse(&bytes).is_ok();
                assert!(!whole || length % 4 == 0, "cut at {length}");
            }
        }
        let mut longer = sample.clone();
        longer.push(0);
        assert_eq!(Message::parse(&longer).err(), Some(Malformed::TrailingBytes));
    }
}

#[test]
fn c8_classic_messages_have_ids_of_16_bytes() {
    let id = TransactionId::classic([7; 16]);
    let bytes = Builder::request(id).change(Change::PORT).finish();
    assert_eq!(bytes, hex("00010008 07070707070707070707070707070707 00030004 00000002"));
    let request = Message::parse(&bytes).unwrap();
    assert!(request.id().is_classic());
    assert_eq!(request.change(), Ok(Some(Change::PORT)));
    // An id that begins like the cookie would not be classic.
    let unlucky = hex("2112a442 000000000000000000000000").try_into().unwrap();
    assert!(TransactionId::classic(unlucky).is_classic());

    let changed: SocketAddr = "192.0.2.2:3479".parse().unwrap();
    let answer = Builder::new(Class::Success, Method::BINDING, id)
        .address(Kind::MAPPED_ADDRESS, "198.51.100.1:4000".parse().unwrap())
        .address(Kind::CHANGED_ADDRESS, changed)
        .finish();
    let answer = Message::parse(&answer).unwrap();
    assert_eq!(answer.mapped(), Some("198.51.100.1:4000".parse().unwrap()));
    assert_eq!(answer.address(Kind::CHANGED_ADDRESS), Some(changed));
}

#[test]
fn c8_both_forms_of_response_port_are_read() {
    assert_eq!(parse_response_port(&[0x12, 0x34]), Ok(0x1234));
    assert_eq!(parse_response_port(&[0x12, 0x34, 0, 0]), Ok(0x1234));
    for length in [0, 1, 3, 5] {
        let malformed = Malformed::Value(Kind::RESPONSE_PORT);
        assert_eq!(parse_response_port(&vec![0; length]), Err(malformed));
    }
}

#[test]
fn c8_the_first_of_equal_attributes_counts_and_nothing_behind_the_seal() {
    let message = Builder::request(id())
        .software("first")
        .software("second")
        .attribute(Kind::MESSAGE_INTEGRITY, &[0; 20])
        .change(Change::BOTH)
        .finish_with_fingerprint();
    let message = Message::parse(&message).unwrap();
    assert_eq!(message.software().as_deref(), Some("first"));
    assert_eq!(message.change(), Ok(None));
    assert!(message.value(Kind::FINGERPRINT).is_some());
}

#[test]
fn c8_what_is_too_large_is_refused_and_never_written() {
    let many = (0..=MAX_ATTRIBUTES)
        .fold(Builder::request(id()), |message, _| message.attribute(Kind::PADDING, &[]));
    assert_eq!(Message::parse(&many.finish()).err(), Some(Malformed::TooLarge));
    let long = Builder::request(id()).attribute(Kind::PADDING, &[0; MAX_LEN]).finish();
    assert_eq!(long.len(), 20, "what does not fit is left out");
    assert_eq!(Message::parse(&vec![0; MAX_LEN + 1]).err(), Some(Malformed::TooLarge));
}

#[test]
fn c8_addresses_of_odd_families_and_lengths_are_refused() {
    for value in ["", "0001a147", "0001a147 e112a6", "0001a147 e112a64300", "0003a147 e112a643"] {
        assert!(parse_address(Kind::MAPPED_ADDRESS, &hex(value)).is_err(), "{value}");
    }
}

#[test]
fn c8_errors_carry_code_reason_and_what_was_unknown() {
    let kinds = [Kind(0x0002), Kind(0x7fff), Kind(0x0033)];
    let bytes = Builder::new(Class::Error, Method::BINDING, id())
        .error_code(420, "Unknown Attribute")
        .unknown_attributes(&kinds)
        .finish_with_fingerprint();
    let error = Message::parse(&bytes).unwrap();
    let code = error.error_code().unwrap().unwrap();
    assert_eq!((code.code, code.reason.as_str()), (420, "Unknown Attribute"));
    assert_eq!(error.unknown_attributes().collect::<Vec<_>>(), kinds);
    // Class 2 and number 100 do not exist.
    for value in ["00000214", "00000464", "000004"] {
        let bytes = Builder::new(Class::Error, Method::BINDING, id())
            .attribute(Kind::ERROR_CODE, &hex(value))
            .finish();
        assert!(Message::parse(&bytes).unwrap().error_code().is_err(), "{value}");
    }
}

#[test]
fn c8_a_stream_is_cut_into_messages_wherever_it_breaks() {
    let messages = [sample_request(), Builder::request(id()).finish(), sample_ip6()];
    let stream: Vec<u8> = messages.concat();
    for size in 1..stream.len() {
        let mut framing = Framing::default();
        let mut out = Vec::new();
        for piece in stream.chunks(size) {
            framing.handle_bytes(piece);
            while let Some(message) = framing.poll_message().unwrap() {
                out.push(message);
            }
        }
        assert_eq!(out, messages, "pieces of {size}");
    }
    let mut framing = Framing::default();
    framing.handle_bytes(b"HTTP/1.1 200 OK\r\n");
    assert_eq!(framing.poll_message(), Err(Malformed::NotStun));
    let mut framing = Framing::default();
    framing.handle_bytes(&[0, 1, 0xff, 0xfc]);
    assert_eq!(framing.poll_message(), Err(Malformed::TooLarge));
}

/// Reads everything that can be read of a message.
fn read_all(bytes: &[u8]) -> bool {
    let Ok(message) = Message::parse(bytes) else { return false };
    for attribute in message.attributes() {
        let _ = parse_address(attribute.kind, attribute.value);
    }
    let _ = (message.mapped(), message.change(), message.response_port(), message.error_code());
    let _ = (message.unknown_attributes().count(), message.software());
    true
}

#[test]
fn c8_a_million_random_inputs_do_no_harm() {
    let mut rng = SmallRng::seed_from_u64(0x2112_a442);
    let samples = [sample_request(), sample_ip4(), sample_ip6()];
    let mut buffer = [0; 160];
    let mut read = 0;
    for round in 0..1_000_000 {
        let bytes = if round % 2 == 0 {
            // Noise, with a header that lets half of it pass the first checks.
            let bytes = &mut buffer[..rng.random_range(0..=160)];
            rng.fill_bytes(bytes);
            if round % 4 == 0
                && let Some(length) = bytes.len().checked_sub(20)
            {
                bytes[0] &= 0x01;
                bytes[2..4].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
            }
            &*bytes
        } else {
            // A good message without its fingerprint's protection, damaged in a few places.
            let sample = &samples[round / 2 % samples.len()];
            let bytes = &mut buffer[..sample.len()];
            bytes.copy_from_slice(sample);
            bytes[4] = 0;
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(4..bytes.len());
                bytes[at] = rng.random();
            }
            &*bytes
        };
        read += usize::from(read_all(bytes));
    }
    assert!(read > 100_000, "only {read} inputs were deep enough to be read");
}

proptest! {
    #[test]
    fn c8_what_is_written_is_read(
        address: SocketAddr, other: SocketAddr, random: [u8; 12], classic: [u8; 16],
        is_classic: bool, padding in 0_usize..300, port: u16,
    ) {
        let id = if is_classic {
            TransactionId::classic(classic)
        } else {
            TransactionId::modern(random)
        };
        let builder = Builder::new(Class::Success, Method::BINDING, id)
            .xor_mapped(address)
            .address(Kind::OTHER_ADDRESS, other)
            .attribute(Kind::PADDING, &vec![0; padding])
            .response_port(port);
        let bytes =
            if is_classic { builder.finish() } else { builder.finish_with_fingerprint() };
        let message = Message::parse(&bytes).unwrap();
        let bare = |address: SocketAddr| SocketAddr::new(address.ip(), address.port());
        prop_assert_eq!(message.id(), id);
        prop_assert_eq!(message.mapped(), Some(bare(address)));
        prop_assert_eq!(message.address(Kind::OTHER_ADDRESS), Some(bare(other)));
        prop_assert_eq!(message.value(Kind::PADDING).map(<[u8]>::len), Some(padding));
        prop_assert_eq!(message.response_port(), Ok(Some(port)));
    }

    #[test]
    fn c8_another_implementation_reads_what_we_write(address: SocketAddr, random: [u8; 12]) {
        let bytes = Builder::new(Class::Success, Method::BINDING, TransactionId::modern(random))
            .xor_mapped(address)
            .software("netyard")
            .finish_with_fingerprint();
        let message = their::Message::from_bytes(&bytes).unwrap();
        prop_assert!(message.has_class(their::MessageClass::Success));
        let mapped = message.attribute::<theirs::XorMappedAddress>().unwrap();
        let seen = mapped.addr(message.transaction_id());
        prop_assert_eq!((seen.ip(), seen.port()), (address.ip(), address.port()));
        let software = message.attribute::<theirs::Software>().unwrap();
        prop_assert_eq!(software.software(), "netyard");
        message.attribute::<theirs::Fingerprint>().unwrap();
    }

    #[test]
    fn c8_we_read_what_another_implementation_writes(address: SocketAddr, other: SocketAddr) {
        let request =
            their::Message::builder_request(their::BINDING, their::MessageWriteVec::new()).finish();
        let request = their::Message::from_bytes(&request).unwrap();
        let mut answer = their::Message::builder_success(&request, their::MessageWriteVec::new());
        answer
            .add_attribute(&theirs::XorMappedAddress::new(address, request.transaction_id()))
            .unwrap();
        answer.add_attribute(&theirs::AlternateServer::new(other)).unwrap();
        answer.add_fingerprint().unwrap();
        let bytes = answer.finish();
        let message = Message::parse(&bytes).unwrap();
        let bare = |address: SocketAddr| SocketAddr::new(address.ip(), address.port());
        prop_assert_eq!(message.class(), Class::Success);
        prop_assert_eq!(message.mapped(), Some(bare(address)));
        prop_assert_eq!(message.address(Kind::ALTERNATE_SERVER), Some(bare(other)));
    }
}
