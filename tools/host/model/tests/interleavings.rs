// SPDX-License-Identifier: GPL-2.0

//! Nobody is overtaken, whatever the order in which things happen.
//!
//! Each scenario is played through in all orders with up to so many preemptions as it says. The
//! number of orders is printed; `--nocapture` shows it.

use model::scenario::{Actor, Measure, Scenario, Snapshot};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::time::Instant;

const READ: Actor = Actor::Read {
    snap: 0,
    at: 0,
    len: 2,
};
const WRITE: Actor = Actor::OriginWrite { at: 0, len: 2 };
const WIDE_WRITE: Actor = Actor::OriginWrite { at: 0, len: 4 };
const OWN_WRITE: Actor = Actor::OwnWrite {
    snap: 0,
    at: 0,
    len: 2,
};

fn snapshot(is_persistent: bool) -> Snapshot {
    Snapshot {
        is_persistent,
        chunk: 2,
        is_broken: false,
    }
}

fn scenario(snapshots: &[Snapshot], actors: &[Actor], preemptions: usize) -> Scenario {
    Scenario {
        snapshots: snapshots.to_vec(),
        actors: actors.to_vec(),
        workers: 1,
        left_out: None,
        // More of them take very much longer.
        preemptions: preemptions + more_preemptions(),
    }
}

/// From the environment's `MODEL_PREEMPTIONS`, for those who have the time.
fn more_preemptions() -> usize {
    let more = std::env::var("MODEL_PREEMPTIONS");
    more.map_or(0, |n| n.parse().expect("MODEL_PREEMPTIONS is a number"))
}

/// Plays a scenario through, and tells how many orders there were.
fn holds(name: &str, scenario: &Scenario) {
    let begun = Instant::now();
    let count = scenario.run();
    println!("{name}: {count} interleavings in {:.1?}", begun.elapsed());
    assert!(count > 100, "that cannot have been all");
}

/// The same scenario with something left out: in some order the fault shows that this prevents.
fn is_found(name: &str, scenario: &Scenario, left_out: Measure) {
    let mut scenario = scenario.clone();
    scenario.left_out = Some(left_out);
    let fault = match left_out {
        Measure::Tracking => "a read of the snapshot was given new data",
        Measure::Waking => "bios wait for ever",
    };
    let result = catch_unwind(AssertUnwindSafe(|| scenario.run()));
    let reason = match result {
        Ok(count) => panic!("{name}: the fault is not found in {count} interleavings"),
        Err(reason) => reason,
    };
    let text = reason
        .downcast_ref::<String>()
        .map_or_else(|| reason.downcast_ref::<&str>().copied(), |s| Some(s))
        .expect("a panic has a text");
    assert!(text.contains(fault), "{name}: {text}");
    println!("{name}: without {left_out:?}: {text}");
}

macro_rules! scenarios {
    ($($name:ident: $snapshots:expr, $actors:expr, $preemptions:expr, $fault:ident;)*) => {
        $(
            #[test]
            fn $name() {
                let scenario = scenario(&$snapshots, &$actors, $preemptions);
                holds(stringify!($name), &scenario);
                scenarios!(@$fault stringify!($name), &scenario);
            }
        )*
    };
    // Without tracking, the race must be found.
    (@races $name:expr, $scenario:expr) => { is_found($name, $scenario, Measure::Tracking) };
    // Without the waking, a bio must be found that waits for ever.
    (@sleeps $name:expr, $scenario:expr) => { is_found($name, $scenario, Measure::Waking) };
    (@plain $name:expr, $scenario:expr) => {};
}

scenarios! {
    persistent_read_and_two_origin_writes:
        [snapshot(true)], [READ, WRITE, WIDE_WRITE], 2, races;
    transient_read_and_two_origin_writes:
        [snapshot(false)], [READ, WRITE, WIDE_WRITE], 2, races;
    persistent_read_own_write_and_origin_write:
        [snapshot(true)], [READ, OWN_WRITE, WRITE], 2, races;
    transient_read_own_write_and_origin_write:
        [snapshot(false)], [READ, OWN_WRITE, WRITE], 2, races;
    read_of_two_chunks_and_a_write_within:
        [snapshot(true)],
        [Actor::Read { snap: 0, at: 0, len: 4 }, Actor::OriginWrite { at: 3, len: 1 }], 3, races;
    own_write_to_a_part_and_origin_write:
        [snapshot(true)],
        [READ, Actor::OwnWrite { snap: 0, at: 1, len: 1 }, WRITE], 2, races;
    two_snapshots_with_different_chunks:
        [snapshot(true), Snapshot { chunk: 4, ..snapshot(false) }],
        [READ, Actor::Read { snap: 1, at: 2, len: 2 }, WRITE], 2, races;
    snapshot_becomes_invalid:
        [Snapshot { is_broken: true, ..snapshot(true) }], [READ, WRITE, WIDE_WRITE], 2, plain;
    snapshot_is_removed:
        [snapshot(true)], [READ, WRITE, Actor::Remove { snap: 0 }], 2, races;
    snapshot_with_larger_chunks_is_taken:
        [snapshot(true), Snapshot { chunk: 4, ..snapshot(true) }],
        [WRITE, Actor::Take { snap: 1 }], 3, plain;
    transient_snapshot_with_larger_chunks_is_taken:
        [snapshot(true), Snapshot { chunk: 4, ..snapshot(false) }],
        [WRITE, Actor::Take { snap: 1 }], 3, plain;
    transient_snapshot_is_removed:
        [snapshot(false)], [READ, WRITE, Actor::Remove { snap: 0 }], 1, races;
    // Between the moments at which a copy is found to be needed and at which it is begun, too.
    snapshot_becomes_shorter_than_where_is_written:
        [snapshot(true)],
        [Actor::OriginWrite { at: 2, len: 2 }, Actor::SetTable { snap: 0, end: 2 }], 3, sleeps;
}

#[test]
fn two_workers() {
    let mut scenario = scenario(&[snapshot(true)], &[READ, WRITE], 2);
    scenario.workers = 2;
    holds("two_workers", &scenario);
    is_found("two_workers", &scenario, Measure::Tracking);
}
