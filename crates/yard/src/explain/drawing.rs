//! A drawing of a yard, as SVG.
//!
//! Networks are upright bars with a heading each; every plug is a row: a line from its network's bar
//! to the box of what is plugged in. Boxes stand one below the other to the right of all bars, and
//! what is written beside a line stands between the last bar and the boxes, so nothing can cover
//! anything else however much there is. The file stands alone: no fonts, no scripts, and colours that
//! follow a light or dark reader.

use std::fmt::Write as _;

use netyard_engine::config::{Mode, Uplink};

use super::facts::{Cable, Facts, InstanceFacts};
use crate::api::{InstanceState, NetworkStatus, ServiceStatus};

/// Width of a letter of a monospaced font and height of a line at 13 px, with something to spare.
const LETTER: u32 = 8;
const LINE: u32 = 18;
/// Between things, and between a box and what is written in it.
const GAP: u32 = 24;
const PADDING: u32 = 10;
/// Between the rows of one box's plugs.
const ROW: u32 = 36;
const BAR: u32 = 8;

const STYLE: &str = "\
:root{color-scheme:light dark}\
text{font:13px monospace;fill:#1b1f24}\
.t{font-weight:bold}.s{fill:#57606a}\
.p{fill:#fff}.b{fill:#f6f8fa;stroke:#8c959f}.v{fill:#fff8e5;stroke:#bf8700}\
.n{fill:#0969da}.h{fill:#ddf4ff;stroke:#0969da}\
.l{stroke:#0969da;stroke-width:2;fill:none}.d{stroke-dasharray:5 4}\
.good{fill:#1a7f37}.bad{fill:#cf222e}.wait{fill:#9a6700}\
@media(prefers-color-scheme:dark){\
text{fill:#e6edf3}.s{fill:#9198a1}\
.p{fill:#0d1117}.b{fill:#161b22;stroke:#6e7681}.v{fill:#2b2111;stroke:#d29922}\
.n{fill:#4493f8}.h{fill:#121d2f;stroke:#4493f8}.l{stroke:#4493f8}\
.good{fill:#3fb950}.bad{fill:#f85149}.wait{fill:#d29922}}";

/// A place on the sheet, pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Rect {
    x: u32,
    y: u32,
    width: u32,
    height: u32,
}

impl Rect {
    fn right(self) -> u32 {
        self.x + self.width
    }

    fn bottom(self) -> u32 {
        self.y + self.height
    }
}

/// A line of text with its class.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Text {
    text: String,
    class: &'static str,
}

impl Text {
    fn new(text: impl Into<String>, class: &'static str) -> Self {
        Self { text: text.into(), class }
    }

    fn width(&self) -> u32 {
        u32::try_from(self.text.chars().count()).unwrap_or(u32::MAX / LETTER / 2) * LETTER
    }
}

/// A box with lines of text in it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Panel {
    place: Rect,
    class: &'static str,
    lines: Vec<Text>,
}

/// A plug: a line from a bar to a box, and what is written above it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wire {
    /// Number of the network.
    network: usize,
    y: u32,
    label: Text,
    dashed: bool,
}

/// What goes to the right of the bars.
struct Member {
    class: &'static str,
    lines: Vec<Text>,
    wires: Vec<(usize, Text)>,
}

/// Everything with its place.
#[derive(Debug, Default)]
struct Sheet {
    width: u32,
    height: u32,
    title: String,
    machine: Option<Panel>,
    headings: Vec<Panel>,
    /// Whether anything leaves each network.
    leaving: Vec<bool>,
    bars: Vec<Rect>,
    wires: Vec<Wire>,
    /// Where what is written above the wires begins, and how wide it is.
    labels: (u32, u32),
    boxes: Vec<Panel>,
}

/// Draws a yard.
#[must_use]
pub fn draw(facts: &Facts) -> String {
    sheet(facts).svg()
}

fn sheet(facts: &Facts) -> Sheet {
    let headings: Vec<_> = facts.networks.iter().map(heading).collect();
    let mut members: Vec<Member> =
        facts.services.iter().map(|service| of_service(facts, service)).collect();
    members.extend(facts.instances.iter().map(|instance| of_instance(facts, instance)));
    let title = facts.yard.as_deref().map(|name| format!("yard {name}")).unwrap_or_default();
    Sheet::arrange(title, machine(facts), &headings, &members)
}

impl Sheet {
    fn arrange(
        title: String,
        machine: Vec<Text>,
        networks: &[(Vec<Text>, bool)],
        members: &[Member],
    ) -> Self {
        let widest = |lines: &[Text]| lines.iter().map(Text::width).max().unwrap_or_default();
        let tall = |lines: usize| u32::try_from(lines).unwrap_or_default() * LINE + 2 * PADDING;
        let mut sheet = Self { title, ..Self::default() };
        let top = GAP + LINE + GAP;
        // The headings, side by side below this machine.
        let below = top + tall(machine.len()) + GAP;
        let lines = networks.iter().map(|(lines, _)| lines.len()).max().unwrap_or_default();
        let mut x = GAP;
        for (lines_of, leaves) in networks {
            let width = widest(lines_of) + 2 * PADDING;
            let place = Rect { x, y: below, width, height: tall(lines) };
            sheet.headings.push(Panel { place, class: "h", lines: lines_of.clone() });
            sheet.leaving.push(*leaves);
            x += width + GAP;
        }
        let width = (widest(&machine) + 2 * PADDING).max(x.saturating_sub(2 * GAP));
        let place = Rect { x: GAP, y: top, width, height: tall(machine.len()) };
        sheet.machine = Some(Panel { place, class: "b", lines: machine });
        // What is plugged in, one below the other.
        let wires = || members.iter().flat_map(|member| &member.wires);
        let label = wires().map(|(_, label)| label.width()).max().unwrap_or_default();
        sheet.labels = (x, label);
        let left = x + label + GAP;
        let first = below + tall(lines) + GAP;
        let mut y = first;
        let wide = members.iter().map(|member| widest(&member.lines)).max().unwrap_or_default();
        for member in members {
            let rows = u32::try_from(member.wires.len()).unwrap_or_default() * ROW;
            let height = tall(member.lines.len()).max(rows);
            let place = Rect { x: left, y, width: wide + 2 * PADDING, height };
            for (row, (network, label)) in (0..).zip(&member.wires) {
                sheet.wires.push(Wire {
                    network: *network,
                    y: y + ROW / 2 + row * ROW + 4,
                    label: label.clone(),
                    dashed: member.class == "v",
                });
            }
            sheet.boxes.push(Panel { place, class: member.class, lines: member.lines.clone() });
            y += height + GAP / 2;
        }
        for heading in &sheet.headings {
            let place = heading.place;
            sheet.bars.push(Rect {
                x: place.x + place.width / 2 - BAR / 2,
                y: place.bottom(),
                width: BAR,
                height: y.max(first + GAP) - place.bottom(),
            });
        }
        let machine = sheet.machine.as_ref().map_or(0, |it| it.place.right());
        let boxes = sheet.boxes.iter().map(|it| it.place.right()).max().unwrap_or_default();
        let title = Text::new(sheet.title.clone(), "t").width() + GAP;
        sheet.width = machine.max(boxes).max(x).max(title) + GAP;
        sheet.height = y.max(first + GAP) + GAP;
        sheet
    }

    fn svg(&self) -> String {
        let (width, height) = (self.width, self.height);
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
             width=\"{width}\" height=\"{height}\" role=\"img\">\n<title>{}</title>\n\
             <style>{STYLE}</style>\n<rect class=\"p\" width=\"{width}\" height=\"{height}\"/>",
            escape(&self.title)
        );
        text(&mut out, GAP, GAP + LINE, &Text::new(self.title.clone(), "t"));
        for (heading, leaves) in self.headings.iter().zip(&self.leaving) {
            if let Some(machine) = &self.machine {
                let x = heading.place.x + heading.place.width / 2;
                let (from, to) = (machine.place.bottom(), heading.place.y);
                let class = if *leaves { "l" } else { "l d" };
                let _ = writeln!(out, "<path class=\"{class}\" d=\"M{x} {from}V{to}\"/>");
            }
        }
        let right = self.labels.0 + self.labels.1 + GAP;
        for wire in &self.wires {
            let Some(bar) = self.bars.get(wire.network) else { continue };
            let (from, y) = (bar.x + BAR / 2, wire.y);
            let class = if wire.dashed { "l d" } else { "l" };
            let _ = writeln!(out, "<path class=\"{class}\" d=\"M{from} {y}H{right}\"/>");
            text(&mut out, self.labels.0, y - 6, &wire.label);
        }
        // Lines pass below the bars that they do not belong to.
        for bar in &self.bars {
            let Rect { x, y, width, height } = bar;
            let _ = writeln!(
                out,
                "<rect class=\"n\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"4\"/>"
            );
        }
        for wire in &self.wires {
            let Some(bar) = self.bars.get(wire.network) else { continue };
            let (x, y) = (bar.x + BAR / 2, wire.y);
            let _ = writeln!(out, "<circle class=\"n\" cx=\"{x}\" cy=\"{y}\" r=\"7\"/>");
        }
        for one in self.machine.iter().chain(&self.headings).chain(&self.boxes) {
            let Rect { x, y, width, height } = one.place;
            let class = one.class;
            let _ = writeln!(
                out,
                "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" \
                 rx=\"6\"/>"
            );
            for (number, line) in (1..).zip(&one.lines) {
                text(&mut out, x + PADDING, y + PADDING + number * LINE - 4, line);
            }
        }
        out.push_str("</svg>\n");
        out
    }
}

fn text(out: &mut String, x: u32, y: u32, text: &Text) {
    let (class, text) = (text.class, escape(&text.text));
    let _ = writeln!(out, "<text class=\"{class}\" x=\"{x}\" y=\"{y}\">{text}</text>");
}

/// Text as XML has it; what XML cannot have is left out (XML 1.0 section 2.2).
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\u{fffe}' | '\u{ffff}' => {}
            letter if letter.is_control() => {}
            letter => out.push(letter),
        }
    }
    out
}

fn machine(facts: &Facts) -> Vec<Text> {
    let mut lines = vec![Text::new("this machine", "t")];
    let links = [true, false].map(|v4| Some((facts.host.uplink(v4)?, v4)));
    let mut before = None;
    for (link, v4) in links.into_iter().flatten() {
        let address = link.address(v4).map(|address| format!(" {address}")).unwrap_or_default();
        let name = if before == Some(&link.name) { "" } else { &link.name };
        let wide = link.name.chars().count();
        lines.push(Text::new(format!("{name:wide$}{address}"), "s"));
        before = Some(&link.name);
    }
    if before.is_none() {
        lines.push(Text::new("no way out", "s"));
    }
    lines
}

/// A network's heading, and whether anything leaves it.
fn heading(network: &NetworkStatus) -> (Vec<Text>, bool) {
    let mut lines = vec![Text::new(format!("network {}", network.name), "t")];
    let Some(config) = &network.state.config else {
        lines.push(Text::new("does not answer", "bad"));
        return (lines, false);
    };
    lines.push(Text::new(config.subnet4.to_string(), ""));
    lines.push(Text::new(config.subnet6.to_string(), "s"));
    lines.push(Text::new(format!("gateway {}", config.gateway4()), "s"));
    let mode = match (&config.mode, &network.state.interface) {
        (Mode::Bridge(_), Some(bridge)) => format!("bridge {bridge}"),
        _ => "user mode".into(),
    };
    lines.push(Text::new(format!("{mode}, uplink {}", config.uplink), "s"));
    (lines, config.uplink != Uplink::None)
}

fn number(facts: &Facts, network: &str) -> Option<usize> {
    facts.networks.iter().position(|it| it.name == network)
}

fn of_service(facts: &Facts, service: &ServiceStatus) -> Member {
    /// Names of instances in a line.
    const NAMES: usize = 4;
    let mut lines = vec![Text::new(format!("service {}", service.name), "t")];
    let published = service.published.map(|at| format!(", published {at}")).unwrap_or_default();
    lines.push(Text::new(format!("port {}/{}{published}", service.port, service.protocol), ""));
    let names: Vec<_> = service.instances.iter().map(|it| it.name.as_str()).collect();
    for names in names.chunks(NAMES) {
        lines.push(Text::new(format!("to {}", names.join(", ")), "s"));
    }
    let address = service.addresses.first().map(ToString::to_string).unwrap_or_default();
    let wires = number(facts, &service.network).map(|it| (it, Text::new(address, "")));
    Member { class: "v", lines, wires: wires.into_iter().collect() }
}

fn of_instance(facts: &Facts, instance: &InstanceFacts) -> Member {
    let status = &instance.status;
    let mut lines = vec![Text::new(status.name.clone(), "t")];
    let class = match status.state {
        InstanceState::Healthy | InstanceState::Running => "good",
        InstanceState::Pending | InstanceState::Starting | InstanceState::Backoff => "wait",
        InstanceState::Stopped | InstanceState::Exited { code: 0 } => "s",
        InstanceState::Unhealthy | InstanceState::Failed | InstanceState::Exited { .. } => "bad",
    };
    lines.push(Text::new(status.state.to_string(), class));
    let forwards = facts.networks.iter().flat_map(|it| &it.state.forwards);
    for forward in forwards.filter(|it| it.forward.instance == status.name) {
        lines.push(Text::new(format!("forward {}", forward.forward), "s"));
    }
    let wires = facts
        .cables(instance)
        .into_iter()
        .filter_map(|cable| Some((number(facts, &cable.network.name)?, label(&cable))));
    Member { class: "b", lines, wires: wires.collect() }
}

/// `bridge-plug1 - eth0 192.168.1.11`.
fn label(cable: &Cable<'_>) -> Text {
    let outside = cable.outside.map(|card| format!("{} - ", card.name)).unwrap_or_default();
    let inside = cable.inside.map(|card| format!("{} ", card.name)).unwrap_or_default();
    let address = cable.plug.addresses.first().map(ToString::to_string).unwrap_or_default();
    Text::new(format!("{outside}{inside}{address}"), "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sheet(networks: usize, members: usize) -> Sheet {
        let networks: Vec<_> = (0..networks)
            .map(|number| {
                let lines = vec![
                    Text::new(format!("network {}", "n".repeat(1 + number * 5)), "t"),
                    Text::new("192.168.127.0/24", ""),
                ];
                (lines, number % 2 == 0)
            })
            .collect();
        let members: Vec<_> = (0..members)
            .map(|number| Member {
                class: if number % 3 == 0 { "v" } else { "b" },
                lines: vec![Text::new("m".repeat(1 + number), "t"); 1 + number % 4],
                wires: (0..number % (networks.len() + 1))
                    .map(|network| (network, Text::new("x".repeat(number), "")))
                    .collect(),
            })
            .collect();
        let machine = vec![Text::new("this machine", "t"), Text::new("uplink eth0", "s")];
        Sheet::arrange("yard test".into(), machine, &networks, &members)
    }

    /// Everything that must not cover anything else.
    fn solids(sheet: &Sheet) -> Vec<Rect> {
        let boxes = sheet.machine.iter().chain(&sheet.headings).chain(&sheet.boxes);
        let labels = sheet.wires.iter().map(|wire| Rect {
            x: sheet.labels.0,
            y: wire.y - 6 - 13,
            width: wire.label.width(),
            height: 17,
        });
        boxes.map(|one| one.place).chain(labels).chain(sheet.bars.iter().copied()).collect()
    }

    fn apart(one: Rect, other: Rect) -> bool {
        one.right() <= other.x
            || other.right() <= one.x
            || one.bottom() <= other.y
            || other.bottom() <= one.y
    }

    #[test]
    fn nothing_covers_anything_and_all_is_on_the_sheet() {
        for networks in 1..6 {
            for members in [0, 1, 2, 3, 10, 50] {
                let sheet = sheet(networks, members);
                let solids = solids(&sheet);
                for (number, one) in solids.iter().enumerate() {
                    assert!(one.right() <= sheet.width && one.bottom() <= sheet.height);
                    for other in solids.iter().skip(number + 1) {
                        assert!(apart(*one, *other), "{networks} {members}: {one:?} {other:?}");
                    }
                }
                for one in sheet.machine.iter().chain(&sheet.headings).chain(&sheet.boxes) {
                    let wide = one.lines.iter().map(Text::width).max().unwrap();
                    let tall = u32::try_from(one.lines.len()).unwrap() * LINE;
                    assert!(wide <= one.place.width && tall <= one.place.height, "{one:?}");
                }
                for wire in &sheet.wires {
                    let meets = |one: &&Panel| (one.place.y..one.place.bottom()).contains(&wire.y);
                    assert_eq!(sheet.boxes.iter().filter(meets).count(), 1, "{wire:?}");
                }
            }
        }
    }

    /// Whether every element that is opened is closed again, and nothing else looks like one.
    fn is_well_formed(svg: &str) -> bool {
        let mut open = Vec::new();
        for part in svg.split('<').skip(1) {
            let Some((tag, text)) = part.split_once('>') else { return false };
            let name = tag.split([' ', '/']).next().unwrap_or_default();
            match (tag.strip_prefix('/'), tag.ends_with('/')) {
                (Some(name), _) if open.pop() != Some(name) => return false,
                (None, false) => open.push(name),
                _ => {}
            }
            let entities = text.split('&').skip(1);
            if text.contains('>') || entities.into_iter().any(|it| !it.contains(';')) {
                return false;
            }
        }
        open.is_empty()
    }

    #[test]
    fn drawings_are_well_formed() {
        for members in [0, 1, 50] {
            assert!(is_well_formed(&sheet(3, members).svg()));
        }
        assert!(!is_well_formed("<svg><text>a</svg>") && !is_well_formed("<svg>a&b</svg>"));
    }

    #[test]
    fn names_cannot_break_the_file() {
        let lines = vec![Text::new("<script>&\"'\u{1}\u{ffff}", "t")];
        let member = Member { class: "b", lines, wires: Vec::new() };
        let svg = Sheet::arrange("a&b".into(), Vec::new(), &[], &[member]).svg();
        assert!(svg.contains("<title>a&amp;b</title>"), "{svg}");
        assert!(svg.contains("&lt;script&gt;&amp;&quot;&#39;</text>"), "{svg}");
        assert!(!svg.contains("<script") && is_well_formed(&svg), "{svg}");
    }
}
