//! The second pass: networks, instances and services held against each other.

use std::collections::{BTreeMap, BTreeSet};

use netyard_engine::forward::{Forward, HostSide, Ports};
use netyard_engine::service::ring::MAX_CYCLE;

use super::instances::{Group, Plug};
use super::names;
use super::networks::{Network, RESERVED_NAMES};
use super::reader::{Located, Place, Report, Uses, unknown};
use super::services::Service;
use crate::address;
use crate::model::{Address, InstanceSpec, Kind, Need, NetworkSpec, PlugSpec, ServiceSpec, Yard};
use crate::plan;

/// Puts the parts together into `yard` and plans its addresses. What does not fit is reported.
pub(super) fn join(
    mut yard: Yard,
    mut networks: Vec<Network>,
    groups: Vec<Group>,
    services: Vec<Service>,
    report: &mut Report<'_>,
) -> Yard {
    subnets(&networks, report);
    let names = Names::of(&groups, report);
    rules(&mut networks, &groups, &names, report);
    yard.services =
        services.iter().map(|service| join_service(service, &groups, &names, report)).collect();
    service_names(&yard, &services, &names, report);
    for network in &networks {
        record_names(network, &groups, &yard.services, report);
    }
    for group in &groups {
        let needs = needs(group, &yard.services, &names, report);
        yard.instances.extend(instances(group, &needs));
    }
    circles(&yard, &groups, report);
    host_ports(&groups, &services, report);
    deliveries(&networks, &groups, &services, &names, report);
    addresses(&networks, &groups, &yard, report);
    yard.networks =
        networks.into_iter().map(|network| (network.spec.name.clone(), network.spec)).collect();
    address::plan(&mut yard);
    yard
}

/// Networks of one yard must not share addresses: instances may be on several of them.
fn subnets(networks: &[Network], report: &mut Report<'_>) {
    for (index, network) in networks.iter().enumerate() {
        let NetworkSpec { name, subnet, subnet6, .. } = &network.spec;
        for earlier in networks.iter().take(index) {
            let NetworkSpec { name: other, subnet: theirs, subnet6: theirs6, .. } = &earlier.spec;
            let good = network.subnet.good && earlier.subnet.good;
            if good && (subnet.contains(theirs) || theirs.contains(subnet)) {
                report.add(
                    &network.subnet.place,
                    format!(
                        "network {name} has {subnet}, which overlaps with {theirs} of network \
                         {other}: give it a subnet of its own"
                    ),
                );
            }
            if network.subnet6.good && earlier.subnet6.good && subnet6 == theirs6 {
                report.add(
                    &network.subnet6.place,
                    format!("network {name} has {subnet6}, and so has network {other}"),
                );
            }
        }
    }
}

/// The names of instances: what a name in `instances` or `needs` means.
struct Names {
    /// Every instance with the index of its group.
    instances: BTreeMap<String, usize>,
    /// Every group with its instances.
    groups: BTreeMap<String, Vec<String>>,
}

impl Names {
    fn of(groups: &[Group], report: &mut Report<'_>) -> Self {
        let mut names = Self { instances: BTreeMap::new(), groups: BTreeMap::new() };
        for (index, group) in groups.iter().enumerate() {
            let instances = group.instances();
            for instance in &instances {
                reserved(instance, &group.place, report);
                let earlier = names.instances.insert(instance.clone(), index);
                if let Some(earlier) = earlier.and_then(|earlier| groups.get(earlier)) {
                    report.add(
                        &group.place,
                        format!(
                            "instance {instance} is there twice: {} makes one too",
                            earlier.place.key
                        ),
                    );
                }
            }
            names.groups.insert(group.name.clone(), instances);
        }
        names
    }

    /// The instances that a name means; reports one that means none.
    fn resolve(&self, name: &Located<String>, report: &mut Report<'_>) -> Vec<String> {
        if let Some(instances) = self.groups.get(&name.value) {
            return instances.clone();
        }
        if self.instances.contains_key(&name.value) {
            return vec![name.value.clone()];
        }
        let what = format!("there is no instance {:?}", name.value);
        report.add(&name.place, unknown(&what, &name.value, self.all()));
        Vec::new()
    }

    /// Every name that means something, groups only once.
    fn all(&self) -> impl Iterator<Item = &str> + Clone {
        self.groups.keys().map(String::as_str)
    }
}

/// The rules of networks: before their own those of the instances that are on them.
fn rules(networks: &mut [Network], groups: &[Group], names: &Names, report: &mut Report<'_>) {
    for Network { spec, rules, .. } in networks {
        let mut resolve = |name: &Located<String>| names.resolve(name, report);
        let is_on = |group: &&Group| group.plugs.iter().any(|plug| plug.network == spec.name);
        for group in groups.iter().filter(is_on) {
            let rules = group.rules.iter().map(|rule| rule.of(&group.name, &mut resolve));
            spec.rules.list.extend(rules);
        }
        spec.rules.list.extend(rules.iter().map(|rule| rule.resolve(&mut resolve)));
    }
}

/// Reports the names that a network's zone has for itself.
fn reserved(name: &str, place: &Place, report: &mut Report<'_>) {
    if RESERVED_NAMES.contains(&name) {
        report.add(place, format!("{name:?} is a name that every network has for itself"));
    }
}

fn join_service(
    service: &Service,
    groups: &[Group],
    names: &Names,
    report: &mut Report<'_>,
) -> ServiceSpec {
    let mut uses = Uses::new();
    let mut instances = Vec::new();
    for name in &service.instances {
        for instance in names.resolve(name, report) {
            if uses.note(instance.clone(), &name.place).is_some() {
                report.add(&name.place, format!("instance {instance} is in the list twice"));
            } else {
                instances.push(instance);
            }
        }
    }
    ServiceSpec {
        name: service.name.clone(),
        network: service_network(service, &instances, groups, names, report),
        weights: weights(service, &instances, names, report),
        instances,
        protocol: service.protocol,
        port: service.port,
        publish: service.publish.as_ref().map(|publish| publish.value),
        delivery: service.delivery.value,
        policy: service.policy,
        affinity: service.affinity,
        check: service.check.clone(),
    }
}

/// The weights of a service's instances, spelled out.
fn weights(
    service: &Service,
    instances: &[String],
    names: &Names,
    report: &mut Report<'_>,
) -> BTreeMap<String, u32> {
    let mut weights = BTreeMap::new();
    for (name, weight) in &service.weights {
        for instance in names.resolve(name, report) {
            if !instances.contains(&instance) {
                let message = format!("{instance} is not one of the instances of this service");
                report.add(&name.place, message);
            } else if weights.insert(instance.clone(), *weight).is_some() {
                report.add(&name.place, format!("instance {instance} has a weight already"));
            }
        }
    }
    let weight = |name: &String| weights.get(name).copied().unwrap_or(1);
    let cycle = instances.iter().map(weight).fold(0, u32::saturating_add);
    if cycle > MAX_CYCLE {
        report.add(
            &service.place,
            format!(
                "its weights add up to {cycle}, more than {MAX_CYCLE}: write smaller ones of the \
                 same proportion"
            ),
        );
    }
    weights.retain(|_, weight| *weight != 1);
    weights
}

/// The network of a service: the named one, or the first that all of its instances are on.
fn service_network(
    service: &Service,
    instances: &[String],
    groups: &[Group],
    names: &Names,
    report: &mut Report<'_>,
) -> String {
    let plugs: Vec<(&String, &[Plug])> = instances
        .iter()
        .filter_map(|instance| {
            let group = groups.get(*names.instances.get(instance)?)?;
            Some((instance, group.plugs.as_slice()))
        })
        // An instance without a plug has been reported.
        .filter(|(_, plugs)| !plugs.is_empty())
        .collect();
    let is_on = |plugs: &[Plug], network: &str| plugs.iter().any(|plug| plug.network == network);
    if let Some(network) = &service.network {
        for (instance, plugs) in &plugs {
            if !is_on(plugs, &network.value) {
                report.add(
                    &network.place,
                    format!("instance {instance} has no plug on a network {:?}", network.value),
                );
                break;
            }
        }
        return network.value.clone();
    }
    let Some((first, candidates)) = plugs.first() else { return String::new() };
    let common =
        candidates.iter().find(|plug| plugs.iter().all(|(_, plugs)| is_on(plugs, &plug.network)));
    if let Some(plug) = common {
        return plug.network.clone();
    }
    report.add(
        &service.place,
        format!("its instances have no network in common: {first} is not on that of the others"),
    );
    String::new()
}

/// Who is there has its own addresses.
fn record_names(
    network: &Network,
    groups: &[Group],
    services: &[ServiceSpec],
    report: &mut Report<'_>,
) {
    let name = &network.spec.name;
    let on_it = |group: &&Group| group.plugs.iter().any(|plug| plug.network == *name);
    let instances: Vec<String> = groups.iter().filter(on_it).flat_map(Group::instances).collect();
    let services = services.iter().filter(|service| service.network == *name);
    let taken = services.map(|it| it.name.as_str()).chain(instances.iter().map(String::as_str));
    names::check_taken(&network.spec, &network.addressed, &taken.collect(), report);
}

/// A service and an instance may have the same name only where the service stands for it.
fn service_names(yard: &Yard, services: &[Service], names: &Names, report: &mut Report<'_>) {
    for (spec, service) in yard.services.iter().zip(services) {
        reserved(&spec.name, &service.place, report);
        // Without instances, that has been reported.
        let stands_for_others = !spec.instances.is_empty() && !spec.instances.contains(&spec.name);
        if stands_for_others && names.instances.contains_key(&spec.name) {
            report.add(
                &service.place,
                format!(
                    "its name is that of instance {}, which is not one of its instances",
                    spec.name
                ),
            );
        }
    }
}

fn needs(
    group: &Group,
    services: &[ServiceSpec],
    names: &Names,
    report: &mut Report<'_>,
) -> Vec<Need> {
    let service_names = services.iter().map(|service| service.name.as_str());
    let mut needs = Vec::new();
    for name in &group.needs {
        if service_names.clone().any(|service| service == name.value) {
            needs.push(Need::Service(name.value.clone()));
        } else if names.groups.contains_key(&name.value)
            || names.instances.contains_key(&name.value)
        {
            needs.extend(names.resolve(name, report).into_iter().map(Need::Instance));
        } else {
            let what = format!("there is no instance or service {:?}", name.value);
            let known: BTreeSet<_> = names.all().chain(service_names.clone()).collect();
            report.add(&name.place, unknown(&what, &name.value, known));
        }
    }
    needs
}

/// The instances of a group, spelled out.
fn instances(group: &Group, needs: &[Need]) -> Vec<InstanceSpec> {
    let spell = |name: String| InstanceSpec {
        kind: group.kind.clone(),
        group: group.name.clone(),
        run: group.run.clone(),
        env: group.env.clone(),
        cwd: group.cwd.clone(),
        restart: group.restart,
        needs: needs.to_vec(),
        plugs: group.plugs.iter().map(plug).collect(),
        forwards: group
            .forwards
            .iter()
            .map(|forward| Forward { instance: name.clone(), ..forward.value.clone() })
            .collect(),
        name,
    };
    group.instances().into_iter().map(spell).collect()
}

fn plug(plug: &Plug) -> PlugSpec {
    PlugSpec {
        network: plug.network.clone(),
        address: plug
            .address
            .as_ref()
            .map_or(Address::Any, |address| Address::Fixed(address.value)),
        address6: None,
        mac: plug.mac.as_ref().map(|mac| mac.value),
        link: plug.link,
        tap: plug.tap.as_ref().map(|tap| tap.value.clone()),
        socket: plug.socket.as_ref().map(|socket| socket.value.clone()),
    }
}

/// Instances that need each other could never start.
fn circles(yard: &Yard, groups: &[Group], report: &mut Report<'_>) {
    let Some(circle) = plan::cycle(yard) else { return };
    let Some(first) = circle.first() else { return };
    let group = groups.iter().find(|group| group.name == first.group);
    let Some(need) = group.and_then(|group| group.needs.first()) else { return };
    let steps: Vec<_> = circle
        .iter()
        .zip(circle.iter().cycle().skip(1))
        .map(|(from, to)| format!("{} needs {}", from.name, why(from, to, yard)))
        .collect();
    report.add(&need.place, format!("instances wait in a circle: {}", steps.join(", ")));
}

/// How an instance came to need another.
fn why(from: &InstanceSpec, to: &InstanceSpec, yard: &Yard) -> String {
    if from.needs.contains(&Need::Instance(to.name.clone())) {
        return to.name.clone();
    }
    let mut services = yard.services_of(&to.name).map(|service| &service.name);
    let service = services.find(|name| from.needs.contains(&Need::Service((*name).clone())));
    match service {
        Some(service) => format!("service {service} with {}", to.name),
        None => to.name.clone(),
    }
}

/// No two forwards or publications can have one host port.
fn host_ports(groups: &[Group], services: &[Service], report: &mut Report<'_>) {
    let published = services.iter().filter_map(|service| {
        let at = service.publish.as_ref()?;
        let port = Ports::new(at.value.port(), at.value.port())?;
        let forward = Forward {
            protocol: service.protocol,
            host: HostSide::Ports(at.value.ip(), port),
            guest_ports: port,
            delivery: service.delivery.value,
            instance: String::new(),
        };
        Some((format!("service {}", service.name), forward, &at.place))
    });
    let forwarded = groups.iter().flat_map(|group| {
        group.forwards.iter().map(|forward| {
            (format!("instance {}", group.name), forward.value.clone(), &forward.place)
        })
    });
    let all: Vec<_> = forwarded.chain(published).collect();
    for (index, (owner, forward, place)) in all.iter().enumerate() {
        let conflict = all.iter().take(index).find(|(_, other, _)| forward.conflicts(other));
        if let Some((earlier, other, _)) = conflict {
            let what = if forward.host.socket().is_some() { "the socket" } else { "host port" };
            let (wanted, has) = (at(forward), at(other));
            report.add(place, format!("{owner} wants {what} {wanted}, and {earlier} has {has}"));
        }
    }
}

/// Who wants splicing, or headers of the PROXY protocol, can have it.
fn deliveries(
    networks: &[Network],
    groups: &[Group],
    services: &[Service],
    names: &Names,
    report: &mut Report<'_>,
) {
    let is_bridge = |name: &str| {
        networks.iter().any(|network| network.spec.name == name && network.spec.is_bridge())
    };
    // The first that stands in the way.
    let why_not = |group: &Group, network: Option<&str>| {
        let plug = match network {
            Some(name) => group.plugs.iter().find(|plug| plug.network == name),
            None => group.plugs.first(),
        };
        match plug {
            _ if group.kind != Kind::Process => Some(format!("{} is no process", group.name)),
            Some(plug) if is_bridge(&plug.network) => {
                Some(format!("network {} is on a bridge", plug.network))
            }
            Some(plug) if plug.link != Default::default() => {
                Some(format!("the link of {} is shaped", group.name))
            }
            _ => None,
        }
    };
    for group in groups {
        let on_bridge = group.plugs.first().is_some_and(|plug| is_bridge(&plug.network));
        let delivered = |it: &&Located<Forward>| on_bridge && !it.value.delivery.wants_splice();
        for forward in group.forwards.iter().filter(delivered) {
            if let Err(error) = forward.value.delivery.check_bridge() {
                report.add(&forward.place, error.to_string());
            }
        }
    }
    let mut refuse = |place: &Place, why: String| {
        let takes = "splicing takes a program in user mode, with a link that is not shaped";
        report.add(place, format!("{why}, and {takes}"));
    };
    for group in groups {
        let forwards = group.forwards.iter().filter(|it| it.value.delivery.wants_splice());
        for forward in forwards {
            why_not(group, None).into_iter().for_each(|why| refuse(&forward.place, why));
        }
    }
    for service in services.iter().filter(|service| service.delivery.value.wants_splice()) {
        let network = service.network.as_ref().map(|network| network.value.as_str());
        let of = |name: &Located<String>| groups.get(*names.instances.get(&name.value)?);
        let group = |name: &Located<String>| {
            groups.iter().find(|group| group.name == name.value).or_else(|| of(name))
        };
        let why = service.instances.iter().filter_map(group).find_map(|it| why_not(it, network));
        why.into_iter().for_each(|why| refuse(&service.delivery.place, why));
    }
}

/// The host side of a forward.
fn at(forward: &Forward) -> String {
    match &forward.host {
        HostSide::Ports(..) => format!("{}/{}", forward.host, forward.protocol),
        HostSide::Socket(file) => file.path.display().to_string(),
    }
}

/// Named addresses must be free ones of their network, and there must be enough for everybody.
fn addresses(networks: &[Network], groups: &[Group], yard: &Yard, report: &mut Report<'_>) {
    for network in networks.iter().filter(|network| network.subnet.good) {
        let name = &network.spec.name;
        let services = yard.services.iter().filter(|service| service.network == *name).count();
        let plugs = || {
            let plugs = groups.iter().flat_map(|group| &group.plugs);
            plugs.filter(|plug| plug.network == *name)
        };
        let mut taken = Uses::new();
        for address in plugs().filter_map(|plug| plug.address.as_ref()) {
            fixed_address(address, &network.spec, services, report);
            if taken.note(address.value, &address.place).is_some() {
                report.add(
                    &address.place,
                    format!("another instance of network {name} has {} too", address.value),
                );
            }
        }
        let mut macs = Uses::new();
        macs.note(network.spec.gateway_mac(), &network.place);
        for mac in plugs().filter_map(|plug| plug.mac.as_ref()) {
            if macs.note(mac.value, &mac.place).is_some() {
                report.add(&mac.place, format!("network {name} has {} already", mac.value));
            }
        }
        enough(network, services, yard, report);
    }
}

/// A named address must be one that an instance can have.
fn fixed_address(
    address: &Located<std::net::Ipv4Addr>,
    network: &NetworkSpec,
    services: usize,
    report: &mut Report<'_>,
) {
    let NetworkSpec { name, subnet, .. } = network;
    let config = network.config();
    let found = address.value;
    if address::is_instance_address(network, services, found) {
        return;
    }
    let why = if !subnet.contains(&found) {
        format!("is not in {subnet}")
    } else if found == config.gateway4() {
        "is the gateway's".to_owned()
    } else if found == config.host4() {
        format!("is that of host.{}", network.zone)
    } else if found == subnet.network() || found == subnet.broadcast() {
        format!("is the first or last of {subnet}, which no instance can have")
    } else {
        "is kept for the network's services, which have the highest addresses".to_owned()
    };
    report.add(&address.place, format!("{found} {why}: take another of network {name}"));
}

/// Every instance of a network needs an address.
fn enough(network: &Network, services: usize, yard: &Yard, report: &mut Report<'_>) {
    let NetworkSpec { name, subnet, .. } = &network.spec;
    let plugs = yard.instances.iter().flat_map(|instance| &instance.plugs);
    let wanted = plugs.filter(|plug| plug.network == *name).count();
    let room = address::room(&network.spec, services);
    if u32::try_from(wanted).is_ok_and(|wanted| wanted <= room) {
        return;
    }
    let usable = network.spec.config().usable4();
    let services = match services {
        0 => String::new(),
        1 => ", 1 for a service".to_owned(),
        many => format!(", {many} for services"),
    };
    let lent = match network.spec.dhcp.and_then(|dhcp| dhcp.range) {
        Some(range) => format!(", {} for DHCP", range.count()),
        None => String::new(),
    };
    let needed = usize::try_from(usable - room).unwrap_or(usize::MAX).saturating_add(wanted);
    let fits = (8..=29).rev().find(|bits| (1usize << (32 - bits)) - 2 >= needed).unwrap_or(8);
    report.add(
        &network.subnet.place,
        format!(
            "{subnet} has {usable} addresses, 2 for gateway and host{services}{lent}, {room} for \
             instances; network {name} has {wanted} instances: take a /{fits}"
        ),
    );
}
