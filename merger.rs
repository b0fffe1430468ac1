// SPDX-License-Identifier: GPL-2.0

//! How exceptions go back to the origin, batch by batch.
//!
//! The metadata can only be shortened at its end, so a batch takes the last records, as many as
//! there are in one area and as fit into memory. Its life:
//!
//! ```text
//!   claim     the chunks are put into the flight: writes to them wait from now on
//!   free      writes to them that are under way on the COW device end; what the merge is going to
//!             change has been saved for other snapshots of the origin (R1)
//!   copy      read from the COW device, sorted by their place on the origin, written there
//!   flush     the origin has it on stable media
//!   commit    the records are removed, on stable media
//!   release   the chunks leave the table and the flight: from now on they are the origin's
//! ```
//!
//! What a crash finds: a record is removed only when its data is on the origin for good, and the
//! origin's place is written to only when the record is gone. So a batch that was cut short is
//! merged once more, with the same data. If the commit itself fails, nobody knows whether the
//! records are there after a restart: then both places hold the same data, and must go on doing
//! so, which is why writes to these chunks fail from then on.
//!
//! All of it runs in a work item that sleeps, on a workqueue of its own; it stops between batches.

#![deny(unsafe_code)]

use crate::{
    dm::{BioList, Buffer, NoIo, Span, WriteFlags, MAX_BYTES},
    dm_err,
    exception::{Lookup, Run, Spare},
    live::{Devices, Live},
    many::{self, Job},
    pending::ItemId,
    saving::{self, Outcome, Writer},
    store::format::Record,
    units::{Chunks, Sector, Sectors, SECTOR_SIZE},
};
use kernel::{
    fmt,
    prelude::*,
    sync::Arc,
    time::{delay::fsleep, Delta},
};

/// The most records of a batch.
const MAX_RECORDS: u64 = 1024;

/// How many bytes are copied at a time.
const ROUND_BYTES: u64 = 8 << 20;

/// How long a merge rests that finds no memory.
const REST: Delta = Delta::from_millis(100);

/// How a merge stands.
pub(crate) struct Merge {
    /// It should go on.
    is_wanted: bool,
    /// Its work is queued or running.
    is_running: bool,
    /// It had to be given up.
    has_failed: bool,
    /// Nobody knows whether some records are still there.
    is_stranded: bool,
    /// How many things have ended that a batch may have waited for.
    events: u64,
}

impl Merge {
    /// It has not begun.
    pub(crate) const fn new() -> Self {
        Self {
            is_wanted: false,
            is_running: false,
            has_failed: false,
            is_stranded: false,
            events: 0,
        }
    }
}

/// Why a batch comes to no good end.
enum Halt {
    /// The merge is to stop.
    Stopped,
    /// There is no memory; later there may be.
    Memory,
    /// The merge is given up.
    Failed(Cause),
}

/// Why a merge is given up.
#[derive(Clone, Copy)]
enum Cause {
    ReadMetadata,
    WriteMetadata,
    ReadCow,
    WriteOrigin,
    Inconsistent,
    NoSpace,
    Invalid,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cause::ReadMetadata => "metadata could not be read from the COW device",
            Cause::WriteMetadata => {
                "metadata could not be written to the COW device; writes to the chunks of the \
                 last batch fail until the device is activated again"
            }
            Cause::ReadCow => "data could not be read from the COW device",
            Cause::WriteOrigin => "data could not be written to the origin",
            Cause::Inconsistent => "the metadata on the COW device is not what it was",
            Cause::Invalid => "the snapshot has become invalid",
            Cause::NoSpace => "another snapshot has no room for what the merge would overwrite",
        })
    }
}

/// What an error of an I/O of the merge means.
fn io_failed(e: Error, cause: Cause) -> Halt {
    match e {
        ENOMEM => Halt::Memory,
        _ => Halt::Failed(cause),
    }
}

impl From<kernel::alloc::AllocError> for Halt {
    fn from(_: kernel::alloc::AllocError) -> Self {
        Halt::Memory
    }
}

impl Live {
    /// Whether the merge had to be given up. Context: any.
    pub(crate) fn has_merge_failed(&self) -> bool {
        self.merge.lock().has_failed
    }

    /// Lets the merge begin, or go on. May sleep.
    pub(crate) fn start_merge(self: &Arc<Self>) {
        let Some(store) = self.persistent() else {
            return;
        };
        if self.is_lost() {
            dm_err!(
                "the snapshot on COW device {} is invalid and cannot be merged",
                self.cow_name()
            );
            return;
        }
        store.start_merge();
        let mut merge = self.merge.lock();
        if merge.is_stranded {
            return;
        }
        merge.is_wanted = true;
        merge.has_failed = false;
        if !core::mem::replace(&mut merge.is_running, true) {
            drop(merge);
            self.queue_merge();
        }
    }

    /// Stops the merge. Sleeps until the batch under way has ended.
    pub(crate) fn stop_merge(&self) {
        let mut merge = self.merge.lock();
        merge.is_wanted = false;
        self.merge_changed.notify_all();
        while merge.is_running {
            self.merge_changed.wait(&mut merge);
        }
    }

    /// Something has ended that a batch may wait for. Context: any.
    pub(crate) fn stir_merge(&self) {
        let mut merge = self.merge.lock();
        merge.events = merge.events.wrapping_add(1);
        self.merge_changed.notify_all();
    }

    /// The work of [`Self::queue_merge`]: merges until all is done, or it is to stop.
    pub(crate) fn run_merge(self: &Arc<Self>) {
        let mut has_stopped = false;
        loop {
            let mut merge = self.merge.lock();
            if !merge.is_wanted && has_stopped {
                merge.is_running = false;
                self.merge_changed.notify_all();
                return;
            }
            has_stopped = !merge.is_wanted;
            drop(merge);
            if has_stopped {
                // If it waited for room, a write that comes to do so has all of its time.
                self.origin.wait_for_space_anew();
                continue;
            }
            let gate = self.origin.merge_gate.lock();
            let ended = self.merge_batch();
            drop(gate);
            match ended {
                Ok(true) | Err(Halt::Stopped) => continue,
                Err(Halt::Memory) => {
                    fsleep(REST);
                    continue;
                }
                Ok(false) => {}
                Err(Halt::Failed(cause)) => {
                    dm_err!(
                        "merging the snapshot on COW device {} failed: {}",
                        self.cow_name(),
                        cause
                    );
                    self.merge.lock().has_failed = true;
                }
            }
            self.merge.lock().is_wanted = false;
            self.queue_event();
        }
    }

    /// Merges the last records; answers whether there were any.
    fn merge_batch(self: &Arc<Self>) -> Result<bool, Halt> {
        let (Some(store), Some(devices)) = (self.persistent(), self.devices()) else {
            return Err(Halt::Stopped);
        };
        if self.is_lost() {
            return Err(Halt::Failed(Cause::Invalid));
        }
        // Writes wait for this, perhaps those that would free memory.
        let _no_io = NoIo::enter();
        let chunk = self.chunk_size.bytes();
        let most = (ROUND_BYTES / chunk).clamp(1, MAX_RECORDS) as u32;
        let Some((piece, at, bytes)) = store.last_records(most) else {
            return Ok(false);
        };
        let mut blocks =
            Buffer::new(bytes, GFP_KERNEL).map_err(|e| io_failed(e, Cause::ReadMetadata))?;
        self.client
            .read(&devices.cow, at, &mut blocks, bytes)
            .map_err(|e| io_failed(e, Cause::ReadMetadata))?;
        let records = store
            .decode(&piece, &blocks)
            .map_err(|e| io_failed(e, Cause::Inconsistent))?;
        let mut claim = Claim::new(self, self.runs_of(records)?, &devices)?;
        claim.wait_until_free()?;
        claim.copy(&devices)?;
        self.client
            .flush(&devices.origin)
            .map_err(|e| io_failed(e, Cause::WriteOrigin))?;
        store
            .remove(&piece, &mut blocks)
            .map_err(|e| io_failed(e, Cause::Inconsistent))?;
        store.removing(&piece);
        let committed = self
            .client
            .write(&devices.cow, at, &blocks, bytes, WriteFlags::Fua);
        if committed.is_err() {
            claim.strand();
            return Err(Halt::Failed(Cause::WriteMetadata));
        }
        store.removed(&piece);
        claim.release();
        self.stats.merged_chunks.add(u64::from(piece.count));
        self.stats.merge_batches.add(1);
        Ok(true)
    }

    /// Records as runs in the order of the origin, none of which crosses the border of a span.
    fn runs_of(&self, mut records: KVec<Record>) -> Result<KVec<Run>, Halt> {
        let spans = self.origin.spans();
        records.sort_unstable_by_key(|record| record.old);
        let mut runs: KVec<Run> = KVec::with_capacity(records.len(), GFP_KERNEL)?;
        for record in &records {
            let first = self.chunk_size.first_sector(record.old);
            if let Some(last) = runs.last_mut() {
                let begin = self.chunk_size.first_sector(last.old);
                let follows =
                    last.old.plus(last.len) == record.old && last.new.plus(last.len) == record.new;
                if follows && spans.end_of(begin) == spans.end_of(first) {
                    last.len = last.len.saturating_add(1);
                    continue;
                }
            }
            let run = Run {
                old: record.old,
                new: record.new,
                len: 1,
            };
            runs.push(run, GFP_KERNEL)?;
        }
        Ok(runs)
    }

    /// Sleeps until something has ended since `seen`, or the merge is to stop.
    fn wait_merge(&self, seen: u64) -> Result<(), Halt> {
        let mut merge = self.merge.lock();
        while merge.events == seen && merge.is_wanted {
            // It may take as long as another snapshot has no room, and nobody sends signals here.
            let _ = self.merge_changed.wait_interruptible(&mut merge);
        }
        if merge.is_wanted {
            Ok(())
        } else {
            Err(Halt::Stopped)
        }
    }
}

/// A run that is being merged.
struct Claimed {
    run: Run,
    /// The sectors of the origin that are written.
    range: Sectors,
    slot: u32,
    item: ItemId,
    is_free: bool,
}

/// The runs of a batch. Dropped, it lets them go as they were.
struct Claim<'a> {
    live: &'a Arc<Live>,
    claimed: KVec<Claimed>,
}

impl<'a> Claim<'a> {
    /// From now on, writes to these runs wait.
    fn new(live: &'a Arc<Live>, runs: KVec<Run>, devices: &Devices) -> Result<Self, Halt> {
        let mut claim = Self {
            live,
            claimed: KVec::with_capacity(runs.len(), GFP_KERNEL)?,
        };
        for run in runs {
            let claimed = claim.claim(run, devices)?;
            // There is room for all.
            let _ = claim.claimed.push_within_capacity(claimed);
        }
        Ok(claim)
    }

    fn claim(&self, run: Run, devices: &Devices) -> Result<Claimed, Halt> {
        let live = self.live;
        let range = live.chunk_size.sectors_of(Chunks::new(run.old, run.len));
        let to_write = range_on_origin(live, devices, range)?;
        let locked = live.origin.lock_slot(Sector(range.start));
        let (index, mut slot) = locked.ok_or(Halt::Failed(Cause::Inconsistent))?;
        let shard = slot.shard(live.id);
        let mut done = 0;
        while done < run.len {
            // What the table says must be what the record says.
            let lookup = shard.map(|shard| shard.table.lookup(run.old.plus(done)));
            match lookup {
                Some(Lookup::Mapped { new, len }) if new == run.new.plus(done) => {
                    done = done.saturating_add(len.max(1));
                }
                _ => return Err(Halt::Failed(Cause::Inconsistent)),
            }
        }
        // All that is in flight there may be of this very batch, so nothing is waited for.
        let item = slot.flight.start_merge(live.id, range);
        Ok(Claimed {
            run,
            range: to_write,
            slot: index,
            item: item.map_err(|_| Halt::Memory)?,
            is_free: false,
        })
    }

    /// Sleeps until the origin can be written to, for all runs.
    fn wait_until_free(&mut self) -> Result<(), Halt> {
        let live = self.live;
        loop {
            let seen = live.merge.lock().events;
            let mut is_free = true;
            for claimed in self.claimed.iter_mut().filter(|c| !c.is_free) {
                claimed.is_free = is_range_free(live, claimed.range)?;
                is_free &= claimed.is_free;
            }
            if is_free {
                return Ok(());
            }
            live.wait_merge(seen)?;
        }
    }

    /// Copies all runs to the origin.
    fn copy(&self, devices: &Devices) -> Result<(), Halt> {
        let mut round = Round::new(self.live, devices);
        for claimed in &self.claimed {
            let size = self.live.chunk_size;
            let from = size.first_sector(claimed.run.new).0;
            let range = claimed.range;
            let mut at = range.start;
            while at < range.end {
                let sectors = range
                    .end
                    .saturating_sub(at)
                    .min(MAX_BYTES as u64 / SECTOR_SIZE);
                let into = at.saturating_sub(range.start);
                round.add(Sector(from.saturating_add(into)), Sector(at), sectors)?;
                at = at.saturating_add(sectors);
            }
        }
        round.go()
    }

    /// The records are gone: so are the exceptions.
    fn release(mut self) {
        let live = self.live;
        let mut spare = Spare::new();
        for claimed in core::mem::take(&mut self.claimed) {
            loop {
                let Some(mut slot) = live.origin.slot(claimed.slot) else {
                    break;
                };
                let Run { old, len, .. } = claimed.run;
                let shard = slot.shard_mut(live.id);
                let removed = shard.map_or(Ok(()), |s| s.table.remove(old, len, &mut spare));
                if removed.is_ok() {
                    // Both under one lock: nobody may see the one without the other.
                    let mut woken = BioList::new();
                    let range = slot.flight.end(claimed.item);
                    slot.wake(range, &mut woken);
                    drop(slot);
                    live.origin.retry(woken);
                    break;
                }
                drop(slot);
                // There is no way back: the record is gone.
                if spare.refill(GFP_KERNEL).is_err() {
                    fsleep(REST);
                }
            }
        }
    }

    /// Nobody knows whether the records are gone.
    fn strand(mut self) {
        self.live.merge.lock().is_stranded = true;
        for claimed in core::mem::take(&mut self.claimed) {
            if let Some(mut slot) = self.live.origin.slot(claimed.slot) {
                let range = slot.flight.strand(claimed.item);
                slot.wake_snapshots(range);
            }
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        for claimed in &self.claimed {
            self.live.origin.end_item(claimed.slot, claimed.item);
        }
    }
}

/// What is to be written of a run: the last chunk may reach beyond the end of the origin.
///
/// # Errors
///
/// The origin has become so small that there is no room for a chunk, or is not there at all. The
/// records must stay then.
fn range_on_origin(live: &Live, devices: &Devices, chunks: Sectors) -> Result<Sectors, Halt> {
    let size = devices.origin.sectors();
    let mut range = chunks;
    range.end = range.end.min(size.max(live.end()));
    let last = chunks.end.saturating_sub(live.chunk_size.sectors());
    if range.end > size || last >= range.end {
        return Err(Halt::Failed(Cause::WriteOrigin));
    }
    Ok(range)
}

/// Whether the merge may write to these sectors of the origin. If not, what is needed for that
/// has been begun, and the merge is told when something has ended.
fn is_range_free(live: &Arc<Live>, range: Sectors) -> Result<bool, Halt> {
    if let Some((_, mut slot)) = live.origin.lock_slot(Sector(range.start)) {
        if slot.flight.has_merge_write(range) {
            slot.wait_merge(live.id);
            return Ok(false);
        }
    }
    let outcome = saving::save(&live.origin, range, Writer::Merge, (), |slot, (), _| {
        slot.wait_merge(live.id);
    });
    match outcome {
        Outcome::Go(()) => Ok(true),
        Outcome::Waits(()) => Ok(false),
        Outcome::Throttle(()) => Err(Halt::Memory),
        Outcome::NoSpace(()) => Err(Halt::Failed(Cause::NoSpace)),
    }
}

/// As much as is copied at a time.
struct Round<'a> {
    live: &'a Arc<Live>,
    devices: &'a Devices,
    reads: KVec<Job>,
    /// Where on the origin each goes, and how many bytes.
    targets: KVec<(Sector, usize)>,
    bytes: u64,
}

impl<'a> Round<'a> {
    fn new(live: &'a Arc<Live>, devices: &'a Devices) -> Self {
        Self {
            live,
            devices,
            reads: KVec::new(),
            targets: KVec::new(),
            bytes: 0,
        }
    }

    /// Adds so many sectors, and copies what there is if that is enough.
    fn add(&mut self, from: Sector, to: Sector, sectors: u64) -> Result<(), Halt> {
        let bytes = sectors.saturating_mul(SECTOR_SIZE) as usize;
        let block = self.devices.cow.logical_block_size() as usize;
        let whole = bytes.next_multiple_of(block.max(1));
        let buffer = Buffer::new(whole, GFP_KERNEL).map_err(|_| Halt::Memory)?;
        let span = Span::at(from, whole);
        self.reads.push(Job { span, buffer }, GFP_KERNEL)?;
        self.targets.push((to, bytes), GFP_KERNEL)?;
        self.bytes = self.bytes.saturating_add(bytes as u64);
        if self.bytes >= ROUND_BYTES {
            self.go()?;
        }
        Ok(())
    }

    /// Copies what there is.
    fn go(&mut self) -> Result<(), Halt> {
        let (client, devices) = (&self.live.client, self.devices);
        let reads = core::mem::take(&mut self.reads);
        let mut writes = KVec::with_capacity(reads.len(), GFP_KERNEL)?;
        let buffers =
            many::read(client, &devices.cow, reads).map_err(|e| io_failed(e, Cause::ReadCow))?;
        for (buffer, (to, bytes)) in buffers.into_iter().zip(&self.targets) {
            let span = Span::at(*to, *bytes);
            writes.push(Job { span, buffer }, GFP_KERNEL)?;
        }
        self.targets.clear();
        self.bytes = 0;
        many::write(client, &devices.origin, writes, WriteFlags::Data)
            .map_err(|e| io_failed(e, Cause::WriteOrigin))?;
        Ok(())
    }
}
