// SPDX-License-Identifier: GPL-2.0

//! The copy engine: one read of the origin, many writes to COW devices.
//!
//! A copy is prepared first, when memory may be refused ([`Prepared`]); then, under the lock of
//! its slot, it gets its destinations; then it goes, and needs no more memory. Its life:
//!
//! ```text
//!   map or a retry            Prepared::go ──► read of the origin
//!   interrupt                     io_done ──► work
//!   work      the data is in memory: transient stores let the origin go (R1); what the
//!             snapshot itself writes to the chunk is laid over it
//!                                         ──► a write to each destination, in parallel
//!   interrupt   each destination is saved by itself, as soon as its write has ended:
//!               persistent stores commit, transient ones are done
//! ```
//!
//! Ranges larger than a mebibyte, which only very large chunks make, are moved piece by piece,
//! and all destinations are saved at the end.
//!
//! If the read fails, it is done once more for each destination alone: a bad sector costs only the
//! snapshots that need it.

#![deny(unsafe_code)]

use crate::{
    commit::{Urgency, Wave},
    dm::{
        Bio, BioList, Buffer, Device, Finished, IoDone, NoIo, Queued, Request, Span, WriteFlags,
        MAX_BYTES,
    },
    live::{Failure, Live},
    pending::{Phase, Saved},
    registry::Origin,
    slot::{Io, Need},
    stats::Moment,
    units::{Sector, Sectors, SECTOR_SIZE},
};
use kernel::{
    new_spinlock_irq, new_work,
    prelude::*,
    sync::{Arc, SpinLockIrq, UniqueArc},
    workqueue::{impl_has_work, Work, WorkItem},
};

/// The most runs that one copy saves: what is more, the next one does. So no large piece of memory
/// is ever asked for, and with the one that there may be more, each has a bit in a `u64`.
const MAX_RUNS: usize = 63;

/// A run of chunks of a snapshot that a copy saves.
pub(crate) struct Destination {
    pub(crate) live: Arc<Live>,
    pub(crate) saved: Saved,
    /// Where the data comes from: the chunks, as far as the origin has them.
    pub(crate) from: Sectors,
    /// Where it goes on the COW device.
    pub(crate) to: Sector,
    pub(crate) cow: Device,
    /// Whether an origin write waits for it, so that its record is urgent.
    pub(crate) is_urgent: bool,
}

impl Destination {
    /// A write to the COW device begins: answers which wave it belongs to.
    fn begin_write(&self) -> Wave {
        self.live.begin_fill(self.is_urgent)
    }

    /// A write to the COW device has ended: answers whether a commit waits for nothing else.
    fn end_write(&self, wave: Wave) -> bool {
        self.live.end_fill(self.is_urgent, wave)
    }

    /// So many bytes, rounded up to blocks of the COW device.
    fn whole_blocks(&self, bytes: usize) -> usize {
        bytes.next_multiple_of(self.cow.logical_block_size() as usize)
    }
}

/// What a write to a destination is known by when it ends.
#[derive(Clone, Copy)]
struct Tag {
    destination: usize,
    wave: Wave,
}

impl Tag {
    fn into_usize(self) -> usize {
        self.destination << 1 | usize::from(self.wave == Wave::Odd)
    }

    fn from_usize(tag: usize) -> Self {
        Self {
            destination: tag >> 1,
            wave: if tag & 1 == 1 { Wave::Odd } else { Wave::Even },
        }
    }
}

/// The memory of a copy that is still to be begun.
pub(crate) struct Prepared {
    place: UniqueArc<core::mem::MaybeUninit<Copy>>,
    destinations: KVec<Destination>,
    requests: KVec<Request<Copy>>,
    buffer: Buffer,
    /// What the buffer is for.
    range: Sectors,
    /// Of no COW device is a logical block larger, in sectors.
    block: u64,
    shared: SharedPlace,
    source: Option<Device>,
    overlay: BioList<Io>,
}

/// The memory for the count of those who share a buffer; an empty one lies there until then.
type SharedPlace = UniqueArc<Buffer>;

impl Prepared {
    /// Gets the memory to save what `need` says.
    ///
    /// # Errors
    ///
    /// `ENOMEM`. May sleep, but does no I/O.
    pub(crate) fn new(need: &Need) -> Result<Self> {
        let _no_io = NoIo::enter();
        // Metadata areas cut runs on the COW device in two, now and then.
        let count = need.runs.min(MAX_RUNS).saturating_add(1);
        let mut requests = KVec::with_capacity(count, GFP_KERNEL)?;
        for _ in 0..count {
            requests.push(Request::new(GFP_KERNEL)?, GFP_KERNEL)?;
        }
        // What is written to a COW device has to be whole blocks of it in the buffer as well, for
        // devices that write these from whole pages.
        let range = need.range.begun_at_block(need.block);
        let bytes = range.len().saturating_mul(SECTOR_SIZE);
        let bytes = whole_blocks(bytes.min(MAX_BYTES as u64) as usize, need.block);
        Ok(Self {
            place: UniqueArc::new_uninit(GFP_KERNEL)?,
            destinations: KVec::with_capacity(count, GFP_KERNEL)?,
            requests,
            buffer: Buffer::new(bytes, GFP_KERNEL)?,
            range,
            block: need.block,
            shared: UniqueArc::new(Buffer::empty(), GFP_KERNEL)?,
            source: None,
            overlay: BioList::new(),
        })
    }

    /// Whether this is memory enough for `need`.
    pub(crate) fn is_enough(&self, need: &Need) -> bool {
        need.runs.min(MAX_RUNS) < self.destinations.capacity()
            && self.covers(&need.range, need.block)
    }

    /// Whether there is room for one more destination, on a device with logical blocks of so many
    /// sectors, and for the data of these sectors. There may be none for what nobody needed a
    /// moment ago: a snapshot becomes active at any time.
    pub(crate) fn has_room_for(&self, sectors: &Sectors, block: u64) -> bool {
        self.destinations.len() < self.destinations.capacity() && self.covers(sectors, block)
    }

    /// Whether the buffer is for these sectors, and for devices with such blocks.
    fn covers(&self, sectors: &Sectors, block: u64) -> bool {
        self.range.contains(sectors) && self.block >= block
    }

    /// Whether nothing is to be copied.
    pub(crate) fn is_empty(&self) -> bool {
        self.destinations.is_empty()
    }

    /// Adds a destination, for data of `source`. Context: under the lock of its slot.
    pub(crate) fn add(&mut self, destination: Destination, source: Device) {
        // The caller has asked whether there is room.
        let _ = self.destinations.push_within_capacity(destination);
        // All snapshots of an origin have it open, each on its own account.
        self.source.get_or_insert(source);
    }

    /// The data of a bio is laid over the data of the one destination, and it ends with that.
    pub(crate) fn lay_over(&mut self, bio: Bio<Io>) -> Queued {
        self.overlay.push(bio)
    }

    /// Begins the copy. Not under a lock.
    pub(crate) fn go(self, origin: &Arc<Origin>) {
        let Self {
            place,
            destinations,
            requests,
            buffer,
            range: _,
            block,
            shared,
            source: Some(source),
            overlay,
        } = self
        else {
            return;
        };
        let mut all = destinations.iter().map(|d| d.from);
        let Some(first) = all.next() else { return };
        let range = all.fold(first, |range, from| range.union(&from));
        let range = range.begun_at_block(block);
        let chunks: u64 = destinations.iter().map(|d| d.saved.len).sum();
        let state = State {
            at: range.start,
            piece: Sectors::default(),
            requests,
            shared: Some(shared),
            written: None,
            overlay,
            running: 0,
            read: None,
            has_read_failed: false,
            alone: None,
            unread: 0,
            failed: 0,
        };
        let begun = origin.stats.reads.add_timed();
        origin.stats.read_sectors.add(range.len());
        let first = destinations.first().map(|d| d.live.id);
        let is_shared = destinations.iter().any(|d| Some(d.live.id) != first);
        origin.stats.shared_reads.add(u64::from(is_shared));
        let copy = pin_init!(Copy {
            origin: origin.clone(),
            begun,
            is_shared,
            source,
            range,
            block,
            chunks: chunks as i64,
            destinations,
            state <- new_spinlock_irq!(state, "Copy::state"),
            work <- new_work!("Copy::work"),
        });
        match place.pin_init_with(copy) {
            Ok(copy) => {
                let copy: Arc<Copy> = copy.into();
                origin.add_copying(copy.chunks);
                copy.read(buffer);
            }
            // Cannot happen: the initialiser allocates nothing.
            Err(e) => match e {},
        }
    }
}

/// A copy under way.
#[pin_data]
pub(crate) struct Copy {
    origin: Arc<Origin>,
    begun: Option<Moment>,
    /// Whether it serves more than one snapshot.
    is_shared: bool,
    source: Device,
    /// All that is read: from where a block begins.
    range: Sectors,
    /// The largest logical block of the COW devices, in sectors.
    block: u64,
    chunks: i64,
    destinations: KVec<Destination>,
    #[pin]
    state: SpinLockIrq<State>,
    #[pin]
    work: Work<Copy>,
}

impl_has_work! {
    impl HasWork<Self> for Copy { self.work }
}

struct State {
    /// Where the next piece begins.
    at: u64,
    /// The piece under way.
    piece: Sectors,
    requests: KVec<Request<Copy>>,
    /// For the buffer, while nobody shares it.
    shared: Option<SharedPlace>,
    /// The buffer of a piece that is not the last: the next one gets it, when it is written.
    written: Option<Arc<Buffer>>,
    /// Bios of the snapshot whose data goes with the copy's.
    overlay: BioList<Io>,
    /// How many writes are under way.
    running: usize,
    /// The buffer, when a read has ended and this has not been looked at.
    read: Option<Buffer>,
    has_read_failed: bool,
    /// The destination that is being read by itself, as the read of the whole piece has failed.
    alone: Option<usize>,
    /// The destinations that could not be read, a bit each.
    unread: u64,
    /// The same of those that could not be written.
    failed: u64,
}

impl IoDone for Copy {
    fn io_done(this: Arc<Self>, finished: Finished<Self>) {
        let mut state = this.state.lock();
        let _ = state.requests.push_within_capacity(finished.request);
        let Some(buffer) = finished.buffer else {
            drop(state);
            return this.written(Tag::from_usize(finished.tag), finished.result.is_ok());
        };
        state.has_read_failed = finished.result.is_err();
        state.read = Some(buffer);
        drop(state);
        this.queue();
    }
}

fn failed_bit(destination: usize) -> u64 {
    1 << destination.min(63)
}

/// So many bytes, rounded up to blocks of so many sectors.
fn whole_blocks(bytes: usize, block: u64) -> usize {
    bytes.next_multiple_of(block.max(1).saturating_mul(SECTOR_SIZE) as usize)
}

/// A part of a piece, at its place in the buffer of that piece, and somewhere on a device.
fn span_in(piece: Sectors, part: Sectors, at: Sector) -> Span {
    let offset = part.start.saturating_sub(piece.start);
    Span {
        at,
        offset: offset.saturating_mul(SECTOR_SIZE) as usize,
        bytes: part.len().saturating_mul(SECTOR_SIZE) as usize,
    }
}

impl WorkItem for Copy {
    type Pointer = Arc<Copy>;

    fn run(this: Arc<Copy>) {
        let _no_io = NoIo::enter();
        let mut state = this.state.lock();
        let read = state.read.take();
        drop(state);
        match read {
            Some(buffer) => this.has_read(buffer),
            None if this.is_last_piece() => this.end(),
            None => this.next(),
        }
    }
}

impl Copy {
    /// Reads the next piece.
    fn read(self: &Arc<Self>, buffer: Buffer) {
        let mut state = self.state.lock();
        let room = buffer.len() as u64 / SECTOR_SIZE;
        let end = state.at.saturating_add(room).min(self.range.end);
        state.piece = Sectors {
            start: state.at,
            end,
        };
        let piece = state.piece;
        state.at = end;
        drop(state);
        self.read_part(buffer, piece, piece);
    }

    /// Reads a part of a piece to its place in the buffer.
    fn read_part(self: &Arc<Self>, buffer: Buffer, piece: Sectors, part: Sectors) {
        let request = self.state.lock().requests.pop();
        let Some(request) = request else { return };
        request.read(
            &self.origin.client,
            &self.source,
            span_in(piece, part, Sector(part.start)),
            buffer,
            self.clone(),
            0,
        );
    }

    /// A piece has been read, or a part of it; if not, each destination is tried by itself.
    fn has_read(self: &Arc<Self>, buffer: Buffer) {
        let mut state = self.state.lock();
        let (piece, has_failed) = (state.piece, state.has_read_failed);
        let next = match state.alone {
            None if !has_failed => None,
            None => Some(0),
            Some(index) => {
                if has_failed {
                    state.unread |= failed_bit(index);
                }
                Some(index.saturating_add(1))
            }
        };
        let unread = state.unread;
        let is_unread = |index: usize| unread & failed_bit(index) != 0;
        let part = next.and_then(|next| {
            let mut parts = self.parts(piece);
            parts.find(|(index, _, _)| *index >= next && !is_unread(*index))
        });
        state.alone = part.map(|(index, _, _)| index);
        drop(state);
        match part {
            Some((_, _, part)) => self.read_part(buffer, piece, part),
            // The other pieces are of no use to anybody.
            None if (0..self.destinations.len()).all(is_unread) => self.end(),
            None => self.write(buffer),
        }
    }

    /// The destinations that have a part in a piece, by their number, with that part.
    fn parts(&self, piece: Sectors) -> impl Iterator<Item = (usize, &Destination, Sectors)> {
        let all = self.destinations.iter().enumerate();
        let parts = all.map(move |(index, destination)| {
            let part = Sectors {
                start: destination.from.start.max(piece.start),
                end: destination.from.end.min(piece.end),
            };
            (index, destination, part)
        });
        parts.filter(|(_, _, part)| !part.is_empty())
    }

    /// Has the work run. It is not queued already: a copy does one thing at a time.
    fn queue(self: &Arc<Self>) {
        let _ = self.origin.wq.enqueue(self.clone());
    }

    /// Whether all is one piece, so that a destination is saved when it has been written once.
    fn is_one_piece(&self) -> bool {
        self.range.len() <= MAX_BYTES as u64 / SECTOR_SIZE
    }

    fn is_last_piece(&self) -> bool {
        self.state.lock().at >= self.range.end
    }

    /// Writes the piece that has been read to where it belongs.
    fn write(self: &Arc<Self>, mut buffer: Buffer) {
        let mut state = self.state.lock();
        let piece = state.piece;
        let shared = state.shared.take();
        let overlay = state.overlay.take();
        drop(state);
        let bytes = (piece.len() * SECTOR_SIZE) as usize;
        // The last chunk of the origin may be cut off within a block of a COW device.
        let rest = whole_blocks(bytes, self.block).saturating_sub(bytes);
        if rest != 0 && buffer.clear(bytes, rest).is_err() {
            self.state.lock().failed = u64::MAX;
            return self.end();
        }
        if self.is_one_piece() {
            self.in_memory();
        }
        let overlay = lay_over(overlay, piece, &mut buffer);
        let Some(mut shared) = shared else {
            self.state.lock().failed = u64::MAX;
            return self.end();
        };
        *shared = buffer;
        let buffer: Arc<Buffer> = shared.into();
        // One more than there are, so that the last to end is known as such.
        let is_last = self.is_last_piece();
        state = self.state.lock();
        state.written = (!is_last).then(|| buffer.clone());
        state.overlay = overlay;
        state.running = self.parts(piece).count().saturating_add(1);
        let unread = state.unread;
        drop(state);
        for (index, destination, part) in self.parts(piece) {
            if unread & failed_bit(index) != 0 {
                if self.is_one_piece() {
                    self.saved(destination, Some(Failure::ReadOrigin), false);
                }
                self.one_less();
                continue;
            }
            let into = part.start.saturating_sub(destination.from.start);
            let at = Sector(destination.to.0.saturating_add(into));
            let span = span_in(piece, part, at);
            let request = self.state.lock().requests.pop();
            let tag = Tag {
                destination: index,
                wave: destination.begin_write(),
            };
            let Some(request) = request else {
                self.written(tag, false);
                continue;
            };
            request.write_shared(
                &self.origin.client,
                &destination.cow,
                Span {
                    bytes: destination.whole_blocks(span.bytes),
                    ..span
                },
                &buffer,
                WriteFlags::Data,
                self.clone(),
                tag.into_usize(),
            );
        }
        drop(buffer);
        self.one_less();
    }

    /// A destination has been written, or could not be. Context: any.
    fn written(self: &Arc<Self>, tag: Tag, is_ok: bool) {
        let Some(destination) = self.destinations.get(tag.destination) else {
            return;
        };
        let is_last_of_wave = destination.end_write(tag.wave);
        if self.is_one_piece() {
            let failure = (!is_ok).then_some(Failure::WriteCow);
            self.saved(destination, failure, is_last_of_wave);
        } else if !is_ok {
            self.state.lock().failed |= failed_bit(tag.destination);
        }
        if is_last_of_wave {
            destination.live.commit_now();
        }
        self.one_less();
    }

    /// One write less is under way. Context: any.
    fn one_less(self: &Arc<Self>) {
        let mut state = self.state.lock();
        state.running = state.running.saturating_sub(1);
        let is_done = state.running == 0;
        drop(state);
        if is_done && self.is_one_piece() {
            self.origin.add_copying(self.chunks.saturating_neg());
        } else if is_done {
            self.queue();
        }
    }

    /// A piece has been written: on to the next one, with the same memory (rule R6).
    fn next(self: &Arc<Self>) {
        let written = self.state.lock().written.take();
        // Nobody else has it: whoever wrote from it let go of it before telling the end.
        let Some(shared) = written.and_then(Arc::into_unique_or_drop) else {
            self.state.lock().failed = u64::MAX;
            return self.end();
        };
        let mut shared = Pin::into_inner(shared);
        let buffer = core::mem::replace(&mut *shared, Buffer::empty());
        self.state.lock().shared = Some(shared);
        self.read(buffer);
    }

    /// The data is in memory: from here on, transient stores do without the origin.
    fn in_memory(&self) {
        let mut woken = BioList::new();
        let unread = self.state.lock().unread;
        for (index, destination) in self.destinations.iter().enumerate() {
            let saved = &destination.saved;
            if destination.live.persistent().is_some() || unread & failed_bit(index) != 0 {
                continue;
            }
            if let Some(mut slot) = self.origin.slot(saved.slot) {
                let range = slot.flight.advance(saved.item, Phase::Filling);
                slot.wake(range, &mut woken);
            }
        }
        self.origin.retry(woken);
    }

    /// The data of a destination is on its COW device, or never will be. Context: any.
    fn saved(&self, destination: &Destination, failure: Option<Failure>, is_now: bool) {
        let (live, saved) = (&destination.live, destination.saved);
        match failure {
            Some(why) => live.not_saved(saved.slot, saved.item, why),
            None => {
                live.stats.copies.add(1);
                live.stats.copied_chunks.add(saved.len);
                live.stats.shared_reads.add(u64::from(self.is_shared));
                if let Some(begun) = self.begun {
                    live.stats.copy_time.add(begun);
                }
                let urgency = match destination.is_urgent {
                    _ if is_now => Urgency::Now,
                    true => Urgency::Soon,
                    false => Urgency::Later,
                };
                live.saved(saved, urgency);
            }
        }
        // There are some only with a single destination. Their record is as volatile as that of
        // any other write of the snapshot (rule R2).
        let mut overlay = self.state.lock().overlay.take();
        while let Some(bio) = overlay.pop() {
            bio.end(failure.map_or(Ok(()), |_| Err(EIO)));
        }
    }

    /// The copy has come to its end, before anything was written or when all pieces have been.
    fn end(self: &Arc<Self>) {
        let state = self.state.lock();
        let (unread, failed) = (state.unread, state.failed);
        drop(state);
        for (index, destination) in self.destinations.iter().enumerate() {
            let failure = if unread & failed_bit(index) != 0 {
                Some(Failure::ReadOrigin)
            } else {
                (failed & failed_bit(index) != 0).then_some(Failure::WriteCow)
            };
            self.saved(destination, failure, false);
        }
        self.origin.add_copying(self.chunks.saturating_neg());
    }
}

/// Lays the data of bios over what has been read of a piece. Answers the bios.
fn lay_over(mut bios: BioList<Io>, piece: Sectors, buffer: &mut Buffer) -> BioList<Io> {
    let mut done = BioList::new();
    while let Some(bio) = bios.pop() {
        let into = bio.sectors().start.saturating_sub(piece.start);
        match bio.copy_to(buffer, (into * SECTOR_SIZE) as usize) {
            Ok(()) => {
                let _ = done.push(bio);
            }
            Err(e) => bio.end(Err(e)),
        }
    }
    done
}
