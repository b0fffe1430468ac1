// SPDX-License-Identifier: GPL-2.0

//! What the spans of one lock hold.
//!
//! The origin is cut into spans of at least a mebibyte, and the spans are dealt out to a fixed
//! number of slots, each with its lock. A bio is cut at the borders of spans, so one lock is
//! enough for it. Whatever is asked about a place of the origin is answered here: which
//! snapshots have saved it, what is in flight on it, and who waits for that.

#![deny(unsafe_code)]

use crate::{
    copy::{Destination, Prepared},
    dm::{Bio, BioList, Device, Mapped, PerBio},
    exception::{InsertError, Lookup, Spare, Table},
    live::{Devices, Failure, Health, Live},
    pending::{Flight, ItemId, Kind, Saved, SnapId, Way},
    stats::Moment,
    store::NoChunk,
    units::{Chunk, Chunks, Sector, Sectors},
};
use kernel::{prelude::*, sync::Arc};

/// What is kept with each bio, of origins and snapshots alike.
#[derive(Clone, Copy, Default)]
pub(crate) enum Io {
    /// Nothing has to be done when it ends.
    #[default]
    Plain,
    /// It has been waiting since then.
    Waiting(Moment),
    /// A discard of a snapshot that goes on to the origin.
    PassedDown,
    /// The same, when what it is about has been zeroed on the COW device.
    Zeroed,
    /// A snapshot read that was sent to the origin.
    Tracked { slot: u32, item: ItemId },
    /// The first write to whole chunks of a snapshot, and whether it must be durable when it
    /// ends. The block layer takes that flag off the bio where the device beneath has no cache.
    Written(Saved, bool),
    /// A write to a snapshot that must be durable when it ends, its record as well.
    Durable,
}

impl PerBio for Io {}

impl Io {
    /// The bio begins to wait, or goes on with it; answers whether it begins.
    pub(crate) fn wait(&mut self) -> bool {
        let begins = matches!(self, Io::Plain);
        if begins {
            *self = Io::Waiting(Moment::now());
        }
        begins
    }
}

/// How many items a slot has room for without asking for memory.
const ROOM: usize = 8;

/// The part of a snapshot that belongs to a slot.
pub(crate) struct Shard {
    pub(crate) live: Arc<Live>,
    /// Where the saved chunks are. Those of exceptions in flight are in it from the beginning,
    /// so that none is ever lost for want of memory; what is in flight goes first.
    pub(crate) table: Table,
    /// Bios of the snapshot that wait for something in this slot.
    waiting: BioList<Io>,
    /// The merge of the snapshot waits for something in this slot.
    is_merge_waiting: bool,
}

/// What is behind the lock of a slot.
pub(crate) struct Slot {
    /// The snapshots of the origin. All slots have the same, in the same order.
    pub(crate) shards: KVec<Shard>,
    pub(crate) flight: Flight,
    /// Bios of the origin that wait for something in this slot.
    waiting: BioList<Io>,
    /// Somebody waits for a place in the flight, and so for the end of anything.
    is_starved: bool,
    /// Somebody may be waiting: a bio of the origin or of a snapshot, or a merge. Most of what
    /// ends has nobody to wake, and need not ask every snapshot for that.
    may_have_waiters: bool,
}

/// Whether a write to the origin may go.
pub(crate) enum Verdict {
    /// All is saved and nothing is in flight.
    Go,
    /// Something is in flight, or a snapshot is about to become invalid.
    Wait,
    /// Some chunks have to be saved first.
    Save(Need),
}

/// How much memory it takes to save what an origin write is going to change.
#[derive(Clone, Copy, Default)]
pub(crate) struct Need {
    /// The runs of chunks, over all snapshots.
    pub(crate) runs: usize,
    /// The sectors to be read: from the first to the last of those runs.
    pub(crate) range: Sectors,
    /// The largest logical block of their COW devices, in sectors.
    pub(crate) block: u64,
}

/// An exception that was begun, and the devices that it is about.
pub(crate) struct Started {
    pub(crate) saved: Saved,
    pub(crate) devices: Devices,
}

/// Why an exception was not begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stop {
    /// There is not enough memory at hand; with more, it can be tried again.
    Memory,
    /// The same, for the records of the snapshot's store.
    Store,
    /// There is no place to keep track of it until something else has ended.
    Room,
    /// The copy that was prepared has no room for it.
    Copy,
    /// The snapshot can't be kept.
    Snapshot(Failure),
}

/// Where a bio of a snapshot goes.
pub(crate) struct Route {
    /// To which device, or whether it waits.
    pub(crate) way: Way,
    /// On the COW device: the chunk that the first sector lies in now.
    pub(crate) new: Chunk,
    /// The answer holds up to here.
    pub(crate) end: Sector,
    /// There is no exception yet, complete or not.
    pub(crate) is_hole: bool,
}

impl Slot {
    /// A slot with nothing in it.
    ///
    /// # Errors
    ///
    /// `ENOMEM`. May sleep.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            shards: KVec::new(),
            flight: Flight::new(ROOM)?,
            waiting: BioList::new(),
            is_starved: false,
            may_have_waiters: false,
        })
    }

    /// Takes a snapshot in. `room` is an empty vector with room for one more than there are; it
    /// was allocated outside the lock.
    pub(crate) fn add_shard(&mut self, mut room: KVec<Shard>, shard: Shard) {
        for shard in core::mem::take(&mut self.shards) {
            let _ = room.push_within_capacity(shard);
        }
        let _ = room.push_within_capacity(shard);
        self.shards = room;
    }

    /// Takes a snapshot out. Its bios must have ended.
    pub(crate) fn remove_shard(&mut self, id: SnapId) -> Option<Shard> {
        let index = self.shards.iter().position(|s| s.live.id == id)?;
        self.flight.forget(id);
        self.shards.remove(index).ok()
    }

    /// The shard of a snapshot.
    pub(crate) fn shard(&self, id: SnapId) -> Option<&Shard> {
        self.shards.iter().find(|s| s.live.id == id)
    }

    /// The shard of a snapshot.
    pub(crate) fn shard_mut(&mut self, id: SnapId) -> Option<&mut Shard> {
        self.shards.iter_mut().find(|s| s.live.id == id)
    }

    /// Whether a write of these sectors of the origin may go (rule R1).
    ///
    /// What is not saved is saved at once, even if something else holds the write back: then the
    /// copy is done when that ends, and snapshot reads that come meanwhile go to the COW device
    /// instead of holding the write back still longer.
    pub(crate) fn judge(&self, range: Sectors) -> Verdict {
        let mut need = Need::default();
        for shard in &self.shards {
            match shard.live.guards() {
                Health::Invalid => continue,
                Health::Failing => return Verdict::Wait,
                Health::Good | Health::Overflowed => {}
            }
            let mut chunks = shard.live.own_chunks_of(range);
            while let Some(hole) = shard.next_hole(&mut chunks) {
                let sectors = shard.live.chunk_size.sectors_of(hole);
                need.range = if need.runs == 0 {
                    sectors
                } else {
                    need.range.union(&sectors)
                };
                need.runs = need.runs.saturating_add(1);
                need.block = need.block.max(shard.live.cow_block);
            }
        }
        if need.runs != 0 {
            Verdict::Save(need)
        } else if self.flight.origin_may_write(range) {
            Verdict::Go
        } else {
            Verdict::Wait
        }
    }

    /// Where a bio of a snapshot goes that begins with the first sector of `range`, and how far
    /// that answer holds. `None` if the snapshot has left.
    #[inline(always)]
    pub(crate) fn route(&self, id: SnapId, range: Sectors, is_write: bool) -> Option<Route> {
        let shard = self.shard(id)?;
        let size = shard.live.chunk_size;
        let first = size.chunk_of(Sector(range.start));
        let mut end = range.end;
        let busy = self.flight.first_of(id, range);
        let mut way = None;
        if let Some(busy) = busy {
            if busy.range.start <= range.start {
                way = Some(if is_write { busy.write } else { busy.read });
                end = end.min(busy.range.end);
            } else {
                end = end.min(busy.range.start);
            }
        }
        let wanted = size.chunks_of(range).len();
        let (new, len, is_hole) = match shard.table.lookup_some(first, wanted) {
            Lookup::Mapped { new, len } => (new, len, false),
            Lookup::Hole { len } => (Chunk(0), len, true),
        };
        if way.is_none_or(|way| way == Way::Cow) {
            end = end.min(size.first_sector(first.plus(len)).0);
        }
        Some(Route {
            way: way.unwrap_or(if is_hole { Way::Origin } else { Way::Cow }),
            new,
            end: Sector(end),
            is_hole,
        })
    }

    /// Begins an exception for chunks of a snapshot that have none: hands out a place for them,
    /// notes them as in flight, and puts them into the table. Answers how much was begun: the
    /// COW device may have no place for all of it in one piece.
    ///
    /// `at` is the index of the snapshot's shard, `index` that of this slot.
    ///
    /// # Errors
    ///
    /// See [`Stop`]; nothing has been begun.
    pub(crate) fn start_exception(
        &mut self,
        at: usize,
        index: u32,
        hole: Chunks,
        kind: Kind,
        spare: &mut Spare,
    ) -> Result<Started, Stop> {
        let shard = self.shards.get_mut(at).ok_or(Stop::Room)?;
        let live = &shard.live;
        let devices = live.devices().ok_or(Stop::Snapshot(Failure::WriteCow))?;
        let cow_sectors = devices.cow.sectors();
        if cow_sectors == 0 {
            // It has not become full, but is gone.
            return Err(Stop::Snapshot(Failure::WriteCow));
        }
        let run = match live.store.alloc(hole.len(), || devices.cow.sectors()) {
            Ok(run) => run,
            Err(NoChunk::Full) => {
                live.room.note_full(cow_sectors);
                return Err(Stop::Snapshot(Failure::CowFull));
            }
            Err(NoChunk::NoMemory) => return Err(Stop::Store),
        };
        let old = Chunks {
            start: hole.start,
            end: hole.start.saturating_add(run.len()),
        };
        let sectors = live.chunk_size.sectors_of(old);
        let Ok(item) = self.flight.start_exception(live.id, sectors, kind) else {
            live.store.give_back(run);
            self.starve();
            return Err(Stop::Room);
        };
        let (first, new) = (Chunk(old.start), Chunk(run.start));
        if let Err(e) = shard.table.insert(first, new, old.len(), spare) {
            live.store.give_back(run);
            self.flight.end(item);
            return Err(match e {
                InsertError::NeedMemory => Stop::Memory,
                InsertError::OutOfRange => Stop::Snapshot(Failure::CowFull),
                InsertError::Overlap => Stop::Snapshot(Failure::Inconsistent),
            });
        }
        live.start_busy();
        live.took_room(cow_sectors);
        Ok(Started {
            saved: Saved {
                old: first,
                new,
                len: old.len(),
                slot: index,
                item,
            },
            devices,
        })
    }

    /// As [`Self::start_exception`], for chunks whose old data `copy` is to save.
    ///
    /// # Errors
    ///
    /// See [`Stop`].
    pub(crate) fn start_copy(
        &mut self,
        at: usize,
        index: u32,
        hole: Chunks,
        is_urgent: bool,
        copy: &mut Prepared,
        spare: &mut Spare,
    ) -> Result<u64, Stop> {
        let shard = self.shards.get(at).ok_or(Stop::Room)?;
        let live = shard.live.clone();
        if !copy.has_room_for(&live.chunk_size.sectors_of(hole), live.cow_block) {
            return Err(Stop::Copy);
        }
        let started = self.start_exception(at, index, hole, live.copy_kind(), spare)?;
        let Started { saved, devices } = started;
        let size = live.chunk_size;
        let mut from = size.sectors_of(Chunks::new(saved.old, saved.len));
        // The last chunk may reach beyond the end of the origin. Should that be smaller than the
        // snapshot by now, the read must fail: what it lacks would be missing when it has grown.
        let least = from.start.saturating_add(1).max(live.end());
        from.end = from.end.min(devices.origin.sectors().max(least));
        let destination = Destination {
            from,
            to: size.first_sector(saved.new),
            cow: devices.cow,
            saved,
            is_urgent,
            live,
        };
        copy.add(destination, devices.origin);
        Ok(saved.len)
    }

    /// An origin's bio waits here until something that touches its sectors ends; or it is given
    /// back, if its device is being suspended without a flush.
    pub(crate) fn wait_origin(&mut self, bio: Bio<Io>) -> Mapped<Io> {
        if bio.may_requeue() {
            return Mapped::GiveBack(bio);
        }
        self.may_have_waiters = true;
        Mapped::Queued(self.waiting.push(bio))
    }

    /// The same for a snapshot's bio, which fails if the snapshot has left.
    pub(crate) fn wait_snapshot(&mut self, id: SnapId, mut bio: Bio<Io>) -> Mapped<Io> {
        if bio.may_requeue() {
            return Mapped::GiveBack(bio);
        }
        self.may_have_waiters = true;
        match self.shard_mut(id) {
            Some(shard) => {
                let begins = bio.data_mut().wait();
                shard.live.stats.conflicts.add(u64::from(begins));
                Mapped::Queued(shard.waiting.push(bio))
            }
            None => Mapped::Kill(bio),
        }
    }

    /// The merge of a snapshot is told of the end of anything in this slot.
    pub(crate) fn wait_merge(&mut self, id: SnapId) {
        self.may_have_waiters = true;
        if let Some(shard) = self.shard_mut(id) {
            shard.is_merge_waiting = true;
        }
    }

    /// Takes the origin's bios that wait here, of the target that has opened `device`.
    pub(crate) fn take_origin(&mut self, device: &Device, to: &mut BioList<Io>) {
        self.waiting.move_if(to, |bio| bio.is_of(device));
    }

    /// The same for the bios of a snapshot.
    pub(crate) fn take_snapshot(&mut self, id: SnapId, device: &Device, to: &mut BioList<Io>) {
        if let Some(shard) = self.shard_mut(id) {
            shard.waiting.move_if(to, |bio| bio.is_of(device));
        }
    }

    /// Whoever waits will be woken by the end of anything in this slot.
    pub(crate) fn starve(&mut self) {
        self.is_starved = true;
        self.may_have_waiters = true;
    }

    /// Whether an origin's bio waits that touches these sectors.
    pub(crate) fn has_origin_waiting(&mut self, range: Sectors) -> bool {
        let mut found = false;
        let mut none = BioList::new();
        self.waiting.move_if(&mut none, |bio| {
            found |= bio.sectors().overlaps(&range);
            false
        });
        found
    }

    /// Something has ended that touched these sectors: takes the origin's bios that may be able
    /// to go now, and puts those of the snapshots where they are tried again.
    #[inline]
    pub(crate) fn wake(&mut self, range: Sectors, origin: &mut BioList<Io>) {
        if self.may_have_waiters {
            self.wake_waiters(range, origin);
        }
    }

    fn wake_waiters(&mut self, range: Sectors, origin: &mut BioList<Io>) {
        let all = core::mem::take(&mut self.is_starved);
        let range = if all { Sectors::ALL } else { range };
        if !self.waiting.is_empty() {
            let wanted = |bio: &Bio<Io>| bio.sectors().overlaps(&range);
            self.waiting.move_if(origin, wanted);
        }
        self.wake_snapshots(range);
    }

    /// Something has come further that the origin's bios still have to wait for: puts those of
    /// the snapshots where they are tried again.
    pub(crate) fn wake_snapshots(&mut self, range: Sectors) {
        if !self.may_have_waiters {
            return;
        }
        let mut some_are_left = self.is_starved || !self.waiting.is_empty();
        for shard in &mut self.shards {
            if core::mem::take(&mut shard.is_merge_waiting) {
                shard.live.stir_merge();
            }
            if shard.waiting.is_empty() {
                continue;
            }
            let mut ready = BioList::new();
            let wanted = |bio: &Bio<Io>| bio.sectors().overlaps(&range);
            shard.waiting.move_if(&mut ready, wanted);
            shard.live.retry(ready);
            some_are_left |= !shard.waiting.is_empty();
        }
        self.may_have_waiters = some_are_left;
    }

    /// Wakes all.
    pub(crate) fn wake_all(&mut self, origin: &mut BioList<Io>) {
        self.starve();
        self.wake(Sectors::default(), origin);
    }
}

impl Shard {
    /// The part of a snapshot that belongs to one slot.
    pub(crate) fn new(live: Arc<Live>, table: Table) -> Self {
        Self {
            live,
            table,
            waiting: BioList::new(),
            is_merge_waiting: false,
        }
    }

    /// The next run of chunks that the snapshot has not saved; `chunks` is what is left to look at.
    pub(crate) fn next_hole(&self, chunks: &mut Chunks) -> Option<Chunks> {
        while chunks.start < chunks.end {
            let at = chunks.start;
            match self.table.lookup(Chunk(at)) {
                Lookup::Mapped { len, .. } => chunks.start = at.saturating_add(len.max(1)),
                Lookup::Hole { len } => {
                    let end = at.saturating_add(len.max(1)).min(chunks.end);
                    chunks.start = end;
                    return Some(Chunks { start: at, end });
                }
            }
        }
        None
    }
}
