// SPDX-License-Identifier: GPL-2.0

//! Before the origin is written to: what the write is going to change, is saved.
//!
//! An origin write goes when every active snapshot has saved what it is going to change and
//! nothing that needs the old data is in flight (rule R1). This is where that is seen to, for
//! bios of the origin and for what a merge writes there.

#![deny(unsafe_code)]

use crate::{
    copy::Prepared,
    dm::NoIo,
    exception::Spare,
    live::{Failure, Health, Live},
    registry::Origin,
    room::NoRoom,
    slot::{Slot, Stop, Verdict},
    units::{Sector, Sectors},
};
use kernel::{prelude::*, sync::Arc};

/// Who wants to write to the origin.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writer {
    /// A bio: it may have to wait until fewer chunks are being copied.
    Bio,
    /// A merge, which has only so much under way at a time anyway.
    Merge,
}

/// What becomes of an origin write: of the thing `T` that stands for it, and of what `Q` comes of
/// it where it waits.
pub(crate) enum Outcome<T, Q> {
    /// It may go.
    Go(T),
    /// It waits for something in its slot.
    Waits(Q),
    /// It is to wait until fewer chunks are being copied; a merge, until there is more memory.
    Throttle(T),
    /// It is to fail: a snapshot has no room, and is not to be given up for that.
    NoSpace(T),
}

/// How far the attempt came to begin what is needed.
enum Begun {
    /// All was begun.
    All,
    /// As much was begun as there was room for in the flight.
    Room,
    /// The same in the copy: there are many runs, or a snapshot has just become active.
    Copy,
    /// More memory is needed: for the exception tables, or for the records of this snapshot.
    Memory(Option<Arc<Live>>),
    /// A snapshot has no room.
    NoSpace,
}

/// Sees to it that these sectors of the origin can be written to. If that has to wait, `wait` is
/// called with the slot still locked, so that nothing is missed, and told whether it is only for
/// something in flight. Process context.
pub(crate) fn save<T, Q>(
    origin: &Arc<Origin>,
    range: Sectors,
    writer: Writer,
    thing: T,
    wait: impl FnOnce(&mut Slot, T, bool) -> Q,
) -> Outcome<T, Q> {
    let mut prepared: Option<Prepared> = None;
    // Most writes need none, and then there is none to be freed.
    let mut spare: Option<Spare> = None;
    let mut is_refused = false;
    let mut is_short = false;
    loop {
        let Some((index, mut slot)) = origin.lock_slot(Sector(range.start)) else {
            return Outcome::Go(thing);
        };
        let begun = prepared.as_ref().is_some_and(|copy| !copy.is_empty());
        let mut is_conflict = false;
        match slot.judge(range) {
            Verdict::Go => return Outcome::Go(thing),
            Verdict::Wait => is_conflict = !begun,
            Verdict::Save(_) if !begun && writer == Writer::Bio && origin.is_crowded() => {
                return Outcome::Throttle(thing);
            }
            Verdict::Save(need) => {
                let copy = prepared.as_mut();
                let Some(copy) = copy.filter(|copy| begun || copy.is_enough(&need)) else {
                    drop(slot);
                    match Prepared::new(&need) {
                        Ok(copy) => prepared = Some(copy),
                        Err(_) if writer == Writer::Merge => return Outcome::Throttle(thing),
                        Err(_) => out_of_memory(origin, range),
                    }
                    continue;
                };
                let spare = spare.get_or_insert_with(Spare::new);
                match begin(&mut slot, index, range, copy, spare) {
                    Begun::All => {}
                    // Nothing would wake what waits now. The next look finds the copy too small.
                    Begun::Copy if copy.is_empty() => continue,
                    // A merge would wait for what it has in flight there itself.
                    Begun::Room | Begun::Copy => is_short = writer == Writer::Merge,
                    Begun::NoSpace => is_refused = true,
                    Begun::Memory(store) => {
                        drop(slot);
                        // What has been begun keeps its place meanwhile, and is part of the one
                        // copy that saves this for all snapshots.
                        let _no_io = NoIo::enter();
                        let grown = store.map_or(Ok(()), |live| live.store.grow());
                        if grown.is_ok() && spare.refill(GFP_KERNEL).is_ok() {
                            continue;
                        }
                        if writer == Writer::Bio {
                            out_of_memory(origin, range);
                            continue;
                        }
                        if let Some(copy) = prepared.take() {
                            copy.go(origin);
                        }
                        return Outcome::Throttle(thing);
                    }
                }
            }
        }
        // What is volatile was put off, until now.
        for shard in &slot.shards {
            if slot.flight.volatile(range).any(|id| id == shard.live.id) {
                shard.live.commit_now();
            }
        }
        let outcome = if is_refused {
            Outcome::NoSpace(thing)
        } else if is_short {
            Outcome::Throttle(thing)
        } else {
            Outcome::Waits(wait(&mut slot, thing, is_conflict))
        };
        drop(slot);
        if let Some(copy) = prepared.take() {
            copy.go(origin);
        }
        return outcome;
    }
}

/// There is no memory to save what an origin write is going to change: the origin must not
/// suffer (rule R4), so the snapshots do which have not saved it.
fn out_of_memory(origin: &Arc<Origin>, range: Sectors) {
    let Some((_, slot)) = origin.lock_slot(Sector(range.start)) else {
        return;
    };
    for shard in &slot.shards {
        let mut chunks = shard.live.own_chunks_of(range);
        if shard.live.guards() != Health::Invalid && shard.next_hole(&mut chunks).is_some() {
            shard.live.fail(Failure::NoMemory);
        }
    }
}

/// Begins the exceptions for all that an origin write is going to change, as far as there is
/// room and memory; what is left over is begun when the write is tried again.
fn begin(
    slot: &mut Slot,
    index: u32,
    range: Sectors,
    copy: &mut Prepared,
    spare: &mut Spare,
) -> Begun {
    let mut begun = Begun::All;
    // Those that have the write fail where there is no room come first, and then all: no other one
    // is waited for, or given up, for the sake of a write that fails.
    let count = slot.shards.len();
    let order = [true, false].into_iter();
    for (is_first, at) in order.flat_map(|first| (0..count).map(move |at| (first, at))) {
        let Some(shard) = slot.shards.get(at) else {
            break;
        };
        let live = shard.live.clone();
        if is_first && !live.room.refuses() {
            continue;
        }
        if !matches!(live.guards(), Health::Good | Health::Overflowed) {
            continue;
        }
        let mut chunks = live.own_chunks_of(range);
        while let Some(hole) = slot.shards.get(at).and_then(|s| s.next_hole(&mut chunks)) {
            match slot.start_copy(at, index, hole, true, copy, spare) {
                // The rest of the hole, if it is not in one piece on the COW device, is next.
                Ok(len) => chunks.start = hole.start.saturating_add(len),
                Err(Stop::Memory) => return Begun::Memory(None),
                Err(Stop::Store) => return Begun::Memory(Some(live)),
                Err(Stop::Room) => return Begun::Room,
                Err(Stop::Copy) => return Begun::Copy,
                // The other snapshots go on.
                Err(Stop::Snapshot(why)) => {
                    let is_in_vain = matches!(begun, Begun::NoSpace)
                        && why == Failure::CowFull
                        && !live.room.refuses();
                    if !is_in_vain && live.no_room(why, false) == NoRoom::Refused {
                        begun = Begun::NoSpace;
                    }
                    break;
                }
            }
        }
    }
    begun
}
