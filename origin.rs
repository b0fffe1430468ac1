// SPDX-License-Identifier: GPL-2.0

//! The target `snap-origin-rs`: the live volume.
//!
//! Reads and flushes go straight through. A write goes when every active snapshot has saved what
//! it is going to change and nothing that needs the old data is in flight (rule R1); else it
//! waits in its slot, and is tried again when something there ends.

#![deny(unsafe_code)]

use crate::{
    copy::Prepared,
    dm::{Args, Bio, Device, Incoming, Mapped, NoIo, Op, Queued, Setup, StatusKind, Target},
    dm_err,
    exception::Spare,
    live::{Failure, Health, Live},
    registry::{Origin, OriginRef, Registry},
    slot::{Io, Slot, Stop, Verdict},
    table::{self, OriginArgs},
    units::{Sector, Sectors},
};
use kernel::{fmt, prelude::*, sync::Arc};

/// A line of a table with the origin target.
pub(crate) struct OriginTarget {
    id: u64,
    origin: OriginRef,
    device: Device,
}

#[vtable]
impl Target for OriginTarget {
    const NAME: &'static CStr = c"snap-origin-rs";
    const VERSION: [u32; 3] = [1, 9, 0];

    type Context = Arc<Registry>;
    type PerBio = Io;

    fn new(registry: &Arc<Registry>, setup: &mut Setup<'_>, args: &Args<'_>) -> Result<Self> {
        let args = OriginArgs::parse(args.iter()).map_err(|e| {
            dm_err!("snap-origin-rs: {}", e);
            setup.set_error(e.short());
            EINVAL
        })?;
        let device = setup.open(args.origin).inspect_err(|errno| {
            let code = errno.to_errno();
            let e = table::ArgError::CannotOpen(table::Device::Origin, args.origin, code);
            dm_err!("snap-origin-rs: {}", e);
            setup.set_error(e.short());
        })?;
        let origin = registry.origin(&device)?;
        let id = registry.new_target_id();
        origin.add_member(id, setup.handle())?;
        setup.pass_flushes();
        Ok(Self { id, origin, device })
    }

    fn map(&self, mut bio: Incoming<'_, Io>) -> Mapped<Io> {
        let is_write = bio.bio().op() != Op::Read && !bio.bio().is_flush();
        let range = bio.bio().sectors();
        if is_write {
            let end = self.origin.spans().end_of(Sector(range.start));
            bio.accept_until(end);
        }
        let mut bio = bio.into_bio();
        bio.remap(&self.device, Sector(range.start));
        // What lies beyond the end, nobody has a snapshot of; the device refuses it.
        if !is_write || range.end > self.device.sectors() {
            return Mapped::Remapped(bio);
        }
        match write(&self.origin, bio) {
            Ok(bio) => Mapped::Remapped(bio),
            Err(queued) => Mapped::Queued(queued),
        }
    }

    fn status(&self, kind: StatusKind, out: &mut dyn fmt::Write) -> fmt::Result {
        match kind {
            StatusKind::Table => out.write_fmt(kernel::prelude::fmt!("{}", self.device)),
            // As the kernel's origin target: it has nothing to say.
            StatusKind::Info | StatusKind::Ima => Ok(()),
        }
    }

    fn iterate_devices(&self, len: u64, f: &mut dyn FnMut(&Device, u64, u64) -> i32) -> i32 {
        f(&self.device, 0, len)
    }
}

impl Drop for OriginTarget {
    fn drop(&mut self) {
        self.origin.remove_member(self.id);
    }
}

/// A bio of the origin that had to wait is tried again.
pub(crate) fn retry(origin: &Arc<Origin>, bio: Bio<Io>) {
    if let Ok(bio) = write(origin, bio) {
        bio.submit();
    }
}

/// What became of the attempt to save what an origin write is going to change.
enum Attempt {
    /// As much was begun as there was room for.
    Done,
    /// More memory is needed: for the exception tables, or for the records of this snapshot.
    Memory(Option<Arc<Live>>),
}

/// A write to the origin: gives the bio back if it may go, else it has been put where it is
/// tried again. Process context.
fn write(origin: &Arc<Origin>, bio: Bio<Io>) -> Result<Bio<Io>, Queued> {
    let range = bio.sectors();
    let mut prepared: Option<Prepared> = None;
    let mut spare = Spare::new();
    loop {
        let Some((index, mut slot)) = origin.lock_slot(Sector(range.start)) else {
            return Ok(bio);
        };
        let begun = prepared.as_ref().is_some_and(|copy| !copy.is_empty());
        match slot.judge(range) {
            Verdict::Go => return Ok(bio),
            Verdict::Wait => {}
            Verdict::Save(_) if !begun && origin.is_crowded() => {
                drop(slot);
                return Err(origin.throttle(bio));
            }
            Verdict::Save(need) => {
                let copy = prepared.as_mut();
                let Some(copy) = copy.filter(|copy| begun || copy.is_enough(&need)) else {
                    drop(slot);
                    match Prepared::new(&need) {
                        Ok(more) => prepared = Some(more),
                        Err(_) => out_of_memory(origin, range),
                    }
                    continue;
                };
                if let Attempt::Memory(store) = begin(&mut slot, index, range, copy, &mut spare) {
                    drop(slot);
                    // What has been begun keeps its place meanwhile, and is part of the one copy
                    // that saves this for all snapshots.
                    let _no_io = NoIo::enter();
                    let grown = store.map_or(Ok(()), |live| live.store.grow());
                    if grown.is_err() || spare.refill(GFP_KERNEL).is_err() {
                        out_of_memory(origin, range);
                    }
                    continue;
                }
            }
        }
        // What is volatile was put off, until now.
        for shard in &slot.shards {
            if slot.flight.volatile(range).any(|id| id == shard.live.id) {
                shard.live.commit_now();
            }
        }
        let queued = slot.wait_origin(bio);
        drop(slot);
        if let Some(copy) = prepared.take() {
            copy.go(origin);
        }
        return Err(queued);
    }
}

/// There is no memory to save what an origin write is going to change: the origin must not
/// suffer (rule R4), so the snapshots do which have not saved it.
fn out_of_memory(origin: &Arc<Origin>, range: Sectors) {
    let Some((_, slot)) = origin.lock_slot(Sector(range.start)) else {
        return;
    };
    for shard in &slot.shards {
        let mut chunks = shard.live.chunks_of(range);
        if shard.live.guards() != Health::Invalid && shard.next_hole(&mut chunks).is_some() {
            shard.live.fail(Failure::NoMemory);
        }
    }
}

/// Begins the exceptions for all that an origin write is going to change, as far as there is
/// room and memory; what is left over is begun when the bio is tried again.
fn begin(
    slot: &mut Slot,
    index: u32,
    range: Sectors,
    copy: &mut Prepared,
    spare: &mut Spare,
) -> Attempt {
    for at in 0..slot.shards.len() {
        let Some(shard) = slot.shards.get(at) else {
            break;
        };
        let live = shard.live.clone();
        if !matches!(live.guards(), Health::Good | Health::Overflowed) {
            continue;
        }
        let mut chunks = live.chunks_of(range);
        while let Some(hole) = slot.shards.get(at).and_then(|s| s.next_hole(&mut chunks)) {
            match slot.start_copy(at, index, hole, true, copy, spare) {
                // The rest of the hole, if it is not in one piece on the COW device, is next.
                Ok(len) => chunks.start = hole.start.saturating_add(len),
                Err(Stop::Memory) => return Attempt::Memory(None),
                Err(Stop::Store) => return Attempt::Memory(Some(live)),
                Err(Stop::Room) => return Attempt::Done,
                // The other snapshots go on.
                Err(Stop::Snapshot(why)) => {
                    live.fail(why);
                    break;
                }
            }
        }
    }
    Attempt::Done
}
