// SPDX-License-Identifier: GPL-2.0

//! What is in flight against a plain list of it.

use crate::pending::{Busy, Flight, Full, ItemId, Kind, Phase, SnapId, Way};
use crate::units::{Sector, Sectors};
use kernel::host::{self, Fail};
use proptest::prelude::*;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Read,
    Exception(Kind, Phase),
    MergeWrite,
    Merge,
    Stranded,
}

#[derive(Clone, Copy, Debug)]
struct Item {
    id: ItemId,
    snap: SnapId,
    range: Sectors,
    state: State,
}

#[derive(Clone, Debug)]
enum Op {
    Read {
        snap: u32,
        range: Sectors,
    },
    Exception {
        snap: u32,
        range: Sectors,
        kind: Kind,
    },
    MergeWrite {
        snap: u32,
        range: Sectors,
    },
    Merge {
        snap: u32,
        range: Sectors,
    },
    Advance(usize),
    Strand(usize),
    End(usize),
    Forget(u32),
}

const SNAPS: u32 = 3;
const SECTORS: u64 = 64;

fn range() -> impl Strategy<Value = Sectors> {
    (0..SECTORS, 1..20u64).prop_map(|(start, len)| Sectors::new(Sector(start), len))
}

fn op() -> impl Strategy<Value = Op> {
    let kind = prop_oneof![
        Just(Kind::Copied),
        Just(Kind::CopiedTransient),
        Just(Kind::Written)
    ];
    prop_oneof![
        3 => (0..SNAPS, range()).prop_map(|(snap, range)| Op::Read { snap, range }),
        3 => (0..SNAPS, range(), kind)
            .prop_map(|(snap, range, kind)| Op::Exception { snap, range, kind }),
        2 => (0..SNAPS, range()).prop_map(|(snap, range)| Op::MergeWrite { snap, range }),
        2 => (0..SNAPS, range()).prop_map(|(snap, range)| Op::Merge { snap, range }),
        3 => any::<usize>().prop_map(Op::Advance),
        2 => any::<usize>().prop_map(Op::Strand),
        4 => any::<usize>().prop_map(Op::End),
        1 => (0..SNAPS).prop_map(Op::Forget),
    ]
}

/// What the head of `pending.rs` says of origin writes.
fn holds_origin(item: &Item) -> bool {
    match item.state {
        State::Read => true,
        State::Exception(kind, phase) => (kind, phase) != (Kind::CopiedTransient, Phase::Filling),
        State::MergeWrite | State::Merge | State::Stranded => false,
    }
}

/// What it says of reads and writes of the item's own snapshot; nothing where the item does not
/// concern them.
fn ways(item: &Item) -> Option<(Way, Way)> {
    match item.state {
        State::Read | State::MergeWrite => None,
        State::Exception(_, Phase::Volatile) => Some((Way::Cow, Way::Cow)),
        State::Exception(Kind::CopiedTransient, Phase::Filling) => Some((Way::Wait, Way::Wait)),
        State::Exception(..) => Some((Way::Origin, Way::Wait)),
        State::Merge => Some((Way::Cow, Way::Wait)),
        State::Stranded => Some((Way::Cow, Way::Fail)),
    }
}

fn check(flight: &Flight, items: &[Item]) {
    assert_eq!(flight.is_empty(), items.is_empty());
    for start in 0..SECTORS + 20 {
        for len in [1, 9] {
            let range = Sectors::new(Sector(start), len);
            let there = || items.iter().filter(move |i| i.range.overlaps(&range));
            assert_eq!(
                flight.origin_may_write(range),
                !there().any(holds_origin),
                "{range:?}"
            );
            assert_eq!(
                flight.has_merge_write(range),
                there().any(|i| i.state == State::MergeWrite),
                "{range:?}"
            );
            let is_volatile = |i: &&Item| matches!(i.state, State::Exception(_, Phase::Volatile));
            let mut told: Vec<u32> = flight.volatile(range).map(|s| s.0).collect();
            let mut known: Vec<u32> = there().filter(is_volatile).map(|i| i.snap.0).collect();
            told.sort_unstable();
            known.sort_unstable();
            assert_eq!(told, known);
            for snap in (0..SNAPS).map(SnapId) {
                let own = || there().filter(move |i| i.snap == snap);
                let first = own()
                    .filter(|i| ways(i).is_some())
                    .map(|i| i.range.start)
                    .min();
                // Of several that begin at the same place any may be told.
                let could_be: Vec<Busy> = own()
                    .filter(|i| Some(i.range.start) == first)
                    .filter_map(|i| {
                        let (read, write) = ways(i)?;
                        Some(Busy {
                            range: i.range,
                            read,
                            write,
                        })
                    })
                    .collect();
                match flight.first_of(snap, range) {
                    Some(busy) => assert!(could_be.contains(&busy)),
                    None => assert!(could_be.is_empty()),
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(super::config(2))]

    #[test]
    fn who_may_go(
        ops in prop::collection::vec(op(), 1..if cfg!(miri) { 12 } else { 60 }),
        room in 1..6usize,
        no_memory: bool,
    ) {
        let mut flight = Flight::new(room).unwrap();
        let mut items: Vec<Item> = Vec::new();
        for op in ops {
            if no_memory {
                host::fail(Fail::NoWait);
            }
            let started = match op {
                Op::Read { snap, range } => {
                    Some((snap, range, State::Read, flight.start_read(SnapId(snap), range)))
                }
                Op::Exception { snap, range, kind } => {
                    let phase = match kind {
                        Kind::Written => Phase::Filling,
                        _ => Phase::Reading,
                    };
                    let id = flight.start_exception(SnapId(snap), range, kind);
                    Some((snap, range, State::Exception(kind, phase), id))
                }
                Op::MergeWrite { snap, range } => {
                    let id = flight.start_merge_write(SnapId(snap), range);
                    Some((snap, range, State::MergeWrite, id))
                }
                Op::Merge { snap, range } => {
                    let id = flight.start_merge(SnapId(snap), range);
                    Some((snap, range, State::Merge, id))
                }
                Op::Advance(which) => {
                    if let Some(len) = Some(items.len()).filter(|n| *n != 0) {
                        let item = &mut items[which % len];
                        match &mut item.state {
                            State::Exception(_, phase) => {
                                *phase = match phase {
                                    Phase::Reading => Phase::Filling,
                                    _ => Phase::Volatile,
                                };
                                let touched = flight.advance(item.id, *phase);
                                assert_eq!(touched, item.range);
                            }
                            _ => {
                                let touched = flight.advance(item.id, Phase::Volatile);
                                assert!(touched.is_empty(), "only an exception has phases");
                            }
                        }
                    }
                    None
                }
                Op::Strand(which) => {
                    let is_merge =
                        |i: &&mut Item| matches!(i.state, State::Merge | State::Stranded);
                    let mut merges: Vec<&mut Item> = items.iter_mut().filter(is_merge).collect();
                    if let Some(len) = Some(merges.len()).filter(|n| *n != 0) {
                        let item = &mut *merges[which % len];
                        item.state = State::Stranded;
                        // Done twice, it is the same.
                        assert_eq!(flight.strand(item.id), item.range);
                    }
                    None
                }
                Op::End(which) => {
                    if let Some(len) = Some(items.len()).filter(|n| *n != 0) {
                        let item = items.swap_remove(which % len);
                        assert_eq!(flight.end(item.id), item.range);
                        // What has ended does not end, or change, a second time.
                        assert!(flight.end(item.id).is_empty());
                        assert!(flight.advance(item.id, Phase::Volatile).is_empty());
                        assert!(flight.strand(item.id).is_empty());
                    }
                    None
                }
                Op::Forget(snap) => {
                    flight.forget(SnapId(snap));
                    items.retain(|i| i.snap != SnapId(snap));
                    None
                }
            };
            host::fail(Fail::Never);
            match started {
                Some((snap, range, state, Ok(id))) => {
                    assert!(items.iter().all(|i| i.id != id));
                    items.push(Item { id, snap: SnapId(snap), range, state });
                }
                // Only when all room is taken and there is no memory; merges leave some.
                Some((_, _, state, Err(_))) => {
                    let left = usize::from(matches!(state, State::Merge));
                    assert!(no_memory && items.len() + left >= room);
                }
                None => {}
            }
            check(&flight, &items);
        }
        // All that was in flight ends, and everybody may go.
        for item in items.drain(..) {
            flight.end(item.id);
        }
        check(&flight, &[]);
    }
}

#[test]
fn the_life_of_a_batch() {
    let sectors = |start, len| Sectors::new(Sector(start), len);
    let (merging, other) = (SnapId(1), SnapId(2));
    let mut flight = Flight::new(4).unwrap();
    let ways = |flight: &Flight, range| {
        let busy = flight.first_of(merging, range)?;
        Some((busy.read, busy.write))
    };

    // A write to a chunk on the COW device holds the merge of that chunk, and nothing else.
    let write = flight.start_merge_write(merging, sectors(8, 8)).unwrap();
    assert!(flight.has_merge_write(sectors(15, 1)));
    assert!(!flight.has_merge_write(sectors(16, 8)));
    assert_eq!(ways(&flight, sectors(0, 64)), None);
    assert!(flight.origin_may_write(sectors(0, 64)));

    // From the claim on, writes wait, and reads go on. The write before is still under way.
    let merge = flight.start_merge(merging, sectors(8, 16)).unwrap();
    assert!(flight.has_merge_write(sectors(8, 16)));
    assert_eq!(
        ways(&flight, sectors(23, 8)),
        Some((Way::Cow, Way::Wait)),
        "to the last sector of it"
    );
    assert_eq!(ways(&flight, sectors(24, 8)), None);
    assert_eq!(ways(&flight, sectors(0, 8)), None);
    // The merge itself must be able to write there, as far as this batch is concerned.
    assert!(flight.origin_may_write(sectors(0, 64)));
    // Other snapshots are not concerned, but their reads hold the merge.
    assert_eq!(flight.first_of(other, sectors(0, 64)), None);
    let read = flight.start_read(other, sectors(16, 8)).unwrap();
    assert!(!flight.origin_may_write(sectors(8, 16)));
    assert_eq!(flight.end(read), sectors(16, 8));
    assert_eq!(flight.end(write), sectors(8, 8));
    assert!(!flight.has_merge_write(sectors(0, 64)));

    // Nobody knows whether the record is gone: for good, writes fail.
    let second = flight.start_merge(merging, sectors(32, 8)).unwrap();
    assert_eq!(flight.strand(merge), sectors(8, 16));
    assert_eq!(ways(&flight, sectors(8, 1)), Some((Way::Cow, Way::Fail)));
    assert_eq!(ways(&flight, sectors(32, 1)), Some((Way::Cow, Way::Wait)));
    assert!(flight.origin_may_write(sectors(0, 64)));
    assert_eq!(flight.first_of(other, sectors(0, 64)), None);

    // Of a range that touches both, the first counts.
    let first = flight.first_of(merging, sectors(0, 64)).unwrap();
    assert_eq!((first.range, first.write), (sectors(8, 16), Way::Fail));
    assert_eq!(flight.end(second), sectors(32, 8));
    assert_eq!(ways(&flight, sectors(32, 1)), None);
}

#[test]
fn a_merge_waits_for_room_like_anything_else() {
    let (id, range) = (SnapId(1), Sectors::new(Sector(0), 8));
    let mut flight = Flight::new(4).unwrap();
    host::fail(Fail::NoWait);
    // The allocator may have given more room than was asked for.
    let items: Vec<ItemId> = std::iter::from_fn(|| flight.start_merge_write(id, range).ok())
        .take(100)
        .collect();
    assert!((4..100).contains(&items.len()));
    assert_eq!(flight.start_merge(id, range), Err(Full));
    assert_eq!(flight.start_merge_write(id, range), Err(Full));
    flight.end(items[2]);
    let merge = flight.start_merge(id, range);
    host::fail(Fail::Never);
    assert_eq!(merge, Ok(items[2]));
}

/// Merges that are stranded never end, so what finds no room beside them would wait for ever.
#[test]
fn merges_leave_room_for_what_ends() {
    let (id, range) = (SnapId(1), Sectors::new(Sector(0), 8));
    let mut flight = Flight::new(4).unwrap();
    host::fail(Fail::NoWait);
    let merges: Vec<ItemId> = std::iter::from_fn(|| flight.start_merge(id, range).ok())
        .take(100)
        .collect();
    assert!((3..100).contains(&merges.len()));
    for merge in merges {
        flight.strand(merge);
    }
    let read = flight.start_read(SnapId(2), range);
    host::fail(Fail::Never);
    assert!(read.is_ok());
}
