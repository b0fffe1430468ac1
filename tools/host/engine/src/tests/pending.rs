// SPDX-License-Identifier: GPL-2.0

//! What is in flight against a plain list of it.

use crate::pending::{Busy, Flight, ItemId, Kind, Phase, SnapId, Way};
use crate::units::{Sector, Sectors};
use kernel::host::{self, Fail};
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
struct Item {
    id: ItemId,
    snap: SnapId,
    range: Sectors,
    /// None for a read.
    exception: Option<(Kind, Phase)>,
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
    Advance(usize),
    End(usize),
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
        3 => any::<usize>().prop_map(Op::Advance),
        4 => any::<usize>().prop_map(Op::End),
    ]
}

/// The table at the head of `pending.rs`, by columns.
fn holds_origin(item: &Item) -> bool {
    !matches!(
        item.exception,
        Some((Kind::CopiedTransient, Phase::Filling))
    )
}

fn ways(kind: Kind, phase: Phase) -> (Way, Way) {
    match (kind, phase) {
        (_, Phase::Volatile) => (Way::Cow, Way::Cow),
        (Kind::CopiedTransient, Phase::Filling) => (Way::Wait, Way::Wait),
        _ => (Way::Origin, Way::Wait),
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
            let is_volatile = |i: &&Item| matches!(i.exception, Some((_, Phase::Volatile)));
            let mut told: Vec<u32> = flight.volatile(range).map(|s| s.0).collect();
            let mut known: Vec<u32> = there().filter(is_volatile).map(|i| i.snap.0).collect();
            told.sort_unstable();
            known.sort_unstable();
            assert_eq!(told, known);
            for snap in (0..SNAPS).map(SnapId) {
                let own = || there().filter(move |i| i.snap == snap);
                let first = own()
                    .filter(|i| i.exception.is_some())
                    .map(|i| i.range.start)
                    .min();
                // Of several that begin at the same place any may be told.
                let could_be: Vec<Busy> = own()
                    .filter(|i| Some(i.range.start) == first)
                    .filter_map(|i| {
                        let (kind, phase) = i.exception?;
                        let (read, write) = ways(kind, phase);
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
                    Some((snap, range, None, flight.start_read(SnapId(snap), range)))
                }
                Op::Exception { snap, range, kind } => {
                    let phase = match kind {
                        Kind::Written => Phase::Filling,
                        _ => Phase::Reading,
                    };
                    let id = flight.start_exception(SnapId(snap), range, kind);
                    Some((snap, range, Some((kind, phase)), id))
                }
                Op::Advance(which) => {
                    if let Some(len) = Some(items.len()).filter(|n| *n != 0) {
                        let item = &mut items[which % len];
                        match item.exception.as_mut() {
                            Some((_, phase)) => {
                                *phase = match phase {
                                    Phase::Reading => Phase::Filling,
                                    _ => Phase::Volatile,
                                };
                                let touched = flight.advance(item.id, *phase);
                                assert_eq!(touched, item.range);
                            }
                            None => {
                                let touched = flight.advance(item.id, Phase::Volatile);
                                assert!(touched.is_empty(), "a read has no phases");
                            }
                        }
                    }
                    None
                }
                Op::End(which) => {
                    if let Some(len) = Some(items.len()).filter(|n| *n != 0) {
                        let item = items.swap_remove(which % len);
                        assert_eq!(flight.end(item.id), item.range);
                        // A second end is not one.
                        assert!(flight.end(item.id).is_empty());
                    }
                    None
                }
            };
            host::fail(Fail::Never);
            match started {
                Some((snap, range, exception, Ok(id))) => {
                    assert!(items.iter().all(|i| i.id != id));
                    items.push(Item { id, snap: SnapId(snap), range, exception });
                }
                // Only when all room is taken and there is no memory.
                Some((.., Err(_))) => assert!(no_memory && items.len() >= room),
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
