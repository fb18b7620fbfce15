//! Cards, routes, NATs, mappings and changes.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::{Json, http};
use futures_core::Stream;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;

use super::refusal::Refusal;
use super::{EVENTS, RestOptions, Shared};
use crate::nat::live;
use crate::stun::{Carrier, StunClient, StunProber, names};
use crate::{
    Card, Family, InOrder, Interface, IpRange, PerFamily, Route, RoutePool, card_named, cards,
    default_card,
};

/// JSON with the fields in the order of their form.
fn in_order(value: &Value) -> Response {
    let text = serde_json::to_string(&InOrder(value)).unwrap_or_default();
    ([(http::header::CONTENT_TYPE, "application/json")], text).into_response()
}

pub(super) async fn list() -> Result<Response, Refusal> {
    let all = cards().map_err(|error| Refusal::card("list the cards", &error))?;
    Ok(in_order(&all.iter().map(Card::to_listed_json).collect()))
}

/// What is asked about a card.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct About {
    /// Ask the servers, too.
    #[serde(default)]
    ask: bool,
}

pub(super) async fn show(
    State(service): State<Shared>,
    Path(name): Path<String>,
    about: Result<Query<About>, QueryRejection>,
) -> Result<Response, Refusal> {
    let interface = load(&service.options, &name, about).await?;
    Ok(in_order(&interface.to_json()))
}

pub(super) async fn routes(
    State(service): State<Shared>,
    Path(name): Path<String>,
    about: Result<Query<About>, QueryRejection>,
) -> Result<Response, Refusal> {
    let interface = load(&service.options, &name, about).await?;
    // As text: there may be more than a number in JSON can be trusted to hold.
    let count = |family| interface.rp(family).len().to_string();
    let addresses = json!({ "2": count(Family::Ip4), "23": count(Family::Ip6) });
    let rp = interface.to_json()["rp"].take();
    Ok(in_order(&json!({ "name": interface.name(), "rp": rp, "addresses": addresses })))
}

/// The card with this name, or the default one.
pub(super) fn card(wanted: &str, name: &str) -> Result<Card, Refusal> {
    let found = match name {
        Interface::DEFAULT => default_card(),
        name => card_named(name),
    };
    found.map_err(|error| Refusal::card(wanted, &error))
}

async fn load(
    options: &RestOptions,
    name: &str,
    about: Result<Query<About>, QueryRejection>,
) -> Result<Interface, Refusal> {
    let wanted = format!("look at the card {name}");
    let Query(about) = about.map_err(|error| Refusal::input(&wanted, error))?;
    let card = card(&wanted, name)?;
    if !about.ask {
        return Ok(Interface::unasked(card));
    }
    let prober = StunProber { servers: servers(&wanted, options)? };
    Ok(Interface::load(card, options.policy.clone(), options.wanted, &prober).await)
}

/// Who may be asked.
fn servers(wanted: &str, options: &RestOptions) -> Result<Vec<String>, Refusal> {
    if options.servers.is_empty() {
        return Err(Refusal::conflict(wanted, "the service was started without STUN servers")
            .next("name them when it is started"));
    }
    Ok(options.servers.clone())
}

/// How a NAT is tested.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct NatTest {
    /// The family; IPv4 unless given.
    family: Option<Family>,
    /// Also whether packets to the own external address come back.
    hairpin: bool,
    /// Also how long mappings live, up to this.
    lifetime_s: Option<u64>,
    /// Ask the gateway, too.
    gateway: bool,
}

pub(super) async fn nat(
    State(service): State<Shared>,
    Path(name): Path<String>,
    body: axum::body::Bytes,
) -> Result<Response, Refusal> {
    let wanted = format!("test the NAT in front of {name}");
    let test: NatTest = match body.as_ref() {
        [] => NatTest::default(),
        text => serde_json::from_slice(text).map_err(|error| Refusal::input(&wanted, error))?,
    };
    let card = card(&wanted, &name)?;
    let family = test.family.unwrap_or(Family::Ip4);
    let route = Interface::unasked(card.clone())
        .route(Some(family))
        .map_err(|error| Refusal::card(&wanted, &error))?;
    let options = live::Options {
        card: Some(card.name),
        address: Some(route.bind_address()),
        hairpin: test.hairpin,
        lifetime: test.lifetime_s.map(Duration::from_secs),
        gateway: test.gateway,
        ..live::Options::new(servers(&wanted, &service.options)?, family)
    };
    let report = live::test(&options).await;
    let report = report.map_err(|error| Refusal::network(&wanted, error))?;
    Ok(Json(report).into_response())
}

/// Which mapping is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MappingOf {
    /// The server that is asked; the first one of the service unless given.
    server: Option<String>,
    /// The card; the default one unless given.
    card: Option<String>,
    /// Over UDP unless given; over TLS where the server is named for it.
    proto: Option<Carrier>,
}

pub(super) async fn mapping(
    State(service): State<Shared>,
    query: Result<Query<MappingOf>, QueryRejection>,
) -> Result<Response, Refusal> {
    const WANTED: &str = "ask for a mapping";
    let Query(of) = query.map_err(|error| Refusal::input(WANTED, error))?;
    let server = match of.server {
        Some(server) => server,
        None => servers(WANTED, &service.options)?.swap_remove(0),
    };
    let card = card(WANTED, of.card.as_deref().unwrap_or(Interface::DEFAULT))?;
    let interface = Interface::unasked(card);
    let literal = names::split(&server, names::PORT).0.parse::<IpAddr>().ok().map(Family::of);
    let route = interface.route(literal).map_err(|error| Refusal::card(WANTED, &error))?;
    let client = StunClient::new(server).via(&route);
    let client = match of.proto {
        Some(proto) => client.over(proto),
        None => client,
    };
    let asked = client.mapping().await.map_err(|error| Refusal::network(WANTED, error))?;
    let pair = |address: SocketAddr| json!([address.ip(), address.port()]);
    let known = with_external(&interface, &route, asked.answer.mapped.ip().to_canonical());
    let key = if route.family() == Family::Ip4 { "2" } else { "23" };
    Ok(in_order(&json!({
        "laddr": pair(asked.local),
        "raddr": pair(asked.server),
        "mapped": pair(asked.answer.mapped),
        "route": known.to_json()["rp"][key][0].take(),
        "if": { "name": interface.name(), "index": interface.card().index },
    })))
}

/// The interface with one route alone, whose external address is the one that was seen.
fn with_external(interface: &Interface, route: &Route, seen: IpAddr) -> Interface {
    let (card, seen) = (interface.card(), IpRange::host(seen));
    let known = match route.nic_ips().iter().any(|near| near.overlaps(&seen)) {
        true => Route::direct(card.id(), seen, route.link_locals()),
        false => Route::translated(card.id(), route.family(), route.nic_ips().to_vec(), seen)
            .with_link_locals(route.link_locals()),
    };
    let mut rp = PerFamily::<RoutePool>::default();
    *rp.get_mut(route.family()) = RoutePool::new([known]);
    Interface::new(card.clone(), rp)
}

/// Changes for one reader.
pub(super) struct Changes(mpsc::Receiver<Event>);

impl Stream for Changes {
    type Item = Result<Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|event| event.map(Ok))
    }
}

pub(super) async fn events(State(service): State<Shared>) -> impl IntoResponse {
    let (sender, events) = mpsc::channel(EVENTS);
    tokio::spawn(pass_on(service.changes.subscribe(), sender));
    Sse::new(Changes(events)).keep_alive(KeepAlive::default())
}

/// Brings changes to one reader, until it goes.
async fn pass_on(mut changes: Receiver<Arc<str>>, reader: mpsc::Sender<Event>) {
    loop {
        let event = tokio::select! {
            () = reader.closed() => return,
            change = changes.recv() => match change {
                Ok(change) => Event::default().event("change").data(&*change),
                Err(RecvError::Lagged(missed)) => {
                    Event::default().event("missed").data(missed.to_string())
                }
                Err(RecvError::Closed) => return,
            },
        };
        if reader.send(event).await.is_err() {
            return;
        }
    }
}

/// The body of a request as a value.
pub(super) fn body<T>(wanted: &str, json: Result<Json<T>, JsonRejection>) -> Result<T, Refusal> {
    json.map(|Json(value)| value).map_err(|error| Refusal::input(wanted, error.body_text()))
}
