// SPDX-License-Identifier: GPL-2.0

//! Group commit: how records get to the COW device, and who waits for that.
//!
//! Copies that finish while a commit is under way collect, and the next commit takes them all.
//! Nothing ever waits for an idle moment, and no commit runs in the thread that completes
//! copies. Exceptions made by the snapshot's own writes are put off (rule R2): until a FLUSH or
//! FUA on the snapshot, an origin write to the same chunks, many of them, or a second has passed.
//!
//! What a crash finds: a record is written with a flush before it and FUA on itself. So when it
//! is there, its data is too; and when it is not there, no origin write has been let through,
//! and whoever wrote to the snapshot has not been told that the data lasts. The old data is
//! still on the origin then, and that is what the snapshot shows.

#![deny(unsafe_code)]

use crate::{
    dm::{
        Bio, BioList, Buffer, Finished, IoDone, NoIo, Queued, Request, Span, WriteFlags, MAX_BYTES,
    },
    live::{Devices, Failure, Health, Live},
    pending::Saved,
    slot::Io,
    stats::Moment,
    store::{
        area::Zeroing,
        persistent::{Mark, Next, Persistent, Write, LANES, LANE_BYTES},
    },
    units::Sector,
};
use kernel::{prelude::*, sync::Arc};

/// How long a record may stay volatile, in milliseconds.
pub(crate) const MAX_DELAY_MS: u32 = 1000;

/// How many records may be put off.
const MAX_DELAYED: u64 = 1024;

/// How many exceptions are ended at a time.
const BATCH: usize = 64;

/// By this tag a request is known as that of an area being zeroed; a lane's is its index.
const ZERO_TAG: usize = LANES;

/// The state of a snapshot's commits.
pub(crate) struct Commit {
    /// What the lanes write with, while they don't.
    requests: [Option<Request<Live>>; LANES],
    buffers: [Option<Buffer>; LANES],
    /// How many lanes write.
    running: usize,
    /// Whether a commit is under way, or has come to its end and this has not been looked at.
    is_begun: bool,
    /// When it began, if it is one of those that are timed.
    begun: Option<Moment>,
    has_failed: bool,
    /// The next commit should begin as soon as it can.
    is_due: bool,
    waves: Waves,
    /// The exceptions that a commit has ended.
    ended: KVec<Saved>,
    zero: Zero,
    /// Flushes of the snapshot that came after `goal` was set.
    flush_next: BioList<Io>,
    /// Flushes that end when the records before `goal` are on stable media: a commit has begun
    /// since they came, and each flushes the device first.
    flush_now: BioList<Io>,
    /// Writes whose data is on stable media, which wait for records that may not be.
    held_next: BioList<Io>,
    held_now: BioList<Io>,
    goal: Option<Mark>,
    /// How many times a commit has ended, or there was nothing to commit.
    finished: u64,
}

/// How soon a record has to be durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Urgency {
    /// When there is another reason for a commit, or after a while.
    Later,
    /// An origin write waits for it, and perhaps others will in a moment.
    Soon,
    /// At once.
    Now,
}

/// Copies that are being written to the COW device, in waves.
///
/// Writes of many jobs come in bunches, and so do the copies for them. If the first copy of a bunch
/// that ends made a commit begin, all others would wait for two: for that one, which carries a
/// single record, and for their own. So it waits until those have ended that were being written
/// to the same device at that moment, if there is not a block full of records by then. It never
/// waits for any that begin later.
struct Waves {
    /// How many are under way of either wave.
    running: [u64; 2],
    /// To which wave those belong that begin now.
    now: Wave,
    /// A commit waits for the wave that is not the present one.
    is_awaited: bool,
}

/// One of two waves of copies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wave {
    Even,
    Odd,
}

impl Waves {
    const fn new() -> Self {
        Self {
            running: [0; 2],
            now: Wave::Even,
            is_awaited: false,
        }
    }

    fn count(&mut self, wave: Wave) -> &mut u64 {
        let [even, odd] = &mut self.running;
        match wave {
            Wave::Even => even,
            Wave::Odd => odd,
        }
    }

    fn begin(&mut self) -> Wave {
        let wave = self.now;
        *self.count(wave) = self.count(wave).saturating_add(1);
        wave
    }

    /// One has ended: answers whether a commit waits for nothing else.
    fn end(&mut self, wave: Wave) -> bool {
        *self.count(wave) = self.count(wave).saturating_sub(1);
        let is_over = self.is_awaited && wave != self.now && *self.count(wave) == 0;
        self.is_awaited &= !is_over;
        is_over
    }

    /// A commit is wanted: answers whether it should wait for copies under way.
    fn wait(&mut self) -> bool {
        let other = match self.now {
            Wave::Even => Wave::Odd,
            Wave::Odd => Wave::Even,
        };
        if !self.is_awaited && *self.count(self.now) != 0 && *self.count(other) == 0 {
            self.now = other;
            self.is_awaited = true;
        }
        self.is_awaited
    }
}

/// The zeroing of areas ahead of the records.
struct Zero {
    request: Option<Request<Live>>,
    buffer: Option<Buffer>,
    /// What is being zeroed: the first sector, the bytes, and how many of them are done.
    now: Option<(Zeroing, Sector, u64, u64)>,
    has_failed: bool,
}

impl Commit {
    /// Gets all the memory that commits will ever need; none, if there will be none. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(store: Option<&Persistent>) -> Result<Self> {
        let mut commit = Self {
            requests: [const { None }; LANES],
            buffers: [const { None }; LANES],
            running: 0,
            is_begun: false,
            begun: None,
            has_failed: false,
            is_due: false,
            waves: Waves::new(),
            ended: KVec::new(),
            zero: Zero {
                request: None,
                buffer: None,
                now: None,
                has_failed: false,
            },
            flush_next: BioList::new(),
            flush_now: BioList::new(),
            held_next: BioList::new(),
            held_now: BioList::new(),
            goal: None,
            finished: 0,
        };
        if let Some(store) = store {
            let bytes = LANE_BYTES.max(store.block_size());
            for request in &mut commit.requests {
                *request = Some(Request::new(GFP_KERNEL)?);
            }
            for buffer in &mut commit.buffers {
                *buffer = Some(Buffer::new(bytes, GFP_KERNEL)?);
            }
            commit.ended = KVec::with_capacity(BATCH, GFP_KERNEL)?;
            commit.zero.request = Some(Request::new(GFP_KERNEL)?);
            commit.zero.buffer = Some(Buffer::zeroes(MAX_BYTES, GFP_KERNEL)?);
        }
        Ok(commit)
    }
}

impl IoDone for Live {
    fn io_done(this: Arc<Self>, finished: Finished<Self>) {
        let mut commit = this.commit.lock();
        if finished.tag == ZERO_TAG {
            commit.zero.request = Some(finished.request);
            commit.zero.buffer = finished.buffer;
            commit.zero.has_failed |= finished.result.is_err();
        } else {
            if let Some(place) = commit.requests.get_mut(finished.tag) {
                *place = Some(finished.request);
            }
            if let Some(place) = commit.buffers.get_mut(finished.tag) {
                *place = finished.buffer;
            }
            commit.has_failed |= finished.result.is_err();
            commit.running = commit.running.saturating_sub(1);
        }
        let is_running = commit.running != 0;
        drop(commit);
        if finished.tag == ZERO_TAG || !is_running {
            this.queue_commit();
        }
        this.end_busy();
    }
}

impl Live {
    /// A record was added to the store, so that `waiting` of them wait now. Context: any.
    pub(crate) fn record_added(self: &Arc<Self>, waiting: u64, urgency: Urgency) {
        // Nothing is put off for a snapshot that is invalid or about to leave.
        if waiting >= MAX_DELAYED || self.guards() == Health::Invalid {
            return self.commit_now();
        }
        // So many fill blocks of their own: nothing is saved by waiting for more.
        let is_full = self
            .persistent()
            .is_some_and(|s| waiting >= s.records_of_block());
        match urgency {
            Urgency::Soon if is_full => self.commit_now(),
            Urgency::Later => self.start_timer(),
            Urgency::Now => self.commit_now(),
            Urgency::Soon => {
                let mut commit = self.commit.lock();
                // What ends a commit begins the next.
                let is_waiting = !commit.is_begun && !commit.is_due && commit.waves.wait();
                commit.is_due |= !is_waiting;
                drop(commit);
                if is_waiting {
                    self.start_wave_timer();
                } else {
                    self.queue_commit();
                }
            }
        }
    }

    /// A copy is being written to the COW device. Context: any.
    pub(crate) fn begin_fill(&self, is_urgent: bool) -> Wave {
        if is_urgent && self.persistent().is_some() {
            self.commit.lock().waves.begin()
        } else {
            Wave::Even
        }
    }

    /// A copy has been written to the COW device, or could not be: answers whether a commit waits
    /// for nothing else. Context: any.
    pub(crate) fn end_fill(&self, is_urgent: bool, wave: Wave) -> bool {
        is_urgent && self.persistent().is_some() && self.commit.lock().waves.end(wave)
    }

    /// The copies that a commit waits for take too long. Context: any.
    pub(crate) fn end_wave(self: &Arc<Self>) {
        let is_awaited = core::mem::take(&mut self.commit.lock().waves.is_awaited);
        if is_awaited {
            self.commit_now();
        }
    }

    /// Begins a commit as soon as the one under way has ended. Context: any.
    pub(crate) fn commit_now(self: &Arc<Self>) {
        if self.persistent().is_none() {
            return;
        }
        self.commit.lock().is_due = true;
        self.queue_commit();
    }

    /// Sleeps until all records that were added before are on stable media, or the snapshot is
    /// invalid.
    pub(crate) fn commit_and_wait(self: &Arc<Self>) {
        let Some(store) = self.persistent() else {
            return;
        };
        let mark = store.mark();
        // What is not past under the lock, is told of afterwards; another one may be the last.
        let mut commit = self.commit.lock();
        while !store.is_past(mark) {
            commit.is_due = true;
            let seen = commit.finished;
            self.queue_commit();
            while commit.finished == seen {
                self.committed.wait(&mut commit);
            }
        }
    }

    /// Whether a record is not on stable media, so that flushes and FUA writes have to wait for
    /// it. Context: any.
    pub(crate) fn has_volatile(&self) -> bool {
        self.persistent().is_some_and(|store| store.has_volatile())
    }

    /// A flush ends when all records that there are now are on stable media, and the COW device's
    /// cache has been flushed.
    pub(crate) fn hold_flush(self: &Arc<Self>, bio: Bio<Io>) -> Queued {
        let mut commit = self.commit.lock();
        commit.is_due = true;
        let queued = commit.flush_next.push(bio);
        drop(commit);
        self.queue_commit();
        queued
    }

    /// A write whose data is on stable media ends when all records that there are now are too.
    /// Context: any.
    pub(crate) fn hold_durable(self: &Arc<Self>, bio: Bio<Io>) -> Queued {
        let mut commit = self.commit.lock();
        commit.is_due = true;
        let queued = commit.held_next.push(bio);
        // As soon as the lock is given up, the bio may end, and with the last one the table that
        // the caller has this snapshot from.
        self.queue_commit();
        queued
    }

    /// Looks at what has ended, and begins what there is to do. The work of `queue_commit`, hence
    /// never beside itself.
    pub(crate) fn run_commit(self: &Arc<Self>) {
        if self.persistent().is_none() {
            return;
        }
        let _no_io = NoIo::enter();
        if self.finish_commit() {
            self.zero_ahead();
            self.begin_commit();
        }
    }

    /// Ends the commit that was under way; answers whether there is none now.
    fn finish_commit(self: &Arc<Self>) -> bool {
        let Some(store) = self.persistent() else {
            return true;
        };
        let mut commit = self.commit.lock();
        if commit.running != 0 {
            return false;
        }
        if core::mem::take(&mut commit.is_begun) {
            let has_failed = core::mem::take(&mut commit.has_failed);
            let begun = commit.begun.take();
            drop(commit);
            if has_failed {
                // Whoever waits is told when the invalidation is known.
                self.fail(Failure::WriteMetadata);
            } else {
                if let Some(begun) = begun {
                    self.stats.commit_time.add(begun);
                }
                self.stats.records.add(store.finish());
                self.end_committed();
            }
            commit = self.commit.lock();
            if commit.goal.is_some_and(|goal| store.is_past(goal)) {
                commit.goal = None;
                let mut bios = commit.flush_now.take();
                bios.append(commit.held_now.take());
                drop(commit);
                end_all(bios, Ok(()));
                commit = self.commit.lock();
            }
            commit.finished = commit.finished.wrapping_add(1);
            self.committed.notify_all();
        }
        drop(commit);
        true
    }

    /// Ends the exceptions whose records are on stable media.
    fn end_committed(self: &Arc<Self>) {
        let Some(store) = self.persistent() else {
            return;
        };
        let mut ended = core::mem::take(&mut self.commit.lock().ended);
        loop {
            let has_more = store.take_committed(&mut ended);
            for saved in &ended {
                self.end_exception(saved.slot, saved.item);
            }
            ended.clear();
            if !has_more {
                break;
            }
        }
        self.commit.lock().ended = ended;
    }

    /// Begins a commit, if there is anything to do and one is due.
    fn begin_commit(self: &Arc<Self>) {
        let Some(store) = self.persistent() else {
            return;
        };
        if self.health() == Health::Invalid {
            return self.abandon_commits();
        }
        let Some(devices) = self.devices() else {
            return;
        };
        let mut commit = self.commit.lock();
        if !commit.is_due || self.health() == Health::Failing {
            return;
        }
        let Some(mut lanes) = take_both(&mut commit.buffers) else {
            return;
        };
        let next = store.begin(&mut lanes);
        let [first, second] = lanes;
        commit.buffers = [Some(first), Some(second)];
        match next {
            Next::Nothing => {
                commit.is_due = false;
                let mut flushes = commit.flush_next.take();
                let held = commit.held_next.take();
                commit.finished = commit.finished.wrapping_add(1);
                drop(commit);
                self.committed.notify_all();
                end_all(held, Ok(()));
                while let Some(mut bio) = flushes.pop() {
                    bio.remap(&devices.cow, Sector(0));
                    bio.submit();
                }
            }
            // When the area has been zeroed, this is called again. If it is only wanted since the
            // device has grown just now, it's begun then.
            Next::Zero => {
                if commit.zero.now.is_none() {
                    self.queue_commit();
                }
            }
            Next::Full => {
                drop(commit);
                self.fail(Failure::MetadataFull);
            }
            Next::Commit { writes } => {
                if commit.goal.is_none() {
                    commit.goal = Some(store.mark());
                    let flushes = commit.flush_next.take();
                    commit.flush_now = flushes;
                    let held = commit.held_next.take();
                    commit.held_now = held;
                }
                commit.is_begun = true;
                commit.begun = self.stats.commits.add_timed();
                drop(commit);
                self.write_records(&devices, writes);
            }
        }
    }

    /// Writes the records of a commit that has begun, each lane's by a request of its own.
    fn write_records(self: &Arc<Self>, devices: &Devices, writes: [Option<Write>; LANES]) {
        // What was saved comes before its records. It's not left to a flag of their writes: where
        // the COW device is one of device-mapper, the error of a flush that goes with data may
        // get lost.
        let is_flushed = self.client.flush(&devices.cow).is_ok();
        let mut commit = self.commit.lock();
        if !is_flushed {
            commit.has_failed = true;
            drop(commit);
            return self.queue_commit();
        }
        let mut ready = [const { None }; LANES];
        for (lane, write) in writes.into_iter().enumerate() {
            let Some(write) = write else { continue };
            let request = commit.requests.get_mut(lane).and_then(Option::take);
            let buffer = commit.buffers.get_mut(lane).and_then(Option::take);
            if let (Some(request), Some(buffer), Some(place)) =
                (request, buffer, ready.get_mut(lane))
            {
                *place = Some((request, buffer, write));
                commit.running = commit.running.saturating_add(1);
            }
        }
        drop(commit);
        for (lane, ready) in ready.into_iter().enumerate() {
            let Some((request, buffer, write)) = ready else {
                continue;
            };
            self.start_busy();
            self.stats.metadata_bytes.add(write.bytes as u64);
            request.write(
                &self.client,
                &devices.cow,
                Span::at(write.at, write.bytes),
                buffer,
                WriteFlags::Fua,
                self.clone(),
                lane,
            );
        }
    }

    /// The snapshot is invalid: nobody has to wait for its records.
    fn abandon_commits(self: &Arc<Self>) {
        let Some(store) = self.persistent() else {
            return;
        };
        store.abandon();
        self.end_committed();
        let mut commit = self.commit.lock();
        commit.is_due = false;
        commit.goal = None;
        commit.finished = commit.finished.wrapping_add(1);
        let mut bios = commit.flush_next.take();
        bios.append(commit.flush_now.take());
        bios.append(commit.held_next.take());
        bios.append(commit.held_now.take());
        drop(commit);
        self.committed.notify_all();
        end_all(bios, Err(EIO));
    }

    /// Zeroes areas ahead of the records (rule R5), a piece at a time.
    fn zero_ahead(self: &Arc<Self>) {
        let Some(store) = self.persistent() else {
            return;
        };
        let Some(devices) = self.devices() else {
            return;
        };
        // Whoever takes the snapshot out of use says so first, and then waits until nothing is
        // under way. So this is under way before it is looked at what was said.
        self.start_busy();
        store.resize(|| devices.cow.sectors());
        let Some((request, buffer, span)) = self.next_zeroes(store) else {
            return self.end_busy();
        };
        request.write(
            &self.client,
            &devices.cow,
            span,
            buffer,
            WriteFlags::Fua,
            self.clone(),
            ZERO_TAG,
        );
    }

    /// The next piece that is to be zeroed, if any is and none is being written.
    fn next_zeroes(self: &Arc<Self>, store: &Persistent) -> Option<(Request<Self>, Buffer, Span)> {
        // Those records that there are still need their places; there will be no others, and
        // none must be lost for want of a place for them.
        if (self.is_merging() || !self.is_active()) && !store.has_volatile() {
            return None;
        }
        let mut commit = self.commit.lock();
        commit.zero.request.as_ref()?;
        let has_failed = core::mem::take(&mut commit.zero.has_failed);
        // If the device has become smaller, nobody knows what has become of the area.
        let now = commit.zero.now.take();
        let now = now.filter(|(zeroing, ..)| !store.is_gone(zeroing));
        if has_failed && now.is_some() {
            drop(commit);
            self.fail(Failure::WriteMetadata);
            return None;
        }
        if self.health() == Health::Invalid {
            return None;
        }
        match now {
            Some((zeroing, _, bytes, done)) if done >= bytes => store.zeroed(&zeroing),
            _ => commit.zero.now = now,
        }
        if commit.zero.now.is_none() {
            let next = store.wants_zeroing();
            commit.zero.now = next.map(|(zeroing, at, bytes)| (zeroing, at, bytes, 0));
        }
        let (_, at, bytes, done) = commit.zero.now.as_mut()?;
        let piece = bytes.saturating_sub(*done).min(MAX_BYTES as u64);
        let from = Sector(at.0.saturating_add(*done / 512));
        *done = done.saturating_add(piece);
        let request = commit.zero.request.take()?;
        let buffer = commit.zero.buffer.take()?;
        Some((request, buffer, Span::at(from, piece as usize)))
    }
}

/// The buffers of all lanes, if none of them writes.
fn take_both(buffers: &mut [Option<Buffer>; LANES]) -> Option<[Buffer; LANES]> {
    let [first, second] = buffers;
    match (first.take(), second.take()) {
        (Some(a), Some(b)) => Some([a, b]),
        (a, b) => {
            (*first, *second) = (a, b);
            None
        }
    }
}

/// Ends all bios of a list.
fn end_all(mut bios: BioList<Io>, result: Result) {
    while let Some(bio) = bios.pop() {
        bio.end(result);
    }
}
