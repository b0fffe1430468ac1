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
    copy::Prepared,
    dm::{Bio, EndIo, Incoming, Mapped, NoIo, Op, Queued},
    dm_err,
    exception::Spare,
    live::{Devices, Failure, Health, Live},
    pending::{Kind, Way},
    registry::{Origin, SlotGuard},
    slot::{Io, Need, Route, Slot, Started, Stop},
    units::{Chunks, Sector, Sectors},
};
use kernel::{prelude::*, sync::Arc};

/// What a bio asks for.
#[derive(Clone, Copy)]
struct Ask {
    is_write: bool,
    /// Whether it must be durable when it ends.
    is_fua: bool,
}

impl Ask {
    fn of(bio: &Bio<Io>) -> Self {
        Self {
            is_write: bio.op() == Op::Write,
            is_fua: bio.op() == Op::Write && bio.is_fua(),
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
    /// It waits in the slot until a chunk has been copied, which is to be begun.
    Copy,
    /// It waits until fewer chunks are being copied.
    Throttle,
    /// More memory is needed before it can be said.
    Memory(Lack),
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
                    live.fail(Failure::NoMemory);
                }
            }
            (step, end) => return (Some(slot), step, end),
        }
    }
}

/// A new bio.
pub(crate) fn map(
    live: &Arc<Live>,
    devices: &Devices,
    mut incoming: Incoming<'_, Io>,
) -> Mapped<Io> {
    if incoming.bio().is_flush() {
        return map_flush(live, devices, incoming.into_bio());
    }
    let mut range = incoming.bio().sectors();
    range.end = range
        .end
        .min(live.origin.spans().end_of(Sector(range.start)).0);
    let op = incoming.bio().op();
    if op == Op::Other || range.is_empty() || range.end > devices.origin.sectors() {
        return Mapped::Kill(incoming.into_bio());
    }
    let mut memory = Memory::new();
    let (slot, step, end) = decide(live, range, Ask::of(incoming.bio()), &mut memory);
    incoming.accept_until(end);
    match go(live, devices, incoming.into_bio(), slot, step, memory) {
        Gone::To(bio) => Mapped::Remapped(bio),
        Gone::Queued(queued) => Mapped::Queued(queued),
        Gone::Nowhere(bio) => Mapped::Kill(bio),
    }
}

/// A bio that had to wait is tried again. It can't be cut any more.
pub(crate) fn retry(live: &Arc<Live>, bio: Bio<Io>) {
    let range = bio.sectors();
    let Some(devices) = live.devices() else {
        return bio.end(Err(EIO));
    };
    let mut memory = Memory::new();
    let (slot, step, end) = decide(live, range, Ask::of(&bio), &mut memory);
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
    match go(live, &devices, bio, slot, step, memory) {
        Gone::To(bio) => bio.submit(),
        Gone::Queued(_) => {}
        Gone::Nowhere(bio) => bio.end(Err(EIO)),
    }
}

/// What has become of a bio.
enum Gone {
    /// It has been sent to a device, and is to be submitted.
    To(Bio<Io>),
    /// It waits.
    Queued(Queued),
    /// It fails.
    Nowhere(Bio<Io>),
}

/// Does what was decided. Whoever waits in the slot has to be there before the lock is dropped.
fn go(
    live: &Arc<Live>,
    devices: &Devices,
    mut bio: Bio<Io>,
    slot: Option<SlotGuard<'_>>,
    step: Step,
    mut memory: Memory,
) -> Gone {
    let Some(mut slot) = slot else {
        return Gone::Nowhere(bio);
    };
    match step {
        Step::Origin(io) => {
            drop(slot);
            let at = bio.sectors().start;
            *bio.data_mut() = io;
            bio.remap(&devices.origin, Sector(at));
            Gone::To(bio)
        }
        Step::Cow(at, io) => {
            drop(slot);
            *bio.data_mut() = io;
            bio.remap(&devices.cow, at);
            Gone::To(bio)
        }
        Step::Wait => match slot.wait_snapshot(live.id, bio) {
            Ok(queued) => Gone::Queued(queued),
            Err(bio) => Gone::Nowhere(bio),
        },
        Step::Copy => {
            let waiting = slot.wait_snapshot(live.id, bio);
            drop(slot);
            memory.begin_copy(&live.origin);
            match waiting {
                Ok(queued) => Gone::Queued(queued),
                Err(bio) => Gone::Nowhere(bio),
            }
        }
        Step::Throttle => {
            drop(slot);
            Gone::Queued(live.origin.throttle_snapshot(live, bio))
        }
        Step::Memory(_) | Step::Fail => Gone::Nowhere(bio),
    }
}

/// What was begun for a bio that can't be sent is ended.
fn undo(live: &Arc<Live>, io: Io) {
    match io {
        Io::Tracked { slot, item } => live.origin.end_item(slot, item),
        Io::Written(saved, _) => {
            live.not_saved(saved.slot, saved.item, Failure::Inconsistent);
        }
        Io::Plain | Io::Durable => {}
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
}

/// Memory for what may be begun for a bio. It is got outside the lock, and used under it.
struct Memory {
    spare: Spare,
    copy: Option<Prepared>,
}

impl Memory {
    fn new() -> Self {
        Self {
            spare: Spare::new(),
            copy: None,
        }
    }

    /// Gets more of it: for a copy, or for the exception table.
    fn get(&mut self, lack: Lack, live: &Live) -> Result {
        let _no_io = NoIo::enter();
        match lack {
            Lack::Copy(need) => self.copy = Some(Prepared::new(&need)?),
            Lack::Table => self.spare.refill(GFP_KERNEL)?,
            Lack::Store => live.store.grow()?,
        }
        Ok(())
    }

    fn begin_copy(&mut self, origin: &Arc<Origin>) {
        if let Some(copy) = self.copy.take() {
            copy.go(origin);
        }
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
    let all = Sector(range.end);
    match live.health() {
        Health::Good => {}
        Health::Overflowed if !ask.is_write => {}
        _ => return (Step::Fail, all),
    }
    let Some(route) = slot.route(live.id, range, ask.is_write) else {
        return (Step::Fail, all);
    };
    let size = live.chunk_size;
    // A bio that waits for anything but a certain exception is cut to one chunk: whatever is
    // decided later, holds for all of it.
    let single = size.sectors_of(size.chunks_of(Sectors::new(Sector(range.start), 1)));
    let one = Sector(single.end.min(range.end));
    let is_copied = ask.is_write && route.is_hole && route.way == Way::Origin;
    match route.way {
        Way::Wait => (Step::Wait, route.end),
        Way::Cow => {
            let at = size.first_sector(route.new).0;
            let at = at.saturating_add(size.offset_in_chunk(Sector(range.start)));
            let io = if ask.is_fua { Io::Durable } else { Io::Plain };
            (Step::Cow(Sector(at), io), route.end)
        }
        Way::Origin if !is_copied => {
            let part = Sectors {
                start: range.start,
                end: route.end.0,
            };
            match slot.flight.start_read(live.id, live.whole_chunks(part)) {
                Ok(item) => (Step::Origin(Io::Tracked { slot: index, item }), route.end),
                Err(_) => {
                    slot.starve();
                    (Step::Wait, one)
                }
            }
        }
        Way::Origin => first_write(slot, index, live, range, &route, one, ask, memory),
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
    one: Sector,
    ask: Ask,
    memory: &mut Memory,
) -> (Step, Sector) {
    let all = Sector(range.end);
    let size = live.chunk_size;
    let Some(at) = slot.shards.iter().position(|s| s.live.id == live.id) else {
        return (Step::Fail, all);
    };
    let first = size.chunk_of(Sector(range.start));
    let whole = route.end.0.saturating_sub(range.start) >> size.shift();
    let is_aligned = size.offset_in_chunk(Sector(range.start)) == 0;
    let stopped = if is_aligned && whole > 0 {
        let hole = Chunks::new(first, whole);
        match slot.start_exception(at, index, hole, Kind::Written, &mut memory.spare) {
            Ok(Started { saved, .. }) => {
                let end = size.first_sector(saved.old.plus(saved.len));
                let to = size.first_sector(saved.new);
                return (Step::Cow(to, Io::Written(saved, ask.is_fua)), end);
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
        };
        let Some(copy) = memory.copy.as_mut().filter(|copy| copy.is_enough(&need)) else {
            return (Step::Memory(Lack::Copy(need)), all);
        };
        match slot.start_copy(at, index, hole, false, copy, &mut memory.spare) {
            Ok(_) => return (Step::Copy, one),
            Err(stop) => stop,
        }
    };
    match stopped {
        Stop::Memory => (Step::Memory(Lack::Table), all),
        Stop::Store => (Step::Memory(Lack::Store), all),
        Stop::Room => (Step::Wait, one),
        Stop::Snapshot(why) => {
            live.overflow(why);
            (Step::Fail, all)
        }
    }
}

/// A flush of the snapshot. What it wrote is on the COW device; the records of that have to be
/// on stable media too (rule R2).
fn map_flush(live: &Arc<Live>, devices: &Devices, mut bio: Bio<Io>) -> Mapped<Io> {
    if live.has_volatile() {
        return Mapped::Queued(live.hold_flush(bio));
    }
    bio.remap(&devices.cow, Sector(0));
    Mapped::Remapped(bio)
}

/// A bio has ended at the device beneath. Context: any.
pub(crate) fn end_io(live: &Arc<Live>, mut bio: Bio<Io>, result: Result) -> EndIo<Io> {
    let is_fua = match core::mem::take(bio.data_mut()) {
        Io::Plain => false,
        Io::Durable => true,
        Io::Tracked { slot, item } => {
            live.origin.end_item(slot, item);
            false
        }
        // The record may wait, unless an origin write waits for it already.
        Io::Written(saved, is_fua) if result.is_ok() => {
            live.saved(saved, false);
            is_fua
        }
        Io::Written(saved, _) => {
            live.not_saved(saved.slot, saved.item, Failure::WriteCow);
            false
        }
    };
    if is_fua && result.is_ok() && live.has_volatile() {
        return EndIo::Held(live.hold_durable(bio));
    }
    EndIo::Done(bio)
}
