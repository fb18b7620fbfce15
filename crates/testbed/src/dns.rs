//! A DNS server that gives every name the same addresses: the outside's resolver.

use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;

/// A name that starts with this label has so many addresses that a datagram cannot hold them:
/// the client must ask again over TCP.
pub const LONG: &str = "long";

/// Address records in the answer for a [`LONG`] name.
const LONG_COUNT: usize = 100;

/// Largest answer in a datagram (RFC 1035 §4.2.1).
const DATAGRAM: usize = 512;

/// Serves for ever.
///
/// # Errors
/// When accepting or receiving fails.
pub fn serve(listener: &TcpListener, datagrams: UdpSocket, answers: Vec<IpAddr>) -> io::Result<()> {
    let answers = Arc::new(answers);
    let for_datagrams = Arc::clone(&answers);
    thread::spawn(move || serve_datagrams(&datagrams, &for_datagrams));
    loop {
        let (stream, _) = listener.accept()?;
        let answers = Arc::clone(&answers);
        // A client that goes away is the client's matter.
        thread::spawn(move || serve_stream(stream, &answers));
    }
}

fn serve_datagrams(socket: &UdpSocket, answers: &[IpAddr]) -> io::Result<()> {
    let mut buffer = [0; DATAGRAM];
    loop {
        let (count, client) = socket.recv_from(&mut buffer)?;
        if let Some(answer) = answer(&buffer[..count], answers, DATAGRAM) {
            socket.send_to(&answer, client)?;
        }
    }
}

/// Messages behind a two-byte length (RFC 1035 §4.2.2).
fn serve_stream(mut stream: TcpStream, answers: &[IpAddr]) -> io::Result<()> {
    let mut length = [0; 2];
    while stream.read_exact(&mut length).is_ok() {
        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut query)?;
        let Some(answer) = answer(&query, answers, usize::from(u16::MAX)) else { break };
        let length = u16::try_from(answer.len()).expect("answers are a few kilobytes");
        stream.write_all(&length.to_be_bytes())?;
        stream.write_all(&answer)?;
    }
    Ok(())
}

/// The answer to a query with one question; `None` for anything else.
fn answer(query: &[u8], answers: &[IpAddr], limit: usize) -> Option<Vec<u8>> {
    let name = query.get(12..)?;
    let name_len = 1 + name.iter().position(|byte| *byte == 0)?;
    let question = name.get(..name_len + 4)?;
    let kind = u16::from_be_bytes([question[name_len], question[name_len + 1]]);
    let records: Vec<Vec<u8>> = answers
        .iter()
        .filter_map(|address| match (kind, address) {
            (1, IpAddr::V4(address)) => Some(address.octets().to_vec()),
            (28, IpAddr::V6(address)) => Some(address.octets().to_vec()),
            _ => None,
        })
        .collect();
    let is_long = name.get(1..=LONG.len())?.eq_ignore_ascii_case(LONG.as_bytes());
    let count = if is_long { LONG_COUNT } else { records.len() };
    let records: Vec<_> = records.iter().cycle().take(count).collect();
    let build = |records: &[&Vec<u8>], truncated: bool| {
        let mut message = query.get(..2)?.to_vec();
        // Response, recursion desired and available (RFC 1035 §4.1.1); TC when cut.
        message.extend([if truncated { 0x83 } else { 0x81 }, 0x80, 0, 1]);
        message.extend(u16::try_from(records.len()).ok()?.to_be_bytes());
        message.extend([0; 4]);
        message.extend(question);
        for record in records {
            // The question's name, its kind, class IN, 60 s.
            message.extend([0xC0, 12]);
            message.extend(kind.to_be_bytes());
            message.extend([0, 1, 0, 0, 0, 60]);
            message.extend(u16::try_from(record.len()).ok()?.to_be_bytes());
            message.extend(record.iter());
        }
        Some(message)
    };
    let whole = build(&records, false)?;
    if whole.len() <= limit { Some(whole) } else { build(&[], true) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: u8) -> Vec<u8> {
        let mut query = vec![0xAB, 0xCD, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(u8::try_from(label.len()).unwrap());
            query.extend(label.bytes());
        }
        query.extend([0, 0, kind, 0, 1]);
        query
    }

    #[test]
    fn answers_each_family_with_its_own() {
        let addresses = ["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        let a = answer(&query("any.example", 1), &addresses, DATAGRAM).unwrap();
        assert_eq!((&a[..2], a[7]), (&[0xAB, 0xCD][..], 1));
        assert!(a.ends_with(&[0, 4, 192, 0, 2, 7]));
        let aaaa = answer(&query("any.example", 28), &addresses, DATAGRAM).unwrap();
        assert!(aaaa.ends_with(&[0, 0, 0, 7]));
        assert_eq!(answer(&query("any.example", 16), &addresses, DATAGRAM).unwrap()[7], 0);
    }

    #[test]
    fn long_names_are_cut_in_datagrams_only() {
        let addresses = ["192.0.2.7".parse().unwrap()];
        let cut = answer(&query("long.example", 1), &addresses, DATAGRAM).unwrap();
        assert_eq!((cut[2] & 2, cut[7]), (2, 0));
        let whole = answer(&query("long.example", 1), &addresses, 65_535).unwrap();
        assert_eq!((whole[2] & 2, whole[7]), (0, 100));
    }
}
