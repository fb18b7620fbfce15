//! Series of external ports, and the class that they show (C7).
#![allow(clippy::unwrap_used, reason = "a series that cannot be made is a failed test")]

use netyard_nic::nat::delta::{Sample, consecutive, far_apart, next_destination, ports};
use netyard_nic::nat::{Delta, DeltaType};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

const COUNT: u16 = 12;

/// A NAT, as a function of the local port and the number of mappings before.
type Nat = fn(local: u16, before: u16, rng: &mut SmallRng) -> u16;

/// What a test finds: from local ports far apart, and where that shows nothing from consecutive ones.
/// Of each ten samples `noise` are of another port altogether.
fn find(nat: Nat, noise: u16, seed: u64) -> Option<Delta> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut before = 0;
    let mut series = |locals: Vec<u16>, rng: &mut SmallRng| -> Vec<Sample> {
        // Noise lies together: other people's connections come in bursts.
        let noisy = COUNT * noise / 10;
        let first = rng.random_range(0..=COUNT - noisy);
        locals
            .into_iter()
            .zip(0..)
            .map(|(local, number)| {
                let mapped = nat(local, before, rng);
                before += 1;
                let is_noise = (first..first + noisy).contains(&number);
                Sample { local, mapped: if is_noise { rng.random() } else { mapped } }
            })
            .collect()
    };
    let locals = (0..COUNT).map(|_| rng.random_range(10_000..60_000)).collect();
    let apart = series(locals, &mut rng);
    far_apart(&apart).or_else(|| {
        let first: u16 = rng.random_range(10_000..60_000);
        let near = series((first..first + COUNT).collect(), &mut rng);
        consecutive(&near)
    })
}

/// Each class in several forms, among them ones that go around the end of the numbers, go down, or
/// stay in a block.
fn nats() -> Vec<(Nat, DeltaType, i32)> {
    vec![
        (|local, _, _| local, DeltaType::Equal, 0),
        (|local, _, _| local.wrapping_add(1000), DeltaType::Preserving, 1000),
        (|local, _, _| local.wrapping_add(60_000), DeltaType::Preserving, -5536),
        (|local, _, _| local.wrapping_sub(7), DeltaType::Preserving, -7),
        (|_, before, _| 40_000 + before, DeltaType::Independent, 1),
        (|_, before, _| 40_000 + before * 10, DeltaType::Independent, 10),
        (|_, before, _| 40_000 - before * 3, DeltaType::Independent, -3),
        (|_, before, _| 65_520_u16.wrapping_add(before * 4), DeltaType::Independent, 4),
        (|_, before, _| 2048 + before * 8 % 64, DeltaType::Independent, 8),
        (|local, _, _| local.wrapping_mul(20), DeltaType::Dependent, 20),
        (|local, _, _| local.wrapping_mul(3).wrapping_add(9), DeltaType::Dependent, 3),
        (|local, _, _| 0_u16.wrapping_sub(local), DeltaType::Dependent, -1),
        (|_, _, rng| rng.random_range(1024..=65_535), DeltaType::Random, 0),
        (|_, _, rng| rng.random_range(2048..4096), DeltaType::Random, 0),
        (|local, _, rng| rng.random::<u16>() & !1 | local & 1, DeltaType::Random, 0),
    ]
}

#[test]
fn c7_every_class_is_found_in_noise() {
    for (number, (nat, kind, signed)) in nats().into_iter().enumerate() {
        for noise in 0..=3 {
            for seed in 0..20 {
                let delta = find(nat, noise, seed).unwrap();
                let name = format!("NAT {number}, noise {noise}0 %, seed {seed}: {delta:?}");
                assert_eq!((delta.kind, delta.signed), (kind, Some(signed)), "{name}");
                let has_value = [DeltaType::Independent, DeltaType::Dependent].contains(&kind);
                let value = if has_value { signed.unsigned_abs() } else { 0 };
                assert_eq!(u32::from(delta.value), value, "{name}");
            }
        }
    }
}

/// The rule of older programs, on series without noise, where the two must agree: at least 5 of 12 equal;
/// else at least 5 pairs that keep their distance; else 5 equal distances.
#[test]
fn c7_older_programs_would_say_the_same() {
    for (number, (nat, _, signed)) in nats().into_iter().enumerate() {
        // They lose signs, and take a step of one for a preserved distance.
        if signed < 0 || signed == 1 {
            continue;
        }
        for seed in 0..20 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let locals: Vec<u16> = (0..COUNT).map(|_| rng.random_range(10_000..60_000)).collect();
            let mapped = |locals: &[u16], from: u16, rng: &mut SmallRng| -> Vec<u16> {
                locals.iter().zip(from..).map(|(local, number)| nat(*local, number, rng)).collect()
            };
            let one = mapped(&locals, 0, &mut rng);
            let near: Vec<u16> = (20_000..20_000 + COUNT).collect();
            let two = mapped(&near, COUNT, &mut rng);
            let distances = |ports: &[u16]| -> Vec<u16> {
                ports.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect()
            };
            let often = |values: &[u16]| {
                values
                    .iter()
                    .any(|value| values.iter().filter(|other| *other == value).count() >= 5)
            };
            let equal = locals.iter().zip(&one).filter(|(local, mapped)| local == mapped).count();
            let kept = distances(&locals);
            let kept = kept.iter().zip(&distances(&one)).filter(|(a, b)| a == b).count();
            let theirs = match () {
                () if equal >= 5 => DeltaType::Equal,
                () if kept >= 5 => DeltaType::Preserving,
                () if often(&distances(&one)) => DeltaType::Independent,
                () if often(&distances(&two)) => DeltaType::Dependent,
                () => DeltaType::Random,
            };
            assert_eq!(find(nat, 0, seed).unwrap().kind, theirs, "NAT {number}, seed {seed}");
        }
    }
}

#[test]
fn c7_too_few_samples_say_nothing() {
    let few = [Sample { local: 1, mapped: 1 }; 5];
    assert_eq!((far_apart(&few), consecutive(&few), ports(&few)), (None, None, None));
}

#[test]
fn c7_ports_are_described() {
    let samples: Vec<Sample> =
        (0..6).map(|number| Sample { local: 4000 + number, mapped: 5000 + number }).collect();
    let seen = ports(&samples).unwrap();
    assert_eq!((seen.preserve, seen.parity, seen.offset), (false, true, Some(1000)));
    assert_eq!((seen.min, seen.max), (5000, 5005));
}

#[test]
fn c7_steps_between_destinations_must_all_be_alike() {
    assert_eq!(next_destination(&[10, 14, 18, 22]), Some(4));
    assert_eq!(next_destination(&[65_530, 65_534, 2, 6]), Some(4));
    assert_eq!(next_destination(&[22, 18, 14, 10]), Some(-4));
    assert_eq!(next_destination(&[10, 14, 18]), None, "three steps at least");
    assert_eq!(next_destination(&[10, 14, 18, 23]), None);
    assert_eq!(next_destination(&[10, 10, 10, 10]), None);
}
