//! `netyard explain`: explanations, paths and drawings as text.

use std::fs;
use std::io::{self, Read as _};
use std::path::Path as File;

use netyard_yard::client::Client;
use netyard_yard::error::{ErrorKind, YardError};
use netyard_yard::explain::answers::{self, Explanation, Kind, Listed};
use netyard_yard::explain::facts::Facts;
use netyard_yard::explain::path::{self, Decision, End, Hop, Outcome, Path, Question};
use netyard_yard::explain::{drawing, look};

use crate::flags::Explain;
use crate::output::{self, Cell, Mood, Output, Table, line};
use crate::verbs::show;

/// Explains, follows or draws.
pub(crate) fn explain(
    client: Result<Client, YardError>,
    what: &Explain,
    out: Output,
) -> Result<(), YardError> {
    if what.svg.is_some() && out.is_json() {
        return Err(YardError::new(
            ErrorKind::Input,
            "draw the yard",
            "a drawing is SVG, and JSON is asked for too",
        )
        .next("leave out --svg or --json"));
    }
    let yard = client.and_then(|client| look::yard(&client));
    if let Some(file) = &what.svg {
        return draw(&yard?, file);
    }
    match (&what.what, &what.to) {
        (Some(from), Some(to)) => {
            let facts = yard?;
            let (to, port, protocol) = path::split(to)?;
            let question = Question {
                from: End::parse(from, true, &facts)?,
                to: End::parse(to, false, &facts)?,
                port,
                protocol,
                ipv6: what.ipv6,
            };
            show(out, &path::follow(&facts, &question)?, way)
        }
        (Some(name), None) => {
            let found = yard.and_then(|facts| answers::about(&facts, name));
            // A network may be of no yard, or of another one.
            let found = found.or_else(|error| match error.kind {
                ErrorKind::Unknown | ErrorKind::Input => look::network(name)
                    .and_then(|facts| answers::about(&facts, name))
                    .map_err(|_| error),
                _ => Err(error),
            });
            show(out, found?.as_slice(), all)
        }
        _ => show(out, answers::everything(&yard?).as_slice(), all),
    }
}

fn draw(facts: &Facts, file: &File) -> Result<(), YardError> {
    let svg = drawing::draw(facts);
    if file == File::new("-") {
        return output::write(svg.as_bytes())
            .map_err(|error| YardError::io("print the drawing", &error));
    }
    let wanted = || format!("write the drawing to {}", file.display());
    let failed = |error: io::Error| YardError::io(wanted(), &error);
    if !may_become_a_drawing(file).map_err(failed)? {
        return Err(YardError::new(
            ErrorKind::Conflict,
            wanted(),
            "there is a file of that name that is no drawing",
        )
        .next("name another file, or remove that one"));
    }
    fs::write(file, svg).map_err(failed)?;
    let mut text = String::new();
    line(&mut text, format!("{} is written", file.display()));
    output::write(text.as_bytes()).map_err(failed)
}

/// Whether nothing is lost when a drawing is written there: `--svg NAME` may have been meant as two
/// words.
fn may_become_a_drawing(file: &File) -> io::Result<bool> {
    const START: &[u8] = b"<svg";
    match fs::metadata(file) {
        Ok(known) if known.is_file() && known.len() > 0 => {
            let mut start = Vec::new();
            fs::File::open(file)?.take(START.len() as u64).read_to_end(&mut start)?;
            Ok(start == START)
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(true),
    }
}

fn heading(text: &str, colour: bool) -> String {
    let mut table = Table::default();
    table.row([Cell::new(text, Mood::Heading)]);
    table.render(colour)
}

fn all(explanations: &[Explanation], colour: bool) -> String {
    explanations.iter().map(|one| explanation(one, colour)).collect()
}

fn explanation(one: &Explanation, colour: bool) -> String {
    let kind = match one.kind {
        Kind::Instance => "instance",
        Kind::Service => "service",
        Kind::Network => "network",
    };
    let mut text = heading(&format!("{kind} {}", one.name), colour);
    for answer in &one.answers {
        line(&mut text, format!("  {}", answer.question));
        for one in &answer.answer {
            line(&mut text, format!("    {one}"));
        }
    }
    if !one.rules.is_empty() {
        line(&mut text, "  Which rules has it, and what are they for?");
    }
    let mut before = None;
    for rule in &one.rules {
        if before != Some((&rule.table, &rule.chain)) {
            line(&mut text, format!("    table {}, chain {}", rule.table, rule.chain));
            before = Some((&rule.table, &rule.chain));
        }
        listed(rule, &mut text);
    }
    text
}

fn listed(rule: &Listed, text: &mut String) {
    let comment = rule.comment.as_ref().map(|text| format!("    # {text}")).unwrap_or_default();
    line(text, format!("      {}{comment}", rule.rule));
}

fn way(path: &Path, colour: bool) -> String {
    let port = match path.asked.destination.port() {
        0 => " (ping)".to_owned(),
        port => format!(":{port}/{}", path.speech),
    };
    let mut text = heading(&format!("from {} to {}{port}", path.from, path.to), colour);
    hops(&path.there, &mut text);
    let mut end = Table::default();
    end.row([match &path.outcome {
        Outcome::Arrives(at) => Cell::new(format!("it arrives: {at}"), Mood::Good),
        Outcome::Refused(why) => Cell::new(format!("it is refused: {why}"), Mood::Bad),
    }]);
    text.push_str(&end.render(colour));
    if !path.turns.is_empty() {
        line(&mut text, format!("in turn it is one of {}", path.turns.join(", ")));
    }
    if !path.back.is_empty() {
        text.push_str(&heading("and back", colour));
        hops(&path.back, &mut text);
    }
    for doubt in &path.doubts {
        line(&mut text, format!("not known: {doubt}"));
    }
    text
}

/// A numbered line for each hop; below it the addresses, at first and when they change, and the
/// rules.
fn hops(hops: &[Hop], text: &mut String) {
    let wide = hops.iter().map(|hop| hop.at.chars().count()).max().unwrap_or_default();
    for (number, hop) in (1..).zip(hops) {
        line(text, format!("  {number:2}  {:wide$}  {}", hop.at, hop.text));
        if number == 1 || hop.rewritten {
            line(text, format!("      {:wide$}  {}", "", hop.packet));
        }
        for rule in &hop.rules {
            decision(rule, wide, text);
        }
    }
}

fn decision(rule: &Decision, wide: usize, text: &mut String) {
    let place = format!("table {}, chain {}", rule.table, rule.chains.join(" > "));
    let handle = rule.handle.map(|handle| format!(", handle {handle}")).unwrap_or_default();
    let comment = rule.comment.as_ref().map(|text| format!("    # {text}")).unwrap_or_default();
    line(text, format!("      {:wide$}    {place}{handle}:", ""));
    line(text, format!("      {:wide$}      {}{comment}", "", rule.rule));
}
