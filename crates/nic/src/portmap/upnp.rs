//! What an Internet Gateway Device of UPnP is asked, and what it answers: text in, text out.
//!
//! It is looked for by SSDP (UPnP Device Architecture 1.1, section 1.3), says in a description of XML where its
//! services are, and is asked over HTTP with SOAP (WANIPConnection:1). Of XML no more is read than the text of
//! elements that are looked for; all of it may be hostile.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::Wanted;

/// Where devices are looked for.
pub const GROUP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(239, 255, 255, 250)), 1900);
/// Their port, where one is asked by itself.
pub const PORT: u16 = 1900;

/// Services that map ports.
const KINDS: [&str; 2] = ["WANIPConnection", "WANPPPConnection"];
/// What such services are called begins so.
const URN: &str = "urn:schemas-upnp-org:service:";
/// Services of one device that are tried, most.
const MAX_SERVICES: usize = 4;

/// Leases of this device have no end (WANIPConnection:1, section 2.4.16).
pub const ONLY_PERMANENT: u16 = 725;
/// Somebody else has the external port.
pub const CONFLICT: u16 = 718;

/// The question who is a gateway; those that hear it by the group answer within a second.
#[must_use]
pub fn search(to: SocketAddr) -> Vec<u8> {
    format!(
        "M-SEARCH * HTTP/1.1\r\nHOST: {to}\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\n\
         ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n"
    )
    .into_bytes()
}

/// A place on a device's HTTP server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The server.
    pub at: SocketAddr,
    /// The path, with its slash.
    pub path: String,
}

impl Place {
    /// Of `http://10.0.0.1:5000/root.xml`; names of hosts are not looked up.
    #[must_use]
    pub fn parse(url: &str) -> Option<Self> {
        let rest = url.trim().strip_prefix("http://")?;
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let at = match host.parse() {
            Ok(at) => at,
            Err(_) => SocketAddr::new(host.parse().ok()?, 80),
        };
        let path = if path.is_empty() { "/" } else { path };
        is_plain(path).then(|| Self { at, path: path.to_owned() })
    }

    /// What a description that lies here means by `url`.
    fn join(&self, url: &str) -> Option<Self> {
        let url = url.trim();
        if url.contains("://") {
            return Self::parse(url);
        }
        let path = if url.starts_with('/') { url.to_owned() } else { format!("/{url}") };
        is_plain(&path).then_some(Self { at: self.at, path })
    }
}

/// Fit to stand in the first line of a request.
fn is_plain(path: &str) -> bool {
    path.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Where the description of an answering device is.
#[must_use]
pub fn read_answer(bytes: &[u8]) -> Option<Place> {
    let text = str::from_utf8(bytes).ok()?;
    let mut lines = text.split("\r\n");
    let mut status = lines.next()?.split(' ');
    if !status.next()?.starts_with("HTTP/1.") || status.next()? != "200" {
        return None;
    }
    let mut fields = lines.filter_map(|line| line.split_once(':'));
    let (_, url) = fields.find(|(name, _)| name.trim().eq_ignore_ascii_case("location"))?;
    Place::parse(url)
}

/// A service that maps ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// What it is called.
    pub name: String,
    /// Where it is asked.
    pub control: Place,
}

/// The services of a device that map ports, by its description, which lies at `here`. Those on another
/// machine are left out.
#[must_use]
pub fn read_description(xml: &str, here: &Place) -> Vec<Service> {
    let base = element(xml, "URLBase").and_then(Place::parse).unwrap_or_else(|| here.clone());
    let mut rest = xml;
    let mut services = Vec::new();
    while services.len() < MAX_SERVICES
        && let Some((service, behind)) = next_element(rest, "service")
    {
        rest = behind;
        let Some(name) = element(service, "serviceType").map(str::trim) else { continue };
        let is_ours = name.strip_prefix(URN).and_then(|rest| rest.split_once(':')).is_some_and(
            |(kind, version)| {
                KINDS.contains(&kind) && version.bytes().all(|it| it.is_ascii_digit())
            },
        );
        let control = element(service, "controlURL").and_then(|url| base.join(url));
        if let Some(control) = control.filter(|control| is_ours && control.at.ip() == here.at.ip())
        {
            services.push(Service { name: name.to_owned(), control });
        }
    }
    services
}

/// What a service is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Tell the external address.
    Address,
    /// Map a port to this address.
    Map(Wanted, Ipv4Addr),
    /// Take the mapping of an external port back.
    Unmap(Wanted),
}

impl Action {
    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Address => "GetExternalIPAddress",
            Self::Map(..) => "AddPortMapping",
            Self::Unmap(_) => "DeletePortMapping",
        }
    }

    /// The body of the request.
    #[must_use]
    pub fn body(&self, service: &Service) -> String {
        let what = |wanted: &Wanted| {
            format!(
                "<NewRemoteHost></NewRemoteHost><NewExternalPort>{}</NewExternalPort>\
                 <NewProtocol>{}</NewProtocol>",
                wanted.external_port,
                wanted.transport.to_string().to_ascii_uppercase()
            )
        };
        let arguments = match self {
            Self::Address => String::new(),
            Self::Map(wanted, client) => format!(
                "{}<NewInternalPort>{}</NewInternalPort><NewInternalClient>{client}\
                 </NewInternalClient><NewEnabled>1</NewEnabled>\
                 <NewPortMappingDescription>netyard</NewPortMappingDescription>\
                 <NewLeaseDuration>{}</NewLeaseDuration>",
                what(wanted),
                wanted.port,
                wanted.seconds()
            ),
            Self::Unmap(wanted) => what(wanted),
        };
        let (name, service) = (self.name(), &service.name);
        format!(
            "<?xml version=\"1.0\"?>\r\n\
             <s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\">\
             <s:Body><u:{name} xmlns:u=\"{service}\">{arguments}</u:{name}></s:Body>\
             </s:Envelope>\r\n"
        )
    }
}

/// The external address that a service tells; `None`: it has none now.
#[must_use]
pub fn read_address(xml: &str) -> Option<Ipv4Addr> {
    let address: Ipv4Addr = element(xml, "NewExternalIPAddress")?.trim().parse().ok()?;
    (!address.is_unspecified()).then_some(address)
}

/// The number of an error, and what it says.
#[must_use]
pub fn read_error(xml: &str) -> Option<(u16, &str)> {
    let code = element(xml, "errorCode")?.trim().parse().ok()?;
    Some((code, element(xml, "errorDescription").unwrap_or_default().trim()))
}

/// The text of the first element of a name, whatever its prefix.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    next_element(xml, name).map(|(text, _)| text)
}

/// The inside of the next element of a name, and what stands behind it.
fn next_element<'a>(xml: &'a str, name: &str) -> Option<(&'a str, &'a str)> {
    let mut rest = xml;
    loop {
        let (_, tag) = rest.split_once('<')?;
        let (head, inside) = tag.split_once('>')?;
        let qualified = head.split(|it: char| it.is_ascii_whitespace() || it == '/').next()?;
        let local = qualified.rsplit(':').next().unwrap_or(qualified);
        if local != name || head.ends_with('/') {
            rest = inside;
            continue;
        }
        let end = format!("</{qualified}>");
        let (text, behind) = inside.split_once(&end)?;
        return Some((text, behind));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Transport;
    use super::*;

    const DESCRIPTION: &str =
        "<?xml version=\"1.0\"?><root xmlns=\"urn:schemas-upnp-org:device-1-0\">
        <device><serviceList><service>
          <serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType>
          <controlURL>/ctl/L3F</controlURL></service></serviceList>
        <deviceList><device><serviceList><service>
          <serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>
          <controlURL>/ctl/IPConn</controlURL></service><service>
          <serviceType>urn:schemas-upnp-org:service:WANPPPConnection:1</serviceType>
          <controlURL>http://10.0.0.9/elsewhere</controlURL></service></serviceList>
        </device></deviceList></device></root>";

    fn here() -> Place {
        Place::parse("http://10.0.0.1:5000/root.xml").unwrap()
    }

    #[test]
    fn an_answer_says_where_the_description_is() {
        let answer = "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\n\
                      location: http://10.0.0.1:5000/root.xml\r\n\r\n";
        assert_eq!(read_answer(answer.as_bytes()), Some(here()));
        for nonsense in [
            "HTTP/1.1 404 Not Found\r\nlocation: http://10.0.0.1/\r\n\r\n",
            "HTTP/1.1 200 OK\r\nlocation: http://router.test/\r\n\r\n",
            "HTTP/1.1 200 OK\r\nlocation: file:///etc/passwd\r\n\r\n",
            "HTTP/1.1 200 OK\r\nlocation: http://10.0.0.1/a b\r\n\r\n",
            "NOTIFY * HTTP/1.1\r\n\r\n",
            "",
        ] {
            assert_eq!(read_answer(nonsense.as_bytes()), None, "{nonsense}");
        }
    }

    #[test]
    fn services_that_map_ports_are_found_on_the_device_itself() {
        let services = read_description(DESCRIPTION, &here());
        let [service] = &services[..] else { panic!("{services:?}") };
        assert_eq!(service.name, "urn:schemas-upnp-org:service:WANIPConnection:1");
        assert_eq!(service.control, Place { path: "/ctl/IPConn".into(), ..here() });
        let based = DESCRIPTION
            .replace("<device><serv", "<URLBase>http://10.0.0.1:49152/</URLBase><device><serv");
        assert_eq!(read_description(&based, &here())[0].control.at.port(), 49152);
        let hostile = DESCRIPTION.replace("WANIPConnection:1", "WANIPConnection:1\"><evil/>");
        assert!(read_description(&hostile, &here()).is_empty());
        for length in 0..DESCRIPTION.len() {
            assert!(read_description(&DESCRIPTION[..length], &here()).len() < 2);
        }
    }

    #[test]
    fn answers_of_a_service_are_read() {
        let soap = |inside: &str| {
            format!("<s:Envelope xmlns:s=\"x\"><s:Body>{inside}</s:Body></s:Envelope>")
        };
        let address = soap(
            "<u:GetExternalIPAddressResponse xmlns:u=\"y\"><NewExternalIPAddress>1.3.3.7\
             </NewExternalIPAddress></u:GetExternalIPAddressResponse>",
        );
        assert_eq!(read_address(&address), Some([1, 3, 3, 7].into()));
        assert_eq!(read_address(&soap("<NewExternalIPAddress/>")), None);
        let error = soap(
            "<s:Fault><detail><UPnPError><errorCode>725</errorCode>\
             <errorDescription>OnlyPermanentLeasesSupported</errorDescription></UPnPError>\
             </detail></s:Fault>",
        );
        assert_eq!(read_error(&error), Some((725, "OnlyPermanentLeasesSupported")));
        assert_eq!(read_error(&address), None);
    }

    #[test]
    fn a_request_names_what_it_wants() {
        let wanted = Wanted {
            transport: Transport::Tcp,
            port: 4000,
            external_port: 5000,
            lifetime: Duration::from_secs(600),
        };
        let service = read_description(DESCRIPTION, &here()).remove(0);
        let body = Action::Map(wanted, [10, 0, 0, 2].into()).body(&service);
        for part in [
            "<u:AddPortMapping xmlns:u=\"urn:schemas-upnp-org:service:WANIPConnection:1\">",
            "<NewExternalPort>5000</NewExternalPort><NewProtocol>TCP</NewProtocol>",
            "<NewInternalPort>4000</NewInternalPort><NewInternalClient>10.0.0.2</NewInternalClient>",
            "<NewLeaseDuration>600</NewLeaseDuration>",
        ] {
            assert!(body.contains(part), "{part} is not in {body}");
        }
    }
}
