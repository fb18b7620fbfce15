//! The counters of a network as text for Prometheus (its exposition format, version 0.0.4).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use netyard_engine::control::Spliced;
use netyard_yard::api::NetworkStatus;
use netyard_yard::networks::NetworkFlow;

use crate::traffic::word;

/// All counters of a network. `flows`: those that are known one by one; without any the totals are told.
pub(crate) fn of(network: &NetworkStatus, flows: &[NetworkFlow]) -> String {
    let NetworkStatus { name, state, .. } = network;
    let mut page = Page::new(name);
    page.begin("netyard_plug_bytes_total", "counter", "Bytes that an instance sent and got.");
    for plug in &state.plugs {
        let traffic =
            [("guest_to_host", plug.guest_to_host), ("host_to_guest", plug.host_to_guest)];
        for (direction, traffic) in traffic {
            page.value(&[("instance", &plug.name), ("direction", direction)], traffic.bytes);
        }
    }
    page.begin("netyard_plug_frames_total", "counter", "Frames that an instance sent and got.");
    for plug in &state.plugs {
        let traffic =
            [("guest_to_host", plug.guest_to_host), ("host_to_guest", plug.host_to_guest)];
        for (direction, traffic) in traffic {
            page.value(&[("instance", &plug.name), ("direction", direction)], traffic.frames);
        }
    }
    page.begin(
        "netyard_spliced_bytes_total",
        "counter",
        "Bytes that an instance sent and got without frames, by splicing. User mode only.",
    );
    for plug in &state.plugs {
        let Spliced { guest_to_host, host_to_guest, .. } = plug.spliced;
        for (direction, bytes) in
            [("guest_to_host", guest_to_host), ("host_to_guest", host_to_guest)]
        {
            page.value(&[("instance", &plug.name), ("direction", direction)], bytes);
        }
    }
    page.begin(
        "netyard_spliced_connections_total",
        "counter",
        "Connections to an instance that were spliced. User mode only.",
    );
    for plug in &state.plugs {
        page.value(&[("instance", &plug.name)], plug.spliced.connections);
    }
    page.begin("netyard_plug_dropped_total", "counter", "Frames to an instance that were dropped.");
    for plug in &state.plugs {
        page.value(&[("instance", &plug.name)], plug.dropped);
    }
    page.begin("netyard_flows", "gauge", "Flows, by class.");
    for (class, count) in
        [("tcp", Some(state.tcp_flows)), ("udp", Some(state.udp_flows)), ("ping", state.pings)]
    {
        if let Some(count) = count {
            page.value(&[("class", class)], count as u64);
        }
    }
    page.begin(
        "netyard_instance_flows",
        "gauge",
        "Flows of an instance, by class. User mode only.",
    );
    let mut classes: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for NetworkFlow { flow, .. } in flows {
        *classes.entry((&flow.instance, word(flow.protocol))).or_default() += 1;
    }
    for ((instance, class), count) in classes {
        page.value(&[("instance", instance), ("class", class)], count);
    }
    page.begin("netyard_dropped_total", "counter", "Frames that the network dropped, by reason.");
    for (reason, count) in &state.drops {
        page.value(&[("reason", reason)], *count);
    }
    if let Some(dns) = state.dns {
        page.begin(
            "netyard_dns_cache_total",
            "counter",
            "Questions about names outside, by whether an answer was kept.",
        );
        page.value(&[("outcome", "hit")], dns.hits);
        page.value(&[("outcome", "miss")], dns.misses);
        page.begin("netyard_dns_cache_bytes", "gauge", "Bytes of answers that are kept.");
        page.value(&[], dns.bytes as u64);
    }
    page.begin("netyard_policy_total", "counter", "Decisions of the policy, by rule.");
    for (rule, count) in &state.policy {
        page.value(&[("rule", rule)], *count);
    }
    page.begin(
        "netyard_forward_connections_total",
        "counter",
        "Connections and flows of a forward.",
    );
    for forward in &state.forwards {
        page.value(&[("forward", &forward.forward.to_string())], forward.connections);
    }
    page.begin(
        "netyard_service_turns_total",
        "counter",
        "Turns that an instance of a service got.",
    );
    for service in &state.services {
        for (instance, counted) in service.spec.instances.iter().zip(&service.instances) {
            page.value(
                &[("service", &service.spec.name), ("instance", &instance.name)],
                counted.turns,
            );
        }
    }
    page.begin("netyard_service_open", "gauge", "Open connections of an instance of a service.");
    for service in &state.services {
        for (instance, counted) in service.spec.instances.iter().zip(&service.instances) {
            page.value(
                &[("service", &service.spec.name), ("instance", &instance.name)],
                counted.open,
            );
        }
    }
    page.begin("netyard_service_refused_total", "counter", "Connections that found no instance.");
    for service in &state.services {
        page.value(&[("service", &service.spec.name)], service.refused);
    }
    page.text
}

/// Metrics of one network, one name after the other.
struct Page<'a> {
    network: &'a str,
    name: &'static str,
    text: String,
}

impl<'a> Page<'a> {
    fn new(network: &'a str) -> Self {
        Self { network, name: "", text: String::new() }
    }

    fn begin(&mut self, name: &'static str, kind: &str, help: &str) {
        self.name = name;
        // To a string nothing fails.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn value(&mut self, labels: &[(&str, &str)], value: u64) {
        let _ = write!(self.text, "{}{{network=\"{}\"", self.name, escaped(self.network));
        for (label, text) in labels {
            let _ = write!(self.text, ",{label}=\"{}\"", escaped(text));
        }
        let _ = writeln!(self.text, "}} {value}");
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use netyard_engine::control::{DnsState, State};

    use super::*;

    #[test]
    fn each_counter_is_a_line_with_its_labels() {
        let dns = Some(DnsState { hits: 3, misses: 1, answers: 1, bytes: 450 });
        let mut state = State { tcp_flows: 2, pings: None, dns, ..State::default() };
        state.drops.insert("a \"strange\" reason".to_owned(), 7);
        let name = "lab".to_owned();
        let text = of(&NetworkStatus { name, state, problem: None }, &[]);
        assert!(text.contains(
            "# TYPE netyard_flows gauge\nnetyard_flows{network=\"lab\",class=\"tcp\"} 2\n"
        ));
        assert!(text.contains(
            "netyard_dropped_total{network=\"lab\",reason=\"a \\\"strange\\\" reason\"} 7\n"
        ));
        assert!(text.contains("netyard_dns_cache_total{network=\"lab\",outcome=\"hit\"} 3\n"));
        assert!(text.contains("netyard_dns_cache_bytes{network=\"lab\"} 450\n"));
        assert!(!text.contains("ping"), "the host allows none");
    }
}
