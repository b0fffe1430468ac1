// SPDX-License-Identifier: GPL-2.0

//! Where a bio of a snapshot goes.
//!
//! To the COW device where the snapshot has saved the chunk or was itself written to, and to the
//! real origin where not; such a read is tracked, so that no origin write overtakes it. The first
//! write to whole chunks goes straight to a new place on the COW device; one to a part of a chunk
//! waits until the chunk has been copied.
//!
//! A new bio comes to [`map`], which can still cut it; one that had to wait comes to [`retry`].
//! Both have [`decide_locked`] say where it goes.

#![deny(unsafe_code)]

use crate::{
    commit::Urgency,
    copy::Prepared,
    dm::{Bio, Device, EndIo, Incoming, Mapped, NoIo, Op, MAX_BYTES},
    dm_err,
    exception::Spare,
    live::{Devices, Failure, Health, Live},
    pending::{ItemId, Kind, Way},
    registry::SlotGuard,
    room::NoRoom,
    slot::{Io, Need, Route, Slot, Started, Stop},
    table::Features,
    units::{Chunks, Sector, Sectors, SECTOR_SIZE},
    zero::Zeroing,
};
use kernel::{prelude::*, sync::Arc};

/// What a bio asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ask {
    Read,
    Write {
        /// Whether it must be durable when it ends.
        is_fua: bool,
    },
    Discard,
}

impl Ask {
    fn of(bio: &Bio<Io>) -> Option<Self> {
        match bio.op() {
            Op::Read => Some(Ask::Read),
            Op::Write => Some(Ask::Write {
                is_fua: bio.is_fua(),
            }),
            Op::Discard => Some(Ask::Discard),
            Op::Other => None,
        }
    }
}

/// What becomes of a bio that is looked at under the lock of its slot.
enum Step {
    /// It goes to the origin, and is tracked if it is a read.
    Origin(Io),
    /// It goes to that sector of the COW device.
    Cow(Sector, Io),
    /// It waits in the slot for what is in flight there.
    Wait,
    /// It waits until a chunk has been copied, which is to be begun.
    Copy,
    /// It waits until fewer chunks are being copied.
    Throttle,
    /// It is a discard of what lies at that sector of the COW device.
    Zero(Sector),
    /// It is a discard of what the snapshot has not saved.
    Nothing,
    /// It fails, since the COW device is full.
    NoSpace,
    /// More memory is needed before it can be said.
    Memory(Lack),
    /// It fails.
    Fail,
}

/// What becomes of a read: it begins nothing, and needs no memory.
enum Read {
    /// It goes to the origin, and is tracked as this.
    Origin(ItemId),
    /// It goes to that sector of the COW device.
    Cow(Sector),
    /// It waits in the slot for what is in flight there.
    Wait,
    /// It fails.
    Fail,
}

/// Decides about a bio, with as much memory as that takes, and answers with its slot locked.
fn decide<'a>(
    live: &'a Arc<Live>,
    range: Sectors,
    ask: Ask,
    memory: &mut Memory,
) -> (Option<SlotGuard<'a>>, Step, Sector) {
    loop {
        let Some((index, mut slot)) = live.origin.lock_slot(Sector(range.start)) else {
            return (None, Step::Fail, Sector(range.end));
        };
        match decide_locked(&mut slot, index, live, range, ask, memory) {
            (Step::Memory(lack), _) => {
                drop(slot);
                if memory.get(lack, live).is_err() {
                    if matches!(lack, Lack::Zeroes(_)) {
                        return (None, Step::Fail, Sector(range.end));
                    }
                    live.fail(Failure::NoMemory);
                }
            }
            (step, end) => return (Some(slot), step, end),
        }
    }
}

/// A new bio.
#[inline(always)]
pub(crate) fn map(
    live: &Arc<Live>,
    devices: &Devices,
    features: &Features,
    mut incoming: Incoming<'_, Io>,
) -> Mapped<Io> {
    if incoming.bio().is_flush() {
        return map_flush(live, devices, incoming.into_bio());
    }
    let mut range = incoming.bio().sectors();
    let spans = live.origin.spans();
    range.end = range.end.min(spans.end_of(Sector(range.start)).0);
    let Some(ask) = Ask::of(incoming.bio()) else {
        return Mapped::Kill(incoming.into_bio());
    };
    if range.is_empty() || range.end > devices.origin.sectors() {
        return Mapped::Kill(incoming.into_bio());
    }
    if ask == Ask::Read {
        // The size of the spans can't change while there are snapshots.
        let slot = spans.slot_of(Sector(range.start));
        return map_read(live, devices, incoming, range, slot);
    }
    let mut memory = Memory::new();
    let (slot, step, end) = decide(live, range, ask, &mut memory);
    incoming.accept_until(end);
    let mut bio = incoming.into_bio();
    if features.discard_passdown_origin && ask == Ask::Discard {
        *bio.data_mut() = Io::PassedDown;
    }
    go(live, devices, bio, slot, step, &mut memory)
}

/// A new read, in the slot of that number.
#[inline(always)]
fn map_read(
    live: &Arc<Live>,
    devices: &Devices,
    mut incoming: Incoming<'_, Io>,
    range: Sectors,
    index: u32,
) -> Mapped<Io> {
    let Some(mut slot) = live.origin.slot(index) else {
        return Mapped::Kill(incoming.into_bio());
    };
    let (read, end) = decide_read(&mut slot, live, range);
    incoming.accept_until(end);
    let bio = incoming.into_bio();
    match read {
        Read::Origin(item) => {
            drop(slot);
            let io = Io::Tracked { slot: index, item };
            send(bio, &devices.origin, Sector(range.start), io)
        }
        Read::Cow(at) => {
            drop(slot);
            send(bio, &devices.cow, at, Io::Plain)
        }
        Read::Wait => slot.wait_snapshot(live.id, bio),
        Read::Fail => Mapped::Kill(bio),
    }
}

/// Sends a bio to a place of a device beneath; `io` says what is to be done when it ends.
#[inline(always)]
pub(crate) fn send(mut bio: Bio<Io>, device: &Device, at: Sector, io: Io) -> Mapped<Io> {
    *bio.data_mut() = io;
    bio.remap(device, at);
    Mapped::Remapped(bio)
}

/// A bio that had to wait is tried again. It can't be cut any more.
pub(crate) fn retry(live: &Arc<Live>, mut bio: Bio<Io>) {
    let range = bio.sectors();
    let Some(devices) = live.devices() else {
        return bio.end(Err(EIO));
    };
    if matches!(*bio.data_mut(), Io::Zeroed) {
        return discarded(&devices, bio).settle();
    }
    let Some(ask) = Ask::of(&bio) else {
        return bio.end(Err(EIO));
    };
    // The origin may have become smaller while it waited.
    if range.end > devices.origin.sectors() {
        return bio.end(Err(EIO));
    }
    let mut memory = Memory::new();
    let (slot, step, end) = decide(live, range, ask, &mut memory);
    match step {
        // It was cut to what it waited for, or to a single chunk, and what is said of that holds
        // for all of it. So this can't be; if it is, nothing may be sent to a wrong place.
        Step::Origin(io) | Step::Cow(_, io) if end.0 < range.end => {
            drop(slot);
            dm_err!("internal error: a snapshot bio can't be sent to one place");
            undo(live, io);
            return bio.end(Err(EIO));
        }
        // What was begun for it has to go on, and it waits for that.
        _ => {}
    }
    go(live, &devices, bio, slot, step, &mut memory).settle();
}

/// Does what was decided. Whoever waits in the slot has to be there before the lock is dropped.
fn go(
    live: &Arc<Live>,
    devices: &Devices,
    mut bio: Bio<Io>,
    slot: Option<SlotGuard<'_>>,
    step: Step,
    memory: &mut Memory,
) -> Mapped<Io> {
    let Some(mut slot) = slot else {
        return Mapped::Kill(bio);
    };
    match step {
        Step::Origin(io) => {
            drop(slot);
            live.count_wait(bio.data_mut());
            let at = Sector(bio.sectors().start);
            send(bio, &devices.origin, at, io)
        }
        Step::Cow(at, io) => {
            drop(slot);
            live.count_wait(bio.data_mut());
            send(bio, &devices.cow, at, io)
        }
        Step::Wait => slot.wait_snapshot(live.id, bio),
        Step::Copy => {
            let Some(mut copy) = memory.copy.take() else {
                return Mapped::Kill(bio);
            };
            let waiting = if may_lay_over(live, &bio) {
                live.count_wait(bio.data_mut());
                *bio.data_mut() = if bio.is_fua() { Io::Durable } else { Io::Plain };
                Mapped::Queued(copy.lay_over(bio))
            } else {
                slot.wait_snapshot(live.id, bio)
            };
            drop(slot);
            copy.go(&live.origin);
            waiting
        }
        Step::Throttle => {
            drop(slot);
            Mapped::Queued(live.origin.throttle_snapshot(live, bio))
        }
        Step::Zero(at) => {
            drop(slot);
            match memory.zeroing.take() {
                Some(zeroing) => Mapped::Queued(zeroing.go(live, devices, at, bio)),
                None => Mapped::Kill(bio),
            }
        }
        Step::Nothing => {
            drop(slot);
            discarded(devices, bio)
        }
        Step::NoSpace => Mapped::End(bio, Err(ENOSPC)),
        Step::Memory(_) | Step::Fail => Mapped::Kill(bio),
    }
}

/// A discard has come to its end on the COW device: it goes on to the origin if it is to.
///
/// As with the kernel's target, nothing is saved of what it discards there, neither for this
/// snapshot nor for others: that is what the feature is for.
fn discarded(devices: &Devices, mut bio: Bio<Io>) -> Mapped<Io> {
    let io = core::mem::take(bio.data_mut());
    let is_passed = matches!(io, Io::PassedDown | Io::Zeroed);
    if !is_passed || !devices.origin.takes_discards() {
        return Mapped::End(bio, Ok(()));
    }
    let at = bio.sectors().start;
    bio.remap(&devices.origin, Sector(at));
    Mapped::Remapped(bio)
}

/// What was begun for a bio that can't be sent is ended.
fn undo(live: &Arc<Live>, io: Io) {
    match io {
        Io::Tracked { slot, item } => live.origin.end_item(slot, item),
        Io::Written(saved, _) => {
            live.not_saved(saved.slot, saved.item, Failure::Inconsistent);
        }
        Io::Plain | Io::Durable | Io::Waiting(_) | Io::PassedDown | Io::Zeroed => {}
    }
}

/// What memory is needed for.
#[derive(Clone, Copy)]
enum Lack {
    /// A copy.
    Copy(Need),
    /// The exception table.
    Table,
    /// The records of the store.
    Store,
    /// Zeroes for so many bytes.
    Zeroes(usize),
}

/// Memory for what may be begun for a bio. It is got outside the lock, and used under it.
struct Memory {
    spare: Option<Spare>,
    copy: Option<Prepared>,
    zeroing: Option<Zeroing>,
}

impl Memory {
    fn new() -> Self {
        Self {
            spare: None,
            copy: None,
            zeroing: None,
        }
    }

    /// For the exception table. Most bios need none, and then there is none to be freed.
    fn spare(&mut self) -> &mut Spare {
        self.spare.get_or_insert_with(Spare::new)
    }

    /// Gets more of it: for a copy, or for the exception table.
    fn get(&mut self, lack: Lack, live: &Live) -> Result {
        let _no_io = NoIo::enter();
        match lack {
            Lack::Copy(need) => self.copy = Some(Prepared::new(&need)?),
            Lack::Table => self.spare().refill(GFP_KERNEL)?,
            Lack::Store => live.store.grow()?,
            Lack::Zeroes(bytes) => self.zeroing = Some(Zeroing::new(bytes)?),
        }
        Ok(())
    }
}

/// Decides about a bio, and up to which sector the decision holds. What has to be begun for it is
/// begun, or `memory` holds it.
fn decide_locked(
    slot: &mut Slot,
    index: u32,
    live: &Arc<Live>,
    range: Sectors,
    ask: Ask,
    memory: &mut Memory,
) -> (Step, Sector) {
    if ask == Ask::Read {
        let (read, end) = decide_read(slot, live, range);
        let step = match read {
            Read::Origin(item) => Step::Origin(Io::Tracked { slot: index, item }),
            Read::Cow(at) => Step::Cow(at, Io::Plain),
            Read::Wait => Step::Wait,
            Read::Fail => Step::Fail,
        };
        return (step, end);
    }
    let all = Sector(range.end);
    if live.health() != Health::Good {
        return (Step::Fail, all);
    }
    let Some(route) = slot.route(live.id, range, true) else {
        return (Step::Fail, all);
    };
    match (route.way, ask) {
        (Way::Wait, Ask::Discard) => (Step::Wait, zero_end(range, route.end)),
        (Way::Wait, _) => (Step::Wait, route.end),
        (Way::Fail, _) => (Step::Fail, route.end),
        (Way::Cow, Ask::Discard) => zero(range, route.end, place(live, range, &route), memory),
        (Way::Cow, Ask::Write { is_fua: true }) => {
            let at = place(live, range, &route);
            (Step::Cow(at, Io::Durable), route.end)
        }
        (Way::Cow, _) => (Step::Cow(place(live, range, &route), Io::Plain), route.end),
        (Way::Origin, Ask::Discard) => (Step::Nothing, route.end),
        (Way::Origin, _) => first_write(slot, index, live, range, &route, ask, memory),
    }
}

/// Decides about a read, and up to which sector the decision holds.
#[inline(always)]
fn decide_read(slot: &mut Slot, live: &Live, range: Sectors) -> (Read, Sector) {
    if !matches!(live.health(), Health::Good | Health::Overflowed) {
        return (Read::Fail, Sector(range.end));
    }
    let Some(route) = slot.route(live.id, range, false) else {
        return (Read::Fail, Sector(range.end));
    };
    match route.way {
        Way::Wait => (Read::Wait, route.end),
        Way::Fail => (Read::Fail, route.end),
        Way::Cow => (Read::Cow(place(live, range, &route)), route.end),
        Way::Origin => {
            let part = Sectors {
                start: range.start,
                end: route.end.0,
            };
            match slot.flight.start_read(live.id, part) {
                Ok(item) => (Read::Origin(item), route.end),
                Err(_) => {
                    slot.starve();
                    (Read::Wait, live.end_of_first_chunk(range))
                }
            }
        }
    }
}

/// Where on the COW device a bio goes that begins with `range`.
#[inline(always)]
pub(crate) fn place(live: &Live, range: Sectors, route: &Route) -> Sector {
    let size = live.chunk_size;
    let at = size.first_sector(route.new).0;
    Sector(at.saturating_add(size.offset_in_chunk(Sector(range.start))))
}

/// How far a discard is done at a time.
fn zero_end(range: Sectors, end: Sector) -> Sector {
    let most = range.start.saturating_add(MAX_BYTES as u64 / SECTOR_SIZE);
    Sector(end.0.min(most))
}

/// A discard of what is on the COW device.
fn zero(range: Sectors, end: Sector, at: Sector, memory: &Memory) -> (Step, Sector) {
    let end = zero_end(range, end);
    let sectors = end.0.saturating_sub(range.start);
    let bytes = sectors.saturating_mul(SECTOR_SIZE) as usize;
    match &memory.zeroing {
        Some(zeroing) if zeroing.is_enough(bytes) => (Step::Zero(at), end),
        _ => (Step::Memory(Lack::Zeroes(bytes)), end),
    }
}

/// The first write to chunks of the snapshot that have no exception.
#[allow(clippy::too_many_arguments)]
fn first_write(
    slot: &mut Slot,
    index: u32,
    live: &Arc<Live>,
    range: Sectors,
    route: &Route,
    ask: Ask,
    memory: &mut Memory,
) -> (Step, Sector) {
    let all = Sector(range.end);
    let one = live.end_of_first_chunk(range);
    let size = live.chunk_size;
    let Some(at) = slot.shards.iter().position(|s| s.live.id == live.id) else {
        return (Step::Fail, all);
    };
    let first = size.chunk_of(Sector(range.start));
    let whole = route.end.0.saturating_sub(range.start) >> size.shift();
    let is_aligned = size.offset_in_chunk(Sector(range.start)) == 0;
    let stopped = if is_aligned && whole > 0 {
        let hole = Chunks::new(first, whole);
        match slot.start_exception(at, index, hole, Kind::Written, memory.spare()) {
            Ok(Started { saved, .. }) => {
                let end = size.first_sector(saved.old.plus(saved.len));
                let to = size.first_sector(saved.new);
                let is_fua = ask == Ask::Write { is_fua: true };
                return (Step::Cow(to, Io::Written(saved, is_fua)), end);
            }
            Err(stop) => stop,
        }
    } else {
        if live.origin.is_crowded() {
            return (Step::Throttle, one);
        }
        let hole = Chunks::new(first, 1);
        let need = Need {
            runs: 1,
            range: size.sectors_of(hole),
            block: live.cow_block,
        };
        let spare = memory.spare.get_or_insert_with(Spare::new);
        let Some(copy) = memory.copy.as_mut().filter(|copy| copy.is_enough(&need)) else {
            return (Step::Memory(Lack::Copy(need)), all);
        };
        match slot.start_copy(at, index, hole, false, copy, spare) {
            Ok(_) => return (Step::Copy, one),
            Err(stop) => stop,
        }
    };
    match stopped {
        Stop::Memory => (Step::Memory(Lack::Table), all),
        Stop::Store => (Step::Memory(Lack::Store), all),
        Stop::Room => (Step::Wait, one),
        // It was prepared for this.
        Stop::Copy => (Step::Fail, all),
        Stop::Snapshot(why) => match live.no_room(why, true) {
            NoRoom::Queued => (Step::Wait, one),
            NoRoom::Refused => (Step::NoSpace, all),
            NoRoom::GivenUp => (Step::Fail, all),
        },
    }
}

/// Whether the data of a write to a part of a chunk can go with the copy of that chunk: not if it
/// reaches beyond, as one may that had to wait and can't be cut any more. If it must be durable,
/// the commit of the record sees to that, which flushes the device before; so there must be one.
fn may_lay_over(live: &Live, bio: &Bio<Io>) -> bool {
    let size = live.chunk_size;
    size.chunks_of(bio.sectors()).len() == 1
        && size.bytes() <= MAX_BYTES as u64
        && (live.persistent().is_some() || !bio.is_fua())
}

/// A flush of the snapshot. What it wrote is on the COW device; the records of that have to be
/// on stable media too (rule R2). Where the snapshot is lost, they may have been given up, and the
/// flush fails as those that waited for them did.
fn map_flush(live: &Arc<Live>, devices: &Devices, mut bio: Bio<Io>) -> Mapped<Io> {
    if live.has_volatile() {
        return Mapped::Queued(live.hold_flush(bio));
    }
    // Asked second: records are given up after the snapshot is known to be lost.
    if live.is_lost() {
        return Mapped::Kill(bio);
    }
    bio.remap(&devices.cow, Sector(0));
    Mapped::Remapped(bio)
}

/// A bio has ended at the device beneath. Context: any.
#[inline(always)]
pub(crate) fn end_io(live: &Arc<Live>, mut bio: Bio<Io>, result: Result) -> EndIo<Io> {
    let is_fua = match core::mem::take(bio.data_mut()) {
        Io::Plain | Io::Waiting(_) | Io::PassedDown | Io::Zeroed => false,
        Io::Durable => true,
        Io::Tracked { slot, item } => {
            live.origin.end_item(slot, item);
            false
        }
        // The record may wait, unless an origin write waits for it already.
        Io::Written(saved, is_fua) if result.is_ok() => {
            live.stats.own_runs.add(1);
            live.stats.own_chunks.add(saved.len);
            live.saved(saved, Urgency::Later);
            is_fua
        }
        Io::Written(saved, _) => {
            live.not_saved(saved.slot, saved.item, Failure::WriteCow);
            false
        }
    };
    // Where the snapshot is lost, its record may have been given up: it is held to fail.
    let is_given_up = || live.is_lost() && live.persistent().is_some();
    if is_fua && result.is_ok() && (live.has_volatile() || is_given_up()) {
        return EndIo::Held(live.hold_durable(bio));
    }
    EndIo::Done(bio)
}
