//! Replays the seeds of a crate's fuzz targets, mutates them, and throws in plain noise. The file that
//! includes this one names the targets, and what each of them checks.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use proptest::prelude::*;
use proptest::sample::Index;

use crate::TARGETS;

pub(crate) type Check = fn(&[u8]);

/// Each target's check and seeds.
static SEEDS: LazyLock<Vec<(Check, Vec<Vec<u8>>)>> =
    LazyLock::new(|| TARGETS.map(|(target, check)| (check, read(target))).into());

/// The seeds of a target, in the order of their names.
fn read(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
    let mut paths: Vec<_> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "no seeds in {}", folder.display());
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn seeds_pass() {
    for (check, seeds) in SEEDS.iter() {
        for seed in seeds {
            check(seed);
        }
    }
}

#[test]
fn truncated_seeds_pass() {
    for (check, seeds) in SEEDS.iter() {
        for seed in seeds {
            for len in 0..seed.len() {
                check(&seed[..len]);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn mutated_seeds_pass(
        which: Index,
        changes in prop::collection::vec((any::<Index>(), any::<u8>()), 1..8),
        tail in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        for (check, seeds) in SEEDS.iter() {
            let mut bytes = which.get(seeds).clone();
            for (at, value) in &changes {
                *at.get_mut(&mut bytes) = *value;
            }
            check(&bytes);
            bytes.extend_from_slice(&tail);
            check(&bytes);
        }
    }

    #[test]
    fn noise_passes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for (_, check) in TARGETS {
            check(&bytes);
        }
    }
}
