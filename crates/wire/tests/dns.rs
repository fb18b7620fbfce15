//! DNS messages: golden bytes, round trips, and messages that lie.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

use std::net::{Ipv4Addr, Ipv6Addr};

use netyard_wire::dns::{
    self, Data, Edns, Flags, Kept, Manner, Name, Query, Question, Rcode, Record, Response, Soa, Srv,
};
use proptest::prelude::*;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn query(text: &str, kind: u16) -> Query {
    Query {
        id: 0x1234,
        flags: Flags::RECURSION_DESIRED,
        question: Question { name: name(text), kind, class: dns::IN },
        edns: None,
    }
}

const QUERY: &[u8] = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\
    \x03Web\x03lan\x00\x00\x01\x00\x01\
    \x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00";

#[test]
fn a_query_with_edns_has_these_bytes() {
    let query = Query { edns: Some(Edns { udp_size: 1232 }), ..query("Web.lan", dns::A) };
    assert_eq!(query.emit(), QUERY);
    assert_eq!(Query::parse(QUERY), Ok(query.clone()));
    assert_eq!(query.udp_size(), 1232);
    assert_eq!(query.question.name.to_string(), "Web.lan", "the case is kept for the answer");
}

#[test]
fn a_response_has_these_bytes() {
    let mut response = Response::to(&query("web.lan", dns::A), Rcode::NoError);
    response.flags = response.flags | Flags::AUTHORITATIVE;
    response.answers.push(Record {
        name: name("web.lan"),
        ttl: 5,
        data: Data::A(Ipv4Addr::new(192, 168, 127, 5)),
    });
    let bytes = b"\x12\x34\x85\x80\x00\x01\x00\x01\x00\x00\x00\x00\
        \x03web\x03lan\x00\x00\x01\x00\x01\
        \xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x05\x00\x04\xc0\xa8\x7f\x05";
    assert_eq!(response.emit(512), bytes);
    assert_eq!(Response::parse(bytes), Ok(response));
}

#[test]
fn every_record_that_is_written_reads_back() {
    let query = Query { edns: Some(Edns { udp_size: 4096 }), ..query("no.web.lan", dns::ANY) };
    let mut response = Response::to(&query, Rcode::NameError);
    let data = [
        Data::A(Ipv4Addr::LOCALHOST),
        Data::Aaaa(Ipv6Addr::LOCALHOST),
        Data::Ptr(name("other.web.lan")),
        Data::Cname(name("web.lan")),
        Data::Cname(Name::root()),
        Data::Srv(Srv { priority: 1, weight: 2, port: 8080, target: name("web.lan") }),
        Data::text("text"),
    ];
    response.answers =
        data.into_iter().map(|data| Record { name: name("no.web.lan"), ttl: 60, data }).collect();
    response.authority.push(Record {
        name: name("lan"),
        ttl: 1,
        data: Data::Soa(Soa {
            primary: name("gateway.lan"),
            mailbox: name("nobody.invalid"),
            serial: 1,
            refresh: 2,
            retry: 3,
            expire: 4,
            minimum: 5,
        }),
    });
    let bytes = response.emit(4096);
    let parsed = Response::parse(&bytes).unwrap();
    assert_eq!(parsed, response);
    assert_eq!(parsed.flags.rcode(), Rcode::NameError);
    assert!(parsed.answers(&query));
}

/// A response to a query for `web.example` with these answers and authority records.
fn answered(rcode: Rcode, answers: &[(u32, Data)], authority: &[(u32, Data)]) -> Response {
    let records = |all: &[(u32, Data)]| {
        let record = |(ttl, data): &(u32, Data)| Record {
            name: name("web.example"),
            ttl: *ttl,
            data: data.clone(),
        };
        all.iter().map(record).collect()
    };
    let mut response = Response::to(&query("web.example", dns::A), rcode);
    (response.answers, response.authority) = (records(answers), records(authority));
    response
}

#[test]
fn an_answer_is_kept_for_as_long_as_it_says() {
    let lifetime = |response: &Response| Kept::of(&response.emit(512)).map(|kept| kept.lifetime());
    let address = Data::A(Ipv4Addr::LOCALHOST);
    let alias = Data::Cname(name("web.example.org"));
    let soa = |minimum| {
        let (primary, mailbox) = (name("ns.example"), name("root.example"));
        Data::Soa(Soa { primary, mailbox, serial: 1, refresh: 2, retry: 3, expire: 4, minimum })
    };
    let good = |answers: &[(u32, Data)]| lifetime(&answered(Rcode::NoError, answers, &[]));
    assert_eq!(good(&[(300, address.clone()), (60, address.clone())]), Some(60));
    assert_eq!(good(&[(30, alias.clone()), (60, address.clone())]), Some(30));
    assert_eq!(good(&[(u32::MAX, address.clone())]), None, "RFC 2181 section 8");
    assert_eq!(good(&[(i32::MAX as u32, address.clone())]), Some(86_400));
    assert_eq!(good(&[(0, address.clone())]), None);
    // Of what is not there the zone says how long that is so (RFC 2308).
    for rcode in [Rcode::NameError, Rcode::NoError] {
        assert_eq!(lifetime(&answered(rcode, &[], &[(3600, soa(60))])), Some(60));
        assert_eq!(lifetime(&answered(rcode, &[], &[(50, soa(60))])), Some(50));
        assert_eq!(lifetime(&answered(rcode, &[(9, alias.clone())], &[(50, soa(60))])), Some(9));
        assert_eq!(lifetime(&answered(rcode, &[], &[(90_000, soa(90_000))])), Some(300));
        assert_eq!(lifetime(&answered(rcode, &[], &[])), None);
    }
    assert_eq!(lifetime(&answered(Rcode::ServerFailure, &[], &[(3600, soa(60))])), None);
    let mut cut = answered(Rcode::NoError, &[(300, address)], &[]);
    cut.flags = cut.flags | Flags::TRUNCATED;
    assert_eq!(lifetime(&cut), None);
}

#[test]
fn a_kept_answer_is_told_with_its_age_and_the_askers_case() {
    let response = answered(
        Rcode::NoError,
        &[(300, Data::A(Ipv4Addr::LOCALHOST)), (90, Data::text("x"))],
        &[],
    );
    let kept = Kept::of(&response.emit(512)).unwrap();
    let asked = Query { id: 9, ..query("WEB.example", dns::A) };
    let answer = Response::parse(&kept.answer(&asked, 100)).unwrap();
    assert!(answer.answers(&asked));
    assert_eq!(answer.question.unwrap().name.to_string(), "WEB.example");
    assert_eq!(answer.answers.iter().map(|record| record.ttl).collect::<Vec<_>>(), [200, 0]);
    // That something is not there is told for no longer than it is kept.
    let (primary, mailbox) = (name("ns.example"), name("root.example"));
    let soa = Soa { primary, mailbox, serial: 1, refresh: 2, retry: 3, expire: 4, minimum: 60 };
    let gone = answered(Rcode::NameError, &[], &[(3600, Data::Soa(soa))]);
    let kept = Kept::of(&gone.emit(512)).unwrap();
    let answer = Response::parse(&kept.answer(&asked, 10)).unwrap();
    assert_eq!(answer.authority.first().map(|record| record.ttl), Some(50));
}

#[test]
fn an_answer_whose_names_run_through_its_times_is_not_kept() {
    // The first record's time reads as the name `a`.
    let address = Data::A(Ipv4Addr::LOCALHOST);
    let answers = [(0x0161_0000, address.clone()), (300, address)];
    let mut message = answered(Rcode::NoError, &answers, &[]).emit(512);
    assert!(Kept::of(&message).is_some());
    let time = message.windows(4).position(|bytes| bytes == [1, 0x61, 0, 0]).unwrap();
    let owner = time + 4 + 2 + 4;
    assert_eq!(message[owner..owner + 2], [0xc0, 12], "a pointer to the question");
    message[owner + 1] = time as u8;
    let read = Response::parse(&message).unwrap();
    assert_eq!(read.answers[1].name, name("a"));
    assert_eq!(Kept::of(&message), None);
    // The identification's second byte reads as the root.
    message[1] = 0;
    message[owner + 1] = 1;
    assert_eq!(Response::parse(&message).unwrap().answers[1].name, Name::root());
    assert_eq!(Kept::of(&message), None);
}

#[test]
fn queries_that_may_have_other_answers_have_other_manners() {
    let plain = query("web.example", dns::A).emit();
    let manner = Manner::of(&plain);
    assert!(manner.is_some());
    let with = |at: usize, byte: u8| {
        let mut message = plain.clone();
        message[at] = byte;
        Manner::of(&message)
    };
    assert_eq!(with(0, 77), manner, "the identification says nothing");
    assert_ne!(with(3, 0x10), manner, "checking disabled");
    assert_ne!(with(2, 0), manner, "no recursion");
    assert_eq!(with(2, 0x29), None, "an update");
    let edns = |ttl: [u8; 4], options: &[u8]| {
        let mut message = plain.clone();
        message[11] = 1;
        message.extend([0, 0, 41, 4, 0xd0]);
        message.extend(ttl);
        message.extend([0, u8::try_from(options.len()).unwrap()]);
        message.extend(options);
        Manner::of(&message)
    };
    assert!(edns([0; 4], &[]).is_some_and(|edns| Some(edns) != manner));
    assert_ne!(edns([0, 0, 0x80, 0], &[]), edns([0; 4], &[]), "signatures are wanted");
    assert_eq!(edns([0, 1, 0, 0], &[]), None, "another version");
    assert_eq!(edns([0; 4], &[0, 8, 0, 4, 0, 1, 0, 0]), None, "a part of the asker's address");
}

#[test]
fn a_response_that_does_not_fit_says_so() {
    let query = query("web.lan", dns::A);
    let mut response = Response::to(&query, Rcode::NoError);
    let data = Data::A(Ipv4Addr::LOCALHOST);
    response.answers = vec![Record { name: name("web.lan"), ttl: 1, data }; 30]; // 16 bytes each
    assert_eq!(Response::parse(&response.emit(query.udp_size())).unwrap().answers.len(), 30);
    response.answers.push(response.answers[0].clone());
    let bytes = response.emit(query.udp_size());
    assert!(bytes.len() <= 512);
    let parsed = Response::parse(&bytes).unwrap();
    assert!(parsed.flags.contains(Flags::TRUNCATED) && parsed.answers.is_empty());
    assert!(parsed.answers(&query));
}

#[test]
fn a_response_to_something_else_is_not_taken() {
    let asked = query("web.lan", dns::A);
    let response = Response::to(&asked, Rcode::NoError);
    assert!(response.answers(&asked));
    assert!(response.answers(&query("WEB.LAN", dns::A)));
    assert!(!response.answers(&query("web.lan", dns::AAAA)));
    assert!(!response.answers(&query("web2.lan", dns::A)));
    assert!(!response.answers(&Query { id: 1, ..asked.clone() }));
    assert!(!Response { question: None, ..response }.answers(&asked));
}

#[test]
fn an_unreadable_query_is_answered_with_its_identification() {
    assert_eq!(
        dns::format_error(b"\xab\xcd\x01\x00\x00\x02\x00\x00\x00\x00\x00\x00junk"),
        Some(*b"\xab\xcd\x81\x01\x00\x00\x00\x00\x00\x00\x00\x00")
    );
    assert_eq!(dns::format_error(b"\xab\xcd\x01"), None);
    let response = b"\xab\xcd\x81\x00\x00\x01\x00\x00\x00\x00\x00\x00";
    assert_eq!(dns::format_error(response), None, "two servers must not talk for ever");
}

#[test]
fn another_identification_can_be_put_in() {
    let mut message = QUERY.to_vec();
    dns::set_id(&mut message, 7);
    assert_eq!(Query::parse(&message).unwrap().id, 7);
}

#[test]
fn opcodes_are_told() {
    assert_eq!(Flags(0x2800).opcode(), 5, "update");
    let update = Query { flags: Flags(0x2800), ..query("lan", dns::SOA) };
    assert_eq!(Response::to(&update, Rcode::NotImplemented).flags, Flags(0xa884));
}

/// A query's header and a question whose name is `name`.
fn with_name(name: &[u8]) -> Vec<u8> {
    let mut message = b"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
    message.extend_from_slice(name);
    message.extend_from_slice(b"\x00\x01\x00\x01");
    message
}

#[test]
fn messages_that_lie_are_refused() {
    let reason = |message: &[u8]| Query::parse(message).unwrap_err().reason();
    for len in 0..QUERY.len() {
        assert_eq!(reason(&QUERY[..len]), "dns-truncated", "cut to {len} bytes");
    }
    let changed = |at: usize, byte: u8| {
        let mut message = QUERY.to_vec();
        message[at] = byte;
        message
    };
    assert_eq!(reason(&changed(2, 0x81)), "dns-not-a-query");
    assert_eq!(reason(&changed(5, 0)), "dns-question-count");
    assert_eq!(reason(&changed(5, 2)), "dns-question-count");
    assert_eq!(reason(&changed(4, 0xff)), "dns-question-count");
    assert_eq!(reason(&changed(7, 2)), "dns-truncated", "more answers than there are");
    assert_eq!(reason(&changed(9, 2)), "dns-truncated", "more authorities than there are");
    assert_eq!(reason(&changed(10, 0xff)), "dns-truncated", "more additionals than there are");
    assert_eq!(reason(&changed(QUERY.len() - 1, 1)), "dns-truncated", "data past the end");

    let edns = &QUERY[QUERY.len() - 11..];
    let mut twice = changed(11, 2);
    twice.extend_from_slice(edns);
    assert_eq!(reason(&twice), "dns-edns-count");
}

#[test]
fn names_that_lie_are_refused() {
    let reason = |name: &[u8]| Query::parse(&with_name(name)).unwrap_err().reason();
    assert_eq!(reason(b"\xc0\x0c"), "dns-name-pointer", "to itself");
    assert_eq!(reason(b"\x01a\xc0\x0c"), "dns-name-pointer", "to its own beginning");
    assert_eq!(reason(b"\xc0\x0e\xc0\x0c"), "dns-name-pointer", "forwards");
    assert_eq!(reason(b"\xff\xff"), "dns-name-pointer", "past the end");
    assert_eq!(reason(b"\x40"), "dns-label-kind");
    assert_eq!(reason(b"\x80"), "dns-label-kind");
    assert_eq!(reason(b"\x3fshort"), "dns-truncated");
    let long = [[b"\x3f".as_slice(), &[b'a'; 63]].concat().repeat(4), vec![0]].concat();
    assert_eq!(reason(&long), "dns-name-length");
    let longest =
        [[b"\x3f".as_slice(), &[b'a'; 63]].concat().repeat(3), vec![61], vec![b'a'; 61], vec![0]]
            .concat();
    assert_eq!(longest.len(), 255);
    assert!(Query::parse(&with_name(&longest)).is_ok());
}

#[test]
fn chains_of_pointers_are_bounded() {
    // The question's name is the root; then answers, each of whose names points to the one before.
    let mut message =
        b"\x00\x01\x81\x00\x00\x01\xff\xff\x00\x00\x00\x00\x00\x00\x01\x00\x01".to_vec();
    let mut target = 12u16;
    for _ in 0..1000 {
        let at = u16::try_from(message.len()).unwrap();
        message.extend_from_slice(&(0xc000 | target).to_be_bytes());
        message.extend_from_slice(b"\x00\x01\x00\x01\x00\x00\x00\x00\x00\x04\x7f\x00\x00\x01");
        target = at;
    }
    assert_eq!(Response::parse(&message).unwrap_err().reason(), "dns-name-pointer");
}

#[test]
fn record_data_that_lies_is_refused() {
    let response = |record: &[u8]| {
        let mut message = b"\x00\x01\x81\x00\x00\x01\x00\x01\x00\x00\x00\x00\
            \x03web\x03lan\x00\x00\x01\x00\x01\xc0\x0c"
            .to_vec();
        message.extend_from_slice(record);
        Response::parse(&message).map_err(|error| error.reason())
    };
    assert!(response(b"\x00\x01\x00\x01\x00\x00\x00\x00\x00\x04\x7f\x00\x00\x01").is_ok());
    let short_address = b"\x00\x01\x00\x01\x00\x00\x00\x00\x00\x03\x7f\x00\x00\x01";
    assert_eq!(response(short_address), Err("dns-truncated"));
    let long_address = b"\x00\x01\x00\x01\x00\x00\x00\x00\x00\x05\x7f\x00\x00\x01\x00";
    assert_eq!(response(long_address), Err("dns-data-length"));
    let missing = b"\x00\x01\x00\x01\x00\x00\x00\x00\x00\x05\x7f\x00\x00\x01";
    assert_eq!(response(missing), Err("dns-truncated"));
    let name_past_its_data = b"\x00\x05\x00\x01\x00\x00\x00\x00\x00\x03\x03web\x00";
    assert_eq!(response(name_past_its_data), Err("dns-truncated"));
    let data_behind_the_name = b"\x00\x05\x00\x01\x00\x00\x00\x00\x00\x03\xc0\x0c\x00";
    assert_eq!(response(data_behind_the_name), Err("dns-data-length"));
    let pointer_into_itself = b"\x00\x05\x00\x01\x00\x00\x00\x00\x00\x02\xc0\x25";
    assert_eq!(response(pointer_into_itself), Err("dns-name-pointer"));
}

#[test]
fn records_of_other_classes_are_left_out() {
    let message = b"\x00\x01\x81\x00\x00\x01\x00\x01\x00\x00\x00\x00\
        \x03web\x03lan\x00\x00\x01\x00\x03\
        \xc0\x0c\x00\x01\x00\x03\x00\x00\x00\x05\x00\x02\xc0\xa8";
    assert_eq!(Response::parse(message).unwrap().answers, []);
}

fn names() -> impl Strategy<Value = Name> {
    let label = prop::collection::vec(any::<u8>(), 1..=20);
    prop::collection::vec(label, 0..=8).prop_map(|labels| {
        let text: Vec<String> = labels
            .iter()
            .map(|label| label.iter().map(|byte| format!("\\{byte:03}")).collect())
            .collect();
        if text.is_empty() { Name::root() } else { text.join(".").parse().unwrap() }
    })
}

proptest! {
    #[test]
    fn names_read_back_from_text_and_from_messages(
        asked in names(), other in names(), prefix in names(), id: u16,
    ) {
        prop_assert_eq!(&asked.to_string().parse::<Name>().unwrap(), &asked);
        let question = Question { name: asked.clone(), kind: dns::PTR, class: dns::IN };
        let query = Query { id, flags: Flags::default(), question, edns: None };
        prop_assert_eq!(&Query::parse(&query.emit()).unwrap(), &query);

        // A name that ends like the question's is compressed, and reads back the same.
        let below: Name = format!("{prefix}.{asked}").trim_matches('.').parse::<Name>()
            .unwrap_or_else(|_| Name::root());
        let mut response = Response::to(&query, Rcode::NoError);
        for data in [Data::Ptr(other.clone()), Data::Cname(below.clone())] {
            response.answers.push(Record { name: asked.clone(), ttl: 1, data: data.clone() });
            response.authority.push(Record { name: below.clone(), ttl: 1, data });
        }
        prop_assert_eq!(Response::parse(&response.emit(65_535)).unwrap(), response);
    }
}
