//! coturn's client, which says in words of its own what a NAT does.
#![allow(clippy::print_stdout, reason = "what is printed is shown when the test fails")]

use std::process::Output;
use std::time::Duration;

use netyard_nic::nat::{Filtering, Mapping};
use netyard_testbed::wait_for;

/// Far above what it takes to be asked some times.
const LIMIT: Duration = Duration::from_secs(120);

/// Asserts that coturn's client, which `run` starts with arguments, sees this mapping and filtering.
///
/// Each part is run by itself, from a local port of its own: two that by chance had the same one would
/// find the filter opened. The client sends each question once and waits three seconds; what comes later is taken
/// for the answer to its next question. So it is heard only if it had as many answers as there are to be had:
/// a machine that stalls makes it miss some.
pub(crate) fn assert_agrees(
    server: &str,
    mapping: Mapping,
    filtering: Filtering,
    run: impl Fn(&[&str]) -> Output,
) {
    let translates = mapping != Mapping::None;
    let (mapped, questions) = match mapping {
        Mapping::None => ("No NAT", 2),
        Mapping::EndpointIndependent => ("Endpoint Independent Mapping", 2),
        Mapping::AddressDependent => ("Address Dependent Mapping", 3),
        Mapping::AddressAndPortDependent => ("Address and Port Dependent Mapping", 3),
    };
    if translates {
        assert_says(mapped, questions, || run(&["-m", "-L", "10.0.0.2", "-l", "41000", server]));
    }
    let (filtered, questions) = match filtering {
        Filtering::EndpointIndependent => ("Endpoint Independent Filtering", 2),
        Filtering::AddressDependent => ("Address Dependent Filtering", 2),
        Filtering::AddressAndPortDependent => ("Address and Port Dependent Filtering", 1),
    };
    assert_says(filtered, questions, || run(&["-f", "-L", "10.0.0.2", "-l", "42000", server]));
}

fn assert_says(words: &str, answers: usize, run: impl Fn() -> Output) {
    let said = wait_for("all answers to coturn's client", LIMIT, || {
        let output = run();
        let text = [output.stdout, output.stderr].concat();
        let text = format!("{}\n{}", output.status, String::from_utf8_lossy(&text));
        let heard = text.matches("RFC 5780 response").count() >= answers;
        if !heard {
            // Shown when the test fails.
            println!("answers are missing in:\n{text}");
        }
        heard.then_some(text)
    });
    assert!(said.contains(words), "{words} is not in:\n{said}");
}
