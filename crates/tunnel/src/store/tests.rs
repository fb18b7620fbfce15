use super::*;

const HOUR: i64 = 3_600_000;

fn token(
    store: &mut Store,
    number: u8,
    expires: Option<i64>,
    uses: Option<u32>,
) -> (TokenId, Secret) {
    let token = (TokenId([number; 6]), Secret([number; 16]));
    store.create_token(token, expires, uses, 0).unwrap();
    token
}

fn login(
    store: &mut Store,
    key: u8,
    token: Option<(TokenId, Secret)>,
    now_ms: i64,
) -> Result<Node, RejectCode> {
    let key = &[key; 32];
    store.login(&Login { key, name: "node", token, capacity: 3, now_ms }).unwrap()
}

#[test]
fn a_token_lets_one_node_in_and_the_node_comes_back_without_it() {
    let mut store = Store::in_memory().unwrap();
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
    let mut store = Store::in_memory().unwrap();
    let short = token(&mut store, 1, Some(HOUR), None);
    assert!(login(&mut store, 1, Some(short), HOUR - 1).is_ok());
    assert_eq!(login(&mut store, 2, Some(short), HOUR), Err(RejectCode::Expired));
    let open = token(&mut store, 2, None, None);
    assert!(store.revoke_token(open.0, 1).unwrap());
    assert_eq!(login(&mut store, 2, Some(open), 2), Err(RejectCode::Revoked));
    assert!(!store.revoke_token(TokenId([9; 6]), 1).unwrap());
    assert!(login(&mut store, 1, None, HOUR).is_ok(), "who has joined stays");
}

#[test]
fn a_wrong_secret_learns_nothing_about_a_token() {
    let mut store = Store::in_memory().unwrap();
    let (id, _) = token(&mut store, 1, Some(0), Some(0));
    let guess = Some((id, Secret([9; 16])));
    assert_eq!(login(&mut store, 1, guess, HOUR), Err(RejectCode::BadToken));
    let none = Some((TokenId([9; 6]), Secret([1; 16])));
    assert_eq!(login(&mut store, 1, none, HOUR), Err(RejectCode::BadToken));
}

#[test]
fn a_revoked_node_is_out_and_its_address_and_name_are_free() {
    let mut store = Store::in_memory().unwrap();
    let token = token(&mut store, 1, None, None);
    let first = login(&mut store, 1, Some(token), 0).unwrap();
    let second = login(&mut store, 2, Some(token), 0).unwrap();
    assert_eq!((second.slot, second.name.as_str()), (Some(2), "node-2"));
    assert_eq!(store.revoke_node("node", 1).unwrap(), Some(first.id));
    assert_eq!(store.revoke_node("node", 1).unwrap(), None);
    assert_eq!(login(&mut store, 1, Some(token), 2), Err(RejectCode::Revoked), "with a good token");
    let third = login(&mut store, 3, Some(token), 2).unwrap();
    assert_eq!((third.slot, third.name.as_str()), (Some(1), "node"));
    assert_eq!(store.nodes().unwrap().len(), 2);
}

#[test]
fn when_all_addresses_are_taken_the_one_away_longest_is_given_again() {
    let mut store = Store::in_memory().unwrap();
    let token = token(&mut store, 1, None, None);
    for key in 1..=3 {
        login(&mut store, key, Some(token), key.into()).unwrap();
    }
    assert_eq!(login(&mut store, 4, Some(token), 9), Err(RejectCode::NoAddress));
    let late = 10 + RECLAIM_MS + HOUR;
    assert_eq!(login(&mut store, 4, Some(token), late), Err(RejectCode::NoAddress), "all are here");
    store.logout(2, 1, 10).unwrap();
    store.logout(3, 0, 10).unwrap();
    let fourth = login(&mut store, 4, Some(token), late).unwrap();
    assert_eq!(fourth.slot, Some(2), "the third is still here: that was an older login");
    assert_eq!(login(&mut store, 2, None, late), Err(RejectCode::NoAddress));
    assert!(login(&mut store, 1, None, late).is_ok());
}

#[test]
fn a_database_is_opened_again_but_not_a_newer_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hub.db");
    let mut store = Store::open(&file).unwrap();
    let token = token(&mut store, 1, None, None);
    login(&mut store, 1, Some(token), 0).unwrap();
    drop(store);
    let mut store = Store::open(&file).unwrap();
    assert_eq!(login(&mut store, 1, None, 1).unwrap().slot, Some(1));
    store.database.pragma_update(None, "user_version", 99).unwrap();
    drop(store);
    let error = Store::open(&file).unwrap_err();
    assert!(error.to_string().contains("version 99"), "{error}");
}

#[test]
fn subnets_are_offered_by_nodes_and_accepted_by_somebody_else() {
    let mut store = Store::in_memory().unwrap();
    let token = token(&mut store, 1, None, None);
    let one = login(&mut store, 1, Some(token), 0).unwrap();
    let two = login(&mut store, 2, Some(token), 0).unwrap();
    let net = |text: &str| text.parse::<ipnet::IpNet>().unwrap();
    let (lan, all) = (net("192.168.7.0/24"), net("0.0.0.0/0"));
    for node in [&one, &two] {
        store.offer(node.id, &[lan, all]).unwrap();
    }
    let open = |store: &Store| {
        let open = store.subnets().unwrap().into_iter().filter(|(_, subnet)| subnet.is_open());
        open.map(|(node, subnet)| (node, subnet.prefix)).collect::<Vec<_>>()
    };
    assert_eq!(open(&store), []);
    store.judge_subnet("node", lan, true, 0).unwrap();
    let blame = |done: Result<()>| done.unwrap_err().blame;
    assert_eq!(blame(store.judge_subnet("node-2", lan, true, 0)), Blame::Conflict);
    assert_eq!(blame(store.judge_subnet("node", net("10.0.0.0/8"), true, 0)), Blame::Unknown);
    assert_eq!(blame(store.judge_subnet("nobody", lan, true, 0)), Blame::Unknown);
    assert_eq!(store.exit("node-2").unwrap(), None);
    store.judge_subnet("node-2", all, true, 0).unwrap();
    assert_eq!(store.exit("node-2").unwrap(), Some(two.id));
    assert_eq!(open(&store), [(one.id, lan), (two.id, all)]);
    store.offer(one.id, &[]).unwrap();
    assert_eq!(open(&store), [(two.id, all)], "it is not offered any more");
    store.offer(one.id, &[lan]).unwrap();
    assert_eq!(open(&store), [(one.id, lan), (two.id, all)], "and what was accepted stays so");
    store.judge_subnet("node", lan, false, 0).unwrap();
    store.revoke_node("node-2", 0).unwrap();
    assert_eq!(open(&store), []);
    let deeds = store.audit(2).unwrap();
    assert_eq!(
        (deeds[0].action.as_str(), deeds[1].action.as_str()),
        ("revoke-node", "refuse-subnet")
    );
}

#[test]
fn a_backup_is_a_database_and_never_overwrites() {
    let folder = tempfile::tempdir().unwrap();
    let (file, copy) = (folder.path().join("hub.db"), folder.path().join("copy.db"));
    let mut store = Store::open(&file).unwrap();
    let token = token(&mut store, 1, None, None);
    login(&mut store, 1, Some(token), 0).unwrap();
    let policy = serde_json::from_str(r#"{"allow": [{"from": ["node"], "to": ["hub"]}]}"#).unwrap();
    store.set_policy(Some(&policy), 0).unwrap();
    store.back_up(&copy).unwrap();
    store.set_policy(None, 0).unwrap();
    assert_eq!(store.policy().unwrap(), None);
    let copied = Store::open(&copy).unwrap();
    assert_eq!(copied.nodes().unwrap(), store.nodes().unwrap());
    assert_eq!(copied.policy().unwrap(), Some(policy));
    assert_eq!(store.back_up(&copy).unwrap_err().blame, Blame::Conflict);
}

#[test]
fn a_slot_and_a_name_are_found_without_a_scan_however_many_there_are() {
    let mut store = Store::in_memory().unwrap();
    let token = token(&mut store, 1, None, None);
    login(&mut store, 1, Some(token), 0).unwrap();
    for sql in [FREE_SLOT, LAST_SLOT, IDLE_NODE, NAME_TAKEN] {
        let explain = format!("EXPLAIN QUERY PLAN {}", sql.replace("?1", "'x'"));
        let plan = store.list(&explain, |row| row.get::<_, String>(3)).unwrap();
        let is_search = |step: &String| step.starts_with("SEARCH") || step.starts_with("SCALAR");
        let steps = plan.iter().filter(|step| !step.starts_with("SCAN CONSTANT ROW"));
        assert!(steps.clone().count() > 0 && steps.clone().all(is_search), "{sql}: {plan:?}");
    }
}
