//! What holds for any bytes whatever. The fuzz targets in `fuzz/` and the test that replays their
//! seeds call the same functions.

use netyard_tunnel::frame::{self, Records};
use netyard_tunnel::join::Join;
use netyard_tunnel::message::Message;
use netyard_tunnel::udp::datagram::Content;
use netyard_tunnel::udp::rejoin::{self, Rejoin};
use netyard_tunnel::upgrade;
use netyard_tunnel::websocket::{self, Header, MAX_PAYLOAD_LEN, Side};

/// `input` is the begin of a WebSocket frame.
pub(crate) fn websocket(input: &[u8]) {
    for side in [Side::Peer, Side::Hub] {
        let Ok(Some(header)) = Header::parse(input, side) else { continue };
        assert!(header.header_len <= input.len() && header.payload_len <= MAX_PAYLOAD_LEN);
        assert_eq!(header.mask.is_some(), side == Side::Peer);
        for len in 0..header.header_len {
            assert_eq!(Header::parse(&input[..len], side), Ok(None), "it waits for the rest");
        }
        let mut payload = input[header.header_len..].to_vec();
        let mask = header.mask.unwrap_or_default();
        websocket::unmask(&mut payload, mask);
        websocket::unmask(&mut payload, mask);
        assert_eq!(payload, input[header.header_len..]);
        let mut written = Vec::new();
        websocket::put_header(&mut written, header.opcode, header.payload_len, side);
        let read = Header::parse(&written, side).unwrap().unwrap();
        assert_eq!((read.opcode, read.payload_len), (header.opcode, header.payload_len));
    }
}

/// `input` is a data message.
pub(crate) fn records(input: &[u8]) {
    let Ok(records) = Records::parse(input) else { return };
    let mut written = Vec::new();
    frame::begin(&mut written);
    let mut packets = Vec::new();
    for record in records.map_while(Result::ok) {
        let packet = [&record.header[..], record.bytes].concat();
        assert!(record.joined.is_none_or(|joined| joined == packet));
        if let Ok((_, parsed)) = record.packet() {
            assert_eq!(parsed.len(), record.bytes.len());
        }
        frame::put(&mut written, &packet);
        packets.push(packet);
    }
    let total: usize = packets.iter().map(Vec::len).sum();
    assert!(total <= input.len() * 13, "nothing is made up but headers that were left out");
    let read = Records::parse(&written).unwrap().map(Result::unwrap);
    assert!(read.map(|record| [&record.header[..], record.bytes].concat()).eq(packets));
}

/// `input` is what was in a datagram.
pub(crate) fn datagram(input: &[u8]) {
    let Some(content) = Content::parse(input) else { return };
    let mut written = Vec::new();
    content.put(&mut written);
    assert_eq!(Content::parse(&written), Some(content));
    match content {
        Content::Segment(segment) => {
            let mut rejoin = Rejoin::default();
            assert!(rejoin.append(&segment));
            rejoin.append(&segment);
            rejoin.flush(&mut |record| {
                if let Some(record) = record {
                    assert!(record.packet().is_ok(), "what is handed out is a packet");
                }
            });
            assert!(rejoin.append(&segment), "the next one begins anew");
        }
        Content::Packet { is_partial, bytes } => {
            rejoin::with_header(is_partial, bytes, &mut |record| {
                assert!(record.is_none_or(|record| record.bytes == bytes));
            });
        }
        _ => {}
    }
}

/// `input` is a text frame.
pub(crate) fn control(input: &[u8]) {
    if let Ok(Ok(message)) = Message::parse(input) {
        assert_eq!(Message::parse(&message.to_bytes()), Ok(Ok(message)));
    }
}

/// `input` is a request or an answer that opens a WebSocket.
pub(crate) fn upgrade(input: &[u8]) {
    if let Ok(Some((len, answer))) = upgrade::accept(input) {
        assert!(len <= input.len() && answer.ends_with("\r\n\r\n"));
    }
    if let Ok(Some(len)) = upgrade::accepted(input, &[7; 16]) {
        assert!(len <= input.len());
    }
}

/// `input` is a join string.
pub(crate) fn join(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    if let Ok(join) = text.parse::<Join>() {
        assert_eq!(join.to_string().parse(), Ok(join));
    }
}
