use std::fs;

use rusqlite::Connection;

use super::memory::Memory;
use super::nodes::NAME_TAKEN;
use super::slots::{EXPIRED_SLOT, FREE_SLOT, IDLE_NODE, OWNER, RESERVED};
use super::*;
use crate::admin::Role;
use crate::clock::now_ms;
use crate::error::Blame;
use crate::join::{Secret, TokenId};
use crate::message::RejectCode;
use crate::relay::NodeId;

const HOUR: i64 = 3_600_000;

/// An operator's, at this time.
fn at(at_ms: i64) -> Stamp {
    Stamp { who: "user 7".into(), at_ms }
}

fn token(
    store: &mut Sqlite,
    number: u8,
    expires: Option<i64>,
    uses: Option<u32>,
) -> (TokenId, Secret) {
    let token = (TokenId([number; 6]), Secret([number; 16]));
    let terms = Terms { expires_ms: expires, uses, slot: None };
    store.create_token(token, terms, &at(0)).unwrap().unwrap();
    token
}

fn login(
    store: &mut Sqlite,
    key: u8,
    token: Option<(TokenId, Secret)>,
    now_ms: i64,
) -> Result<Node, RejectCode> {
    let key = &[key; 32];
    store.login(&Login { key, name: "node", token, capacity: 3, epoch: 0, now_ms }).unwrap()
}

/// A node has left, with this login.
fn leave(store: &mut impl Nodes, node: NodeId, epoch: u64, seen_ms: i64) {
    store.keep_up(&[Presence { node, epoch, is_here: false, seen_ms }], &[]).unwrap();
}

#[test]
fn a_token_lets_one_node_in_and_the_node_comes_back_without_it() {
    let mut store = Sqlite::in_memory().unwrap();
    let token = token(&mut store, 1, None, Some(1));
    assert_eq!(login(&mut store, 1, None, 0), Err(RejectCode::Unknown));
    let first = login(&mut store, 1, Some(token), 5).unwrap();
    assert_eq!((first.slot, first.epoch, first.name.as_str()), (Some(1), 1, "node"));
    assert_eq!(login(&mut store, 2, Some(token), 5), Err(RejectCode::Used));
    for bring in [None, Some(token)] {
        let again = login(&mut store, 1, bring, 9).unwrap();
        assert_eq!((again.slot, again.id), (Some(1), first.id));
    }
    assert_eq!(store.nodes().unwrap().first().unwrap().epoch, 3);
    assert_eq!(store.tokens().unwrap().first().unwrap().uses_left, Some(0));
}

#[test]
fn a_token_ends_at_its_very_millisecond_and_by_revoking() {
    let mut store = Sqlite::in_memory().unwrap();
    let short = token(&mut store, 1, Some(HOUR), None);
    assert!(login(&mut store, 1, Some(short), HOUR - 1).is_ok());
    assert_eq!(login(&mut store, 2, Some(short), HOUR), Err(RejectCode::Expired));
    let open = token(&mut store, 2, None, None);
    assert!(store.revoke_token(open.0, &at(1)).unwrap());
    assert_eq!(login(&mut store, 2, Some(open), 2), Err(RejectCode::Revoked));
    assert!(!store.revoke_token(TokenId([9; 6]), &at(1)).unwrap());
    assert!(login(&mut store, 1, None, HOUR).is_ok(), "who has joined stays");
}

#[test]
fn a_wrong_secret_learns_nothing_about_a_token() {
    let mut store = Sqlite::in_memory().unwrap();
    let (id, _) = token(&mut store, 1, Some(0), Some(0));
    let guess = Some((id, Secret([9; 16])));
    assert_eq!(login(&mut store, 1, guess, HOUR), Err(RejectCode::BadToken));
    let none = Some((TokenId([9; 6]), Secret([1; 16])));
    assert_eq!(login(&mut store, 1, none, HOUR), Err(RejectCode::BadToken));
}

#[test]
fn a_revoked_node_is_out_and_its_address_and_name_are_free() {
    let mut store = Sqlite::in_memory().unwrap();
    let token = token(&mut store, 1, None, None);
    let first = login(&mut store, 1, Some(token), 0).unwrap();
    let second = login(&mut store, 2, Some(token), 0).unwrap();
    assert_eq!((second.slot, second.name.as_str()), (Some(2), "node-2"));
    assert_eq!(store.revoke_node("node", &at(1)).unwrap(), Some(first.id));
    assert_eq!(store.revoke_node("node", &at(1)).unwrap(), None);
    assert_eq!(login(&mut store, 1, Some(token), 2), Err(RejectCode::Revoked), "with a good token");
    let third = login(&mut store, 3, Some(token), 2).unwrap();
    assert_eq!((third.slot, third.name.as_str()), (Some(1), "node"));
    assert_eq!(store.nodes().unwrap().len(), 2);
}

#[test]
fn no_node_has_a_name_below_that_of_another() {
    let mut store = Sqlite::in_memory().unwrap();
    let token = token(&mut store, 1, None, None);
    let mut keys = 1..;
    let mut join = |name| {
        let key = &[keys.next().unwrap(); 32];
        let login = Login { key, name, token: Some(token), capacity: 99, epoch: 0, now_ms: 0 };
        store.login(&login).unwrap().unwrap().name
    };
    assert_eq!(join("office"), "office");
    assert_eq!(join("web.office"), "web.office-2", "that is what is behind the office");
    assert_eq!(join("rack.web.OFFICE"), "rack.web.OFFICE-3", "nor below that");
    assert_eq!(join("backoffice"), "backoffice");
    assert_eq!(join("db.e_st.lab"), "db.e_st.lab");
    for (wanted, given) in [("lab", "lab-2"), ("E_st.Lab", "E_st.Lab-3"), ("east.lab", "east.lab")]
    {
        assert_eq!(join(wanted), given);
    }
    assert_eq!(join("x.hub"), "x.hub-2");
}

#[test]
fn when_all_addresses_are_taken_the_one_away_longest_is_given_again() {
    let mut store = Sqlite::in_memory().unwrap();
    let token = token(&mut store, 1, None, None);
    for key in 1..=3 {
        login(&mut store, key, Some(token), key.into()).unwrap();
    }
    assert_eq!(login(&mut store, 4, Some(token), 9), Err(RejectCode::NoAddress));
    let late = 10 + RECLAIM_MS + HOUR;
    assert_eq!(login(&mut store, 4, Some(token), late), Err(RejectCode::NoAddress), "all are here");
    leave(&mut store, 2, 1, 10);
    leave(&mut store, 3, 0, 10);
    let fourth = login(&mut store, 4, Some(token), late).unwrap();
    assert_eq!(fourth.slot, Some(2), "the third is still here: that was an older login");
    assert_eq!(login(&mut store, 2, None, late), Err(RejectCode::NoAddress));
    assert!(login(&mut store, 1, None, late).is_ok());
}

#[test]
fn a_slot_that_was_chosen_for_a_node_is_not_taken_from_it() {
    let mut store = Sqlite::in_memory().unwrap();
    let token = token(&mut store, 1, None, None);
    let one = login(&mut store, 1, Some(token), 0).unwrap();
    login(&mut store, 2, Some(token), 0).unwrap();
    let pin = |store: &mut Sqlite, name, slot| store.pin(name, (slot, "it"), &at(0)).unwrap();
    assert_eq!(pin(&mut store, "nobody", 3), Err(NotPinned::Unknown));
    let taken = Err(NotPinned::Taken(Holder::Node("node-2".into())));
    assert_eq!(pin(&mut store, "node", 2), taken);
    assert_eq!(pin(&mut store, "node", 3), Ok((one.id, true)));
    assert_eq!(pin(&mut store, "node", 3), Ok((one.id, false)), "it has that");
    assert_eq!(login(&mut store, 3, Some(token), 1).unwrap().slot, Some(1), "that is free now");
    // All are away for long: the pinned one is the last who would lose its own.
    for node in store.nodes().unwrap() {
        leave(&mut store, node.id, node.epoch, node.id);
    }
    let late = 10 + RECLAIM_MS + HOUR;
    assert_eq!(login(&mut store, 4, Some(token), late).unwrap().slot, Some(2));
    assert_eq!(login(&mut store, 5, Some(token), late).unwrap().slot, Some(1));
    assert_eq!(login(&mut store, 6, Some(token), late), Err(RejectCode::NoAddress));
    assert_eq!(login(&mut store, 1, None, late).unwrap().slot, Some(3));
    leave(&mut store, one.id, 2, late);
    let later = late + RECLAIM_MS + HOUR;
    assert_eq!(login(&mut store, 6, Some(token), later), Err(RejectCode::NoAddress));
    assert!(store.unpin("node", &at(0)).unwrap() && !store.unpin("nobody", &at(0)).unwrap());
    assert_eq!(login(&mut store, 6, Some(token), later).unwrap().slot, Some(3));
    let deeds = store.audit(9).unwrap();
    assert!(deeds.iter().any(|it| (&*it.action, &*it.subject) == ("pin-address", "node it")));
}

#[test]
fn a_slot_that_was_chosen_for_a_token_waits_for_who_joins_with_it() {
    let mut store = Sqlite::in_memory().unwrap();
    let any = token(&mut store, 1, None, None);
    let reserve = |store: &mut Sqlite, number, slot, expires_ms, at_ms| {
        let token = (TokenId([number; 6]), Secret([number; 16]));
        let terms = Terms { expires_ms, uses: Some(1), slot: Some(slot) };
        store.create_token(token, terms, &at(at_ms)).unwrap().map(|()| token)
    };
    let first = reserve(&mut store, 2, 1, None, 0).unwrap();
    assert_eq!(reserve(&mut store, 3, 1, None, 0), Err(Holder::Token(first.0)));
    let two = login(&mut store, 2, Some(any), 0).unwrap();
    assert_eq!((two.slot, two.pinned), (Some(2), false), "the first is kept");
    assert_eq!(reserve(&mut store, 3, 2, None, 0), Err(Holder::Node("node".into())));
    let pinned = store.pin("node", (1, "it"), &at(0)).unwrap();
    assert_eq!(pinned, Err(NotPinned::Taken(Holder::Token(first.0))));
    let one = login(&mut store, 1, Some(first), 0).unwrap();
    assert_eq!((one.slot, one.pinned), (Some(1), true));
    // One that expires, and one that is revoked, keep nothing any more.
    reserve(&mut store, 3, 3, Some(HOUR), 0).unwrap();
    assert_eq!(login(&mut store, 4, Some(any), HOUR - 1), Err(RejectCode::NoAddress));
    assert_eq!(store.tokens().unwrap().last().unwrap().slot, Some(3));
    let fourth = reserve(&mut store, 4, 3, None, HOUR).unwrap();
    store.revoke_token(fourth.0, &at(HOUR)).unwrap();
    assert_eq!(login(&mut store, 4, Some(any), HOUR).unwrap().slot, Some(3));
    // The network was larger.
    let outside = reserve(&mut store, 5, 9, None, HOUR).unwrap();
    assert_eq!(login(&mut store, 5, Some(outside), HOUR), Err(RejectCode::NoAddress));
}

#[test]
fn a_database_is_opened_again_but_not_a_newer_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hub.db");
    let mut store = Sqlite::open(&file).unwrap();
    let token = token(&mut store, 1, None, None);
    login(&mut store, 1, Some(token), 0).unwrap();
    drop(store);
    let mut store = Sqlite::open(&file).unwrap();
    assert_eq!(login(&mut store, 1, None, 1).unwrap().slot, Some(1));
    store.database.pragma_update(None, "user_version", 99).unwrap();
    drop(store);
    let error = Sqlite::open(&file).unwrap_err();
    assert!(error.to_string().contains("version 99"), "{error}");
}

#[test]
fn subnets_are_offered_by_nodes_and_accepted_by_somebody_else() {
    let mut store = Sqlite::in_memory().unwrap();
    let token = token(&mut store, 1, None, None);
    let one = login(&mut store, 1, Some(token), 0).unwrap();
    let two = login(&mut store, 2, Some(token), 0).unwrap();
    let net = |text: &str| text.parse::<ipnet::IpNet>().unwrap();
    let (lan, all) = (net("192.168.7.0/24"), net("0.0.0.0/0"));
    for node in [&one, &two] {
        store.offer(node.id, &[lan, all]).unwrap();
    }
    let open = |store: &Sqlite| {
        let open = store.subnets().unwrap().into_iter().filter(|(_, subnet)| subnet.is_open());
        open.map(|(node, subnet)| (node, subnet.prefix)).collect::<Vec<_>>()
    };
    assert_eq!(open(&store), []);
    store.judge_subnet("node", lan, true, &at(0)).unwrap();
    let blame = |done: Result<()>| done.unwrap_err().blame;
    assert_eq!(blame(store.judge_subnet("node-2", lan, true, &at(0))), Blame::Conflict);
    assert_eq!(blame(store.judge_subnet("node", net("10.0.0.0/8"), true, &at(0))), Blame::Unknown);
    assert_eq!(blame(store.judge_subnet("nobody", lan, true, &at(0))), Blame::Unknown);
    assert_eq!(store.exit("node-2").unwrap(), None);
    store.judge_subnet("node-2", all, true, &at(0)).unwrap();
    assert_eq!(store.exit("node-2").unwrap(), Some(two.id));
    assert_eq!(open(&store), [(one.id, lan), (two.id, all)]);
    store.offer(one.id, &[]).unwrap();
    assert_eq!(open(&store), [(two.id, all)], "it is not offered any more");
    store.offer(one.id, &[lan]).unwrap();
    assert_eq!(open(&store), [(one.id, lan), (two.id, all)], "and what was accepted stays so");
    store.judge_subnet("node", lan, false, &at(0)).unwrap();
    store.revoke_node("node-2", &at(0)).unwrap();
    assert_eq!(open(&store), []);
    let deeds = store.audit(2).unwrap();
    assert_eq!(
        (deeds[0].action.as_str(), deeds[1].action.as_str()),
        ("revoke-node", "refuse-subnet")
    );
    assert!(deeds.iter().all(|deed| deed.who == "user 7"), "{deeds:?}");
}

#[test]
fn a_backup_is_a_database_and_never_overwrites() {
    let folder = tempfile::tempdir().unwrap();
    let (file, copy) = (folder.path().join("hub.db"), folder.path().join("copy.db"));
    let mut store = Sqlite::open(&file).unwrap();
    let token = token(&mut store, 1, None, None);
    let node = login(&mut store, 1, Some(token), 0).unwrap();
    leave(&mut store, node.id, node.epoch, 0);
    let policy = serde_json::from_str(r#"{"allow": [{"from": ["node"], "to": ["hub"]}]}"#).unwrap();
    store.set_policy(Some(&policy), &at(0)).unwrap();
    store.back_up(&copy).unwrap();
    store.set_policy(None, &at(0)).unwrap();
    assert_eq!(store.policy().unwrap(), None);
    let copied = Sqlite::open(&copy).unwrap();
    assert_eq!(copied.nodes().unwrap(), store.nodes().unwrap());
    assert_eq!(copied.policy().unwrap(), Some(policy));
    assert_eq!(store.back_up(&copy).unwrap_err().blame, Blame::Conflict);
}

#[test]
fn a_slot_and_a_name_are_found_without_a_scan_however_many_there_are() {
    let mut store = Sqlite::in_memory().unwrap();
    let token = token(&mut store, 1, None, None);
    login(&mut store, 1, Some(token), 0).unwrap();
    for sql in [FREE_SLOT, EXPIRED_SLOT, OWNER, RESERVED, IDLE_NODE, NAME_TAKEN] {
        let explain = format!("EXPLAIN QUERY PLAN {}", sql.replace("?1", "'x'"));
        let plan = store.list(&explain, |row| row.get::<_, String>(3)).unwrap();
        let is_search = |step: &String| step.starts_with("SEARCH") || step.starts_with("SCALAR");
        let steps = plan.iter().filter(|step| !step.starts_with("SCAN CONSTANT ROW"));
        assert!(steps.clone().count() > 0 && steps.clone().all(is_search), "{sql}: {plan:?}");
    }
}

#[test]
fn users_have_roles_until_they_are_taken_away_and_that_is_written_down() {
    let mut store = Sqlite::in_memory().unwrap();
    assert!(store.roles().unwrap().is_empty());
    store.set_role(7, Some(Role::Reader), &at(1)).unwrap();
    store.set_role(7, Some(Role::Operator), &at(2)).unwrap();
    let roles = store.set_role(8, Some(Role::Admin), &at(3)).unwrap();
    assert_eq!(roles, [(7, Role::Operator), (8, Role::Admin)].into());
    assert_eq!(store.set_role(8, None, &at(4)).unwrap(), store.roles().unwrap());
    assert_eq!(store.roles().unwrap(), [(7, Role::Operator)].into());
    let deeds = store.audit(2).unwrap();
    let deeds: Vec<_> = deeds.iter().map(|it| (it.action.as_str(), it.subject.as_str())).collect();
    assert_eq!(deeds, [("revoke-role", "user 8"), ("grant-role", "user 8 admin")]);
}

#[test]
fn a_database_of_an_older_version_is_brought_up_to_date() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hub.db");
    let old = Connection::open(&file).unwrap();
    for step in &migrations::STEPS[..3] {
        old.execute_batch(step).unwrap();
    }
    old.execute_batch(
        "INSERT INTO nodes (key, name, slot, token, created_ms, seen_ms, connected)
         VALUES (zeroblob(32), 'old', 1, x'00', 1, 2, 1);
         INSERT INTO free_slots VALUES (2);
         INSERT INTO audit (at_ms, action, subject) VALUES (1, 'join', 'old');
         PRAGMA user_version = 3;",
    )
    .unwrap();
    drop(old);
    let mut store = Sqlite::open(&file).unwrap();
    assert_eq!(store.nodes().unwrap()[0].name, "old");
    let deed = Deed { at_ms: 1, who: String::new(), action: "join".into(), subject: "old".into() };
    assert_eq!(store.audit(9).unwrap(), [deed]);
    let login = Login { key: &[0; 32], name: "x", token: None, capacity: 3, epoch: 0, now_ms: 9 };
    let old = store.login(&login).unwrap().unwrap();
    assert_eq!((old.slot, old.pinned), (Some(1), false));
    // What was free is given first, then what was never given.
    let token = token(&mut store, 1, None, None);
    let slots = [1, 2].map(|key| self::login(&mut store, key, Some(token), 9).unwrap().slot);
    assert_eq!(slots, [Some(2), Some(3)]);
}

#[test]
fn who_was_here_when_the_hub_was_killed_was_seen_until_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hub.db");
    let mut store = Sqlite::open(&file).unwrap();
    let token = token(&mut store, 1, None, None);
    let [gone, here] = [1, 2].map(|key| login(&mut store, key, Some(token), 5).unwrap());
    leave(&mut store, gone.id, 1, 9);
    drop(store);
    let before = now_ms();
    let mut store = Sqlite::open(&file).unwrap();
    let seen: Vec<_> = store.nodes().unwrap().iter().map(|node| node.seen_ms).collect();
    assert!(seen[0] == 9 && seen[1] >= before, "{seen:?}");
    // So it keeps its address, and who was away for long does not.
    let third = login(&mut store, 3, Some(token), before).unwrap();
    let fourth = login(&mut store, 4, Some(token), before).unwrap();
    assert_eq!((third.slot, fourth.slot), (Some(3), gone.slot));
    let next = before + RECLAIM_MS - HOUR;
    leave(&mut store, third.id, 1, next);
    leave(&mut store, fourth.id, 1, next);
    assert_eq!(login(&mut store, 5, Some(token), next), Err(RejectCode::NoAddress));
    assert_eq!(login(&mut store, 2, None, next).unwrap().slot, here.slot);
}

#[test]
fn a_login_comes_after_those_that_are_not_written_down() {
    let mut store = Sqlite::in_memory().unwrap();
    let token = token(&mut store, 1, None, None);
    let id = login(&mut store, 1, Some(token), 5).unwrap().id;
    let key = &[1; 32];
    let known = Login { key, name: "node", token: None, capacity: 3, epoch: 7, now_ms: 6 };
    assert_eq!(store.login(&known).unwrap().unwrap().epoch, 8);
    // What is written down late of those before says nothing of this one.
    leave(&mut store, id, 7, 9);
    assert_eq!(store.nodes().unwrap()[0].seen_ms, 6);
}

#[test]
fn a_database_whose_file_was_removed_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let (file, away) = (folder.path().join("hub.db"), folder.path().join("away.db"));
    let mut store = Sqlite::open(&file).unwrap();
    let token = token(&mut store, 1, None, None);
    store.check().unwrap();
    fs::rename(&file, &away).unwrap();
    let login_now = |store: &mut Sqlite| {
        let (key, name) = (&[1; 32], "node");
        store.login(&Login { key, name, token: Some(token), capacity: 3, epoch: 0, now_ms: 0 })
    };
    for error in [store.check().unwrap_err(), login_now(&mut store).unwrap_err()] {
        assert!(error.to_string().contains("is not there any more"), "{error}");
    }
    // Nor is one that somebody has put in its place.
    fs::copy(&away, &file).unwrap();
    assert!(store.check().is_err());
    fs::rename(&away, &file).unwrap();
    assert!(login_now(&mut store).unwrap().is_ok());
}

/// What was answered, as far as every store must say the same.
type Answers = Vec<String>;

/// Does one thing, chosen by numbers, and looks at everything.
fn act<S: Nodes + Tokens + Subnets + Settings + Audit>(
    store: &mut S,
    [what, one, two, three]: [u8; 4],
    (step, now_ms): (u8, i64),
) -> Answers {
    let by = at(now_ms);
    let names = ["node", "Node", "hub", "db.east", "east", "rack.DB.East"];
    let name = |number: u8| names[usize::from(number) % names.len()];
    let token = |number: u8| (TokenId([number; 6]), Secret([number; 16]));
    let tokens = store.tokens().unwrap();
    let made = |number: u8| match tokens.len() {
        0 => TokenId([number; 6]),
        len => tokens[usize::from(number) % len].id.parse().unwrap(),
    };
    let net = |number: u8| {
        ["192.168.7.0/24", "10.9.0.0/16", "0.0.0.0/0", "fd00:9::/64"][usize::from(number % 4)]
            .parse::<ipnet::IpNet>()
            .unwrap()
    };
    let nodes = store.nodes().unwrap();
    let node = (!nodes.is_empty()).then(|| &nodes[usize::from(one) % nodes.len()]);
    let known = node.map_or("nobody", |node| node.name.as_str());
    let blame = |done: Result<()>| format!("{:?}", done.map_err(|error| error.blame));
    let slot = |number: u8| u32::from(number % 6) + 1;
    let done = match what % 14 {
        0..=3 => {
            let id = made(three);
            // Now and then with a wrong secret, or without a token.
            let secret = if two % 11 == 0 { Secret([255; 16]) } else { Secret([id.0[0]; 16]) };
            let (key, token) = (&[one % 9; 32], (two % 7 > 0).then_some((id, secret)));
            let login = Login {
                key,
                name: name(two),
                token,
                capacity: 4,
                epoch: u64::from(two % 4),
                now_ms,
            };
            format!("{:?}", store.login(&login).unwrap())
        }
        4 | 5 => {
            let (id, epoch) = node.map_or((1, 1), |node| (node.id, node.epoch));
            // Also of a login that is not known yet, and of one that was before.
            let epoch = (epoch + u64::from(two % 7 == 0)) - u64::from(two % 5 == 0);
            let presence =
                Presence { node: id, epoch, is_here: three % 4 == 0, seen_ms: now_ms - HOUR };
            let deed =
                Deed { at_ms: now_ms, who: "hub".into(), action: "x".into(), subject: "".into() };
            format!("{:?}", store.keep_up(&[presence], &[deed]).unwrap())
        }
        6 => format!("{:?}", store.revoke_node(known, &by).unwrap()),
        7 => {
            let expires = (two % 3 == 0).then_some(now_ms + i64::from(two) * HOUR);
            let uses = (three % 2 == 0).then_some(u32::from(three % 5));
            let slot = (one % 3 == 0 && step > 0).then_some(slot(two));
            let terms = Terms { expires_ms: expires, uses, slot };
            format!("{:?}", store.create_token(token(step), terms, &by).unwrap())
        }
        // Not often, so that nodes can join.
        8 if one % 16 > 0 => String::new(),
        8 => format!("{:?}", store.revoke_token(made(one), &by).unwrap()),
        9 => {
            let all = [net(two), net(three)];
            let offered = &all[..usize::from(two % 2) + usize::from(net(two) != net(three))];
            format!("{:?}", node.map(|node| store.offer(node.id, offered).unwrap()))
        }
        10 => blame(store.judge_subnet(known, net(two), three % 3 > 0, &by)),
        11 => {
            let place = (slot(two), "here");
            format!("{:?}", store.pin(known, place, &by).unwrap())
        }
        12 => format!("{:?}", store.unpin(known, &by).unwrap()),
        _ => {
            let role = [None, Some(Role::Reader), Some(Role::Admin)][usize::from(two % 3)];
            let policy = serde_json::from_str(r#"{"allow": [{"from": ["*"], "to": ["hub"]}]}"#);
            let policy = policy.ok().filter(|_| three % 2 == 0);
            store.set_policy(policy.as_ref(), &by).unwrap();
            store.note("note", known, &by).unwrap();
            format!("{:?}", store.set_role(u32::from(one % 3), role, &by).unwrap())
        }
    };
    vec![
        done,
        format!("{:?}", store.nodes().unwrap()),
        format!("{:?}", store.tokens().unwrap()),
        format!("{:?}", store.subnets().unwrap()),
        format!("{:?}", store.exit(known).unwrap()),
        format!("{:?} {:?}", store.policy().unwrap(), store.roles().unwrap()),
        format!("{:?}", store.audit(3).unwrap()),
    ]
}

#[test]
fn a_store_in_sql_does_what_plain_words_say() {
    let mut joined = 0;
    let mut reclaimed = 0;
    let mut pinned = 0;
    for seed in 1..=20_u64 {
        let (mut sqlite, mut memory) = (Sqlite::in_memory().unwrap(), Memory::default());
        let mut state = seed;
        let mut now_ms = 0;
        for step in 0..200_u8 {
            // Xorshift (Marsaglia 2003), 64 bits.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let [what, one, two, three, time, ..] = state.to_le_bytes();
            now_ms += if time == 0 { RECLAIM_MS } else { i64::from(time) * HOUR };
            // The first is a token that many can use.
            let choice = if step == 0 { [7, 0, 1, 1] } else { [what, one, two, three] };
            let expected = act(&mut memory, choice, (step, now_ms));
            let found = act(&mut sqlite, choice, (step, now_ms));
            assert_eq!(found, expected, "seed {seed}, step {step}, {choice:?}");
        }
        let deeds = memory.audit(u32::MAX).unwrap();
        joined += deeds.iter().filter(|deed| deed.action == "join").count();
        pinned += deeds.iter().filter(|deed| deed.action == "pin-address").count();
        reclaimed += deeds.iter().filter(|deed| deed.action == "reclaim-address").count();
    }
    assert!(
        joined > 20 && reclaimed > 2 && pinned > 20,
        "{joined}, {reclaimed} and {pinned}: nothing much was tried"
    );
}
