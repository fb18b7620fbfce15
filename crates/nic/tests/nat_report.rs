//! Numbers, texts and JSON of NAT reports.
#![allow(clippy::unwrap_used, reason = "JSON that cannot be read is a failed test")]

use netyard_nic::nat::report::{Details, Method, Scope};
use netyard_nic::nat::{Confidence, Delta, DeltaType, Filtering, Mapping, NatReport, NatType};
use serde_json::{Value, json};

#[test]
fn c6_types_have_the_numbers_and_texts_of_older_programs() {
    let texts = [
        "open internet (no NAT)",
        "possible firewall (no NAT)",
        "full cone",
        "restrict reuse",
        "restrict port",
        "symetric",
        "unknown (all responses blocked)",
    ];
    for ((kind, text), number) in NatType::ALL.into_iter().zip(texts).zip(1..) {
        assert_eq!((kind.number(), kind.info()), (number, text));
        assert_eq!(serde_json::to_value(kind).unwrap(), json!(number));
        assert_eq!(NatType::try_from(number), Ok(kind));
    }
    assert!(NatType::try_from(0).is_err());
    assert_eq!(NatType::try_from(8).unwrap_err().to_string(), "8 is no NAT type: there are 1 to 7");
}

#[test]
fn c6_deltas_have_the_numbers_and_texts_of_older_programs() {
    let texts = [
        "not applicable",
        "equal delta (local port == mapped port)",
        "preserving delta ((local port + dist) == (mapped_start + dist))",
        "independent delta (rand port == (last_mapped += delta))",
        "dependent delta ((local port += [1 to delta]) == (last_mapped += [1 to delta]))",
        "random delta (local port == rand port)",
    ];
    for ((kind, text), number) in DeltaType::ALL.into_iter().zip(texts).zip(1..) {
        assert_eq!((kind.number(), kind.info()), (number, text));
        assert_eq!(DeltaType::try_from(number), Ok(kind));
    }
    assert!(DeltaType::try_from(0).is_err() && DeltaType::try_from(7).is_err());
}

/// Every pair of the two axes, with unknown ones.
#[test]
fn c6_the_axes_make_the_types() {
    use Filtering as F;
    use Mapping as M;
    let filters = [
        Some(F::EndpointIndependent),
        Some(F::AddressDependent),
        Some(F::AddressAndPortDependent),
        None,
    ];
    let table: [(Option<M>, [Option<u8>; 4]); 5] = [
        (Some(M::None), [Some(1), Some(2), Some(2), None]),
        (Some(M::EndpointIndependent), [Some(3), Some(4), Some(5), None]),
        (Some(M::AddressDependent), [Some(6); 4]),
        (Some(M::AddressAndPortDependent), [Some(6); 4]),
        (None, [None; 4]),
    ];
    for (mapping, kinds) in table {
        for (filtering, number) in filters.into_iter().zip(kinds) {
            let kind = NatType::of(mapping, filtering);
            assert_eq!(kind.map(NatType::number), number, "{mapping:?} {filtering:?}");
        }
    }
}

#[test]
fn the_record_of_older_programs_is_read_and_comes_out_again() {
    let written = json!({
        "type": 5,
        "nat_info": "restrict port",
        "delta": { "type": 6, "value": 0 },
        "delta_info": "random delta (local port == rand port)"
    });
    let report: NatReport = serde_json::from_value(written.clone()).unwrap();
    assert_eq!(report.kind, Some(NatType::PortRestricted));
    assert_eq!(report.delta, NatReport::assumed().delta);
    let again = serde_json::to_value(&report).unwrap();
    for key in ["type", "nat_info", "delta", "delta_info"] {
        assert_eq!(again[key], written[key], "{key}");
    }
    assert_eq!(again["mapping"], Value::Null, "what was not tested is null");
}

#[test]
fn what_is_written_is_read_and_what_is_unknown_is_kept() {
    let report = NatReport {
        kind: Some(NatType::Symmetric),
        delta: Some(Delta::new(DeltaType::Independent, -4, Scope::Socket)),
        details: Details {
            mapping: Some(Mapping::AddressDependent),
            filtering: Some(Filtering::AddressDependent),
            lifetime_s: Some(30),
            lifetime_below_s: Some(45),
            method: Some(Method::Rfc5780),
            confidence: Confidence::Proven,
            ..Details::default()
        },
        unknown: json!({ "weather": "fine" }).as_object().unwrap().clone(),
    };
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<NatReport>(&text).unwrap(), report);
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["weather"], "fine");
    assert_eq!(value["delta"]["signed"], -4);
    assert_eq!(value["delta"]["value"], 4);
    assert_eq!(value["rfc4787"]["req_1"], "fail");
    assert_eq!(value["rfc4787"]["req_5"], "fail");
    assert_eq!(value["rfc4787"]["req_8"], "pass");
    assert_eq!(value["rfc4787"]["req_9"], "untested");
    assert_eq!(value["nat_info"], "symetric");
    assert!(serde_json::from_value::<NatReport>(json!({ "type": 9 })).is_err());
    assert_eq!(serde_json::from_value::<NatReport>(json!({ "type": null })).unwrap().kind, None);
}
