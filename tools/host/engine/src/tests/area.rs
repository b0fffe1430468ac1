// SPDX-License-Identifier: GPL-2.0

//! The store's decisions: free chunks against a set, records against a disk that crashes.

use crate::exception::{MAX_ENTRY, MAX_NEW};
use crate::store::area::{
    Allocator, Cursor, Piece, PlanError, Refused, Scan, ScanError, Usage, Zeroing,
};
use crate::store::format::{Layout, Record, RecordError, RECORD_BYTES};
use crate::units::{Chunk, ChunkSize, Chunks};
use kernel::host::{self, Fail};
use kernel::prelude::{EINVAL, ENOMEM};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// A layout with chunks of so many sectors; 32 records an area for one sector.
fn layout(sectors: u64, chunks: u64) -> Layout {
    let size = ChunkSize::from_sectors(sectors).unwrap();
    Layout::new(size, sectors * chunks, sectors << 20).unwrap()
}

/// An allocator, and which chunks it should have.
struct Model {
    layout: Option<Layout>,
    allocator: Allocator,
    free: BTreeSet<u64>,
    /// How many of them stay unused.
    left: usize,
    used: BTreeSet<u64>,
    taken: Vec<Chunks>,
}

impl Model {
    fn new(layout: Option<Layout>, total: u64, used: &BTreeSet<u64>) -> Self {
        let may_use = |c: &u64| match &layout {
            Some(l) => !l.is_metadata(Chunk(*c)) && *c < l.usable_end(),
            None => true,
        };
        let mut free: BTreeSet<u64> = (0..total).filter(may_use).collect();
        let allocator = match &layout {
            Some(layout) => {
                let mut usage = Usage::new();
                for chunk in used {
                    assert!(usage.mark(Chunk(*chunk)).unwrap());
                }
                for chunk in used {
                    assert!(!usage.mark(Chunk(*chunk)).unwrap());
                    free.remove(chunk);
                }
                usage.into_allocator(layout).unwrap()
            }
            None => Allocator::transient(total),
        };
        // One more where the last chunk is used, which should not be.
        let end = layout.map_or(total, |l| l.usable_end());
        let has_used_it = used.last().is_some_and(|last| *last >= end);
        Self {
            layout,
            allocator,
            left: free.len().min(has_used_it.into()),
            free,
            used: used.clone(),
            taken: Vec::new(),
        }
    }

    fn check(&self) {
        let free = self.free.len() - self.left;
        assert_eq!(self.allocator.free_chunks(), free as u64);
        let next_free = self.allocator.next_free().0;
        assert!(self.taken.iter().all(|run| run.end <= next_free));
        assert!(self
            .layout
            .is_none_or(|l| next_free == l.total_chunks || !l.is_metadata(Chunk(next_free))));
    }

    fn alloc(&mut self, want: u64) -> Option<Chunks> {
        let run = self.allocator.alloc(want);
        match run {
            Some(run) => {
                assert!(run.len() >= 1 && run.len() <= want);
                for chunk in run.start..run.end {
                    assert!(self.free.remove(&chunk), "{chunk} was not free");
                }
                self.taken.push(run);
            }
            None => assert!(want == 0 || self.free.len() == self.left),
        }
        self.check();
        run
    }

    fn give_back(&mut self, which: usize) {
        if self.taken.is_empty() {
            return;
        }
        let run = self.taken.swap_remove(which % self.taken.len());
        if self.allocator.give_back(run) {
            self.free.extend(run.start..run.end);
        }
        self.check();
    }

    fn grow(&mut self, more: u64) {
        let Some(layout) = self.layout.as_mut() else {
            return;
        };
        let old_end = layout.usable_end();
        layout.total_chunks += more;
        let new = (old_end..layout.usable_end()).filter(|c| !layout.is_metadata(Chunk(*c)));
        self.free.extend(new.filter(|c| !self.used.contains(c)));
        self.allocator.set_total(layout.total_chunks);
        self.check();
    }
}

#[derive(Clone, Debug)]
enum Op {
    Alloc(u64),
    GiveBack(usize),
    Grow(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        10 => prop_oneof![Just(1u64), 0..6u64, 0..100u64].prop_map(Op::Alloc),
        3 => any::<usize>().prop_map(Op::GiveBack),
        1 => (0..70u64).prop_map(Op::Grow),
    ]
}

fn run_allocator(mut model: Model, ops: &[Op]) {
    model.check();
    for op in ops {
        match *op {
            Op::Alloc(want) => drop(model.alloc(want)),
            Op::GiveBack(which) => model.give_back(which),
            Op::Grow(more) => model.grow(more),
        }
    }
    // To the last chunk.
    while model.alloc(7).is_some() {}
    assert_eq!(model.free.len(), model.left);
}

proptest! {
    #![proptest_config(super::config(1))]

    /// No chunk twice, none that is metadata, none lost; holes are found again.
    #[test]
    fn chunks_of_a_persistent_store(
        total in prop_oneof![3..400u64, (1..12u64).prop_map(|areas| 1 + 33 * areas)],
        used in prop::collection::btree_set(0..400u64, 0..200),
        ops in prop::collection::vec(op(), 0..80),
    ) {
        let layout = layout(1, total);
        let used = used.into_iter()
            .filter(|c| *c < total && !layout.is_metadata(Chunk(*c)))
            .collect();
        run_allocator(Model::new(Some(layout), total, &used), &ops);
    }

    #[test]
    fn chunks_of_a_transient_store(
        total in 0..400u64,
        ops in prop::collection::vec(op(), 0..80),
    ) {
        run_allocator(Model::new(None, total, &BTreeSet::new()), &ops);
    }

    /// What is allocated in sequence is in sequence, but for the areas between.
    #[test]
    fn runs_stay_long(wants in prop::collection::vec(1..50u64, 1..20)) {
        let layout = layout(1, 4000);
        let mut allocator = Allocator::fresh(&layout);
        let mut next = 2;
        for mut want in wants {
            while want > 0 {
                let run = allocator.alloc(want).unwrap();
                prop_assert_eq!(run.start, next);
                next = run.end + u64::from(layout.is_metadata(Chunk(run.end)));
                prop_assert!(run.len() == want || next != run.end);
                want -= run.len();
            }
        }
    }
}

#[test]
fn a_hole_is_used_when_it_fits_or_when_nothing_else_is_left() {
    let layout = layout(1, 33 + 10);
    // Free: 5, 10..13, and 40..43 behind.
    let mut used: BTreeSet<u64> = (2..40).filter(|c| *c != 34).collect();
    for hole in [5, 10, 11, 12] {
        used.remove(&hole);
    }
    let mut model = Model::new(Some(layout), 43, &used);
    let chunks = |start, end| Some(Chunks { start, end });
    assert_eq!(model.allocator.next_free(), Chunk(40));
    assert_eq!(model.alloc(2), chunks(40, 42));
    assert_eq!(model.alloc(1), chunks(5, 6));
    assert_eq!(model.alloc(4), chunks(42, 43));
    assert_eq!(model.alloc(2), chunks(10, 12));
    assert_eq!(model.alloc(2), chunks(12, 13));
    assert_eq!(model.alloc(1), None);
    // What comes back is used again, and the end moves back.
    assert!(model.allocator.give_back(Chunks { start: 42, end: 43 }));
    assert_eq!(model.allocator.next_free(), Chunk(42));
    assert_eq!(model.allocator.alloc(9), chunks(42, 43));
}

#[test]
fn a_hole_does_not_reach_over_an_area() {
    let layout = layout(1, 100);
    let used = BTreeSet::from([30, 40, 98, 99]);
    let mut model = Model::new(Some(layout), 100, &used);
    let mut runs = Vec::new();
    while let Some(run) = model.alloc(1000) {
        runs.push((run.start, run.end));
    }
    runs.sort_unstable();
    // Of the last one a chunk is left, as the last chunk of the device is used.
    assert_eq!(runs, [(2, 30), (31, 34), (35, 40), (41, 67), (68, 97)]);
}

#[test]
fn the_size_of_the_device_limits_what_is_handed_out() {
    // One chunk more than an area and its data: the last one is not used, since the next
    // area is not there.
    let layout = layout(1, 34);
    let mut allocator = Allocator::fresh(&layout);
    assert_eq!(allocator.free_chunks(), 31);
    assert_eq!(allocator.alloc(100), Some(Chunks { start: 2, end: 33 }));
    assert_eq!(allocator.alloc(1), None);
    assert_eq!(allocator.next_free(), Chunk(33));
    // It grows by the area, then by one more.
    allocator.set_total(35);
    assert_eq!(allocator.alloc(100), Some(Chunks { start: 33, end: 34 }));
    assert_eq!(allocator.next_free(), Chunk(35));
    assert_eq!(allocator.alloc(100), None);
    allocator.set_total(36);
    assert_eq!(allocator.alloc(100), Some(Chunks { start: 35, end: 36 }));
    // It shrinks: nothing beyond the end is handed out again.
    allocator.reserve().unwrap();
    assert!(allocator.give_back(Chunks { start: 20, end: 28 }));
    assert!(allocator.give_back(Chunks { start: 10, end: 13 }));
    assert_eq!(allocator.free_chunks(), 11);
    allocator.set_total(25);
    assert_eq!(allocator.free_chunks(), 3);
    assert!(!allocator.give_back(Chunks { start: 23, end: 26 }));
    assert_eq!(allocator.alloc(3), Some(Chunks { start: 10, end: 13 }));
    assert_eq!(allocator.alloc(10), None);
}

#[test]
fn the_longest_hole_goes_first() {
    let layout = layout(1, 30);
    // Free: 4..7, 10, 15..17, 20..25, and nothing behind.
    let free = [4, 5, 6, 10, 15, 16, 20, 21, 22, 23, 24];
    let used = (2..30).filter(|c| !free.contains(c)).collect();
    let mut model = Model::new(Some(layout), 30, &used);
    let chunks = |start, end| Some(Chunks { start, end });
    assert_eq!(model.alloc(3), chunks(4, 7));
    assert_eq!(model.alloc(4), chunks(20, 24));
    // The rest of it before another.
    assert_eq!(model.alloc(6), chunks(24, 25));
    assert_eq!(model.alloc(6), chunks(15, 17));
    assert_eq!(model.alloc(6), chunks(10, 11));
    assert_eq!(model.alloc(6), None);
}

#[test]
fn what_was_handed_out_last_comes_back_over_an_area() {
    let mut allocator = Allocator::fresh(&layout(1, 100));
    let run = allocator.alloc(32).unwrap();
    assert_eq!((run.end, allocator.next_free()), (34, Chunk(35)));
    assert!(allocator.give_back(Chunks { start: 30, end: 34 }));
    assert_eq!(allocator.next_free(), Chunk(30));
    assert_eq!(allocator.alloc(100), Some(Chunks { start: 30, end: 34 }));
    assert_eq!(allocator.alloc(1), Some(Chunks { start: 35, end: 36 }));
}

#[test]
fn the_exception_table_limits_what_is_handed_out() {
    let mut allocator = Allocator::transient(u64::MAX);
    let run = allocator.alloc(u64::MAX);
    assert_eq!(
        run,
        Some(Chunks {
            start: 0,
            end: MAX_ENTRY
        })
    );
    assert_eq!(allocator.free_chunks(), MAX_NEW - MAX_ENTRY);
}

#[test]
fn marking_chunks_may_fail_for_memory() {
    let mut usage = Usage::new();
    host::fail(Fail::Always);
    let done = usage.mark(Chunk(100));
    host::fail(Fail::Never);
    assert_eq!(done, Err(ENOMEM));
    assert_eq!(usage.mark(Chunk(100)), Ok(true));
    assert_eq!(usage.mark(Chunk(100)), Ok(false));
    host::fail(Fail::Always);
    let done = usage.into_allocator(&layout(1, 200));
    host::fail(Fail::Never);
    assert_eq!(done.err(), Some(ENOMEM));
}

#[test]
fn whole_blocks_are_written() {
    let piece = |first, count| Piece {
        area: 0,
        first,
        count,
    };
    assert_eq!(piece(0, 1).bytes(512), 0..512);
    assert_eq!(piece(31, 1).bytes(512), 0..512);
    assert_eq!(piece(31, 2).bytes(512), 0..1024);
    assert_eq!(piece(32, 32).bytes(512), 512..1024);
    assert_eq!(piece(40, 100).bytes(4096), 0..4096);
}

/// A COW device and what is known of it in memory. Sectors that were written and not
/// flushed may or may not be there after a crash.
struct Disk {
    layout: Layout,
    block: usize,
    bytes: Vec<u8>,
    /// The next origin chunk to be recorded.
    next_old: u64,
    /// What an unlucky device holds where nothing was written: good records.
    stale: u64,
}

impl Disk {
    fn new(layout: Layout, block: usize) -> Self {
        let mut disk = Self {
            layout,
            block,
            bytes: Vec::new(),
            next_old: 0,
            stale: 500_000,
        };
        disk.grow_to(layout.total_chunks);
        let first = disk.area_range(0);
        disk.bytes[first].fill(0);
        disk
    }

    fn chunk_bytes(&self) -> usize {
        self.layout.chunk_size.bytes() as usize
    }

    fn area_range(&self, area: u64) -> std::ops::Range<usize> {
        let at = self.layout.area_chunk(area).unwrap().0 as usize * self.chunk_bytes();
        at..at + self.chunk_bytes()
    }

    /// The device grows, and the new part is full of records that could be good ones.
    fn grow_to(&mut self, chunks: u64) {
        self.layout.total_chunks = chunks;
        let end = chunks as usize * self.chunk_bytes();
        while self.bytes.len() < end {
            self.stale += 1;
            let record = Record {
                old: Chunk(self.stale),
                // Any data chunk that is there.
                new: Chunk(2 + self.stale % 31),
            };
            self.bytes.extend(record.encode());
        }
    }

    /// The device becomes smaller; what is cut off does not come back.
    fn shrink_to(&mut self, chunks: u64) {
        self.layout.total_chunks = chunks;
        self.bytes.truncate(chunks as usize * self.chunk_bytes());
    }

    /// Reads as the kernel's `snapshot` target does: area by area until an empty record. It
    /// cannot open a device that ends before there is one.
    fn read_as_c(&self) -> Result<(Vec<Record>, u64), &'static str> {
        let (mut records, mut next_free) = (Vec::new(), 2);
        for area in 0.. {
            let bytes = self
                .bytes
                .get(self.area_range(area))
                .ok_or("beyond the end")?;
            for index in 0..self.layout.per_area {
                let Some(record) = Record::decode(bytes, index) else {
                    next_free += u64::from(next_free % self.layout.stride() == 1);
                    return Ok((records, next_free));
                };
                next_free = next_free.max(record.new.0 + 1);
                records.push(record);
            }
        }
        unreachable!()
    }

    fn scan(&self) -> (Vec<Record>, Allocator, Cursor) {
        let mut scan = Scan::new(&self.layout);
        let mut records = Vec::new();
        while let Some(chunk) = scan.wants() {
            let at = chunk.0 as usize * self.chunk_bytes();
            scan.area(&self.bytes[at..at + self.chunk_bytes()], |record| {
                records.push(record);
                Ok(())
            })
            .expect("only good records were written");
        }
        assert_eq!(scan.records(), records.len() as u64);
        let (allocator, cursor) = scan.finish().unwrap();
        (records, allocator, cursor)
    }

    /// Writes blocks, of which only those reach the disk for which `reaches` is true.
    fn write(&mut self, blocks: &[(usize, Vec<u8>)], mut reaches: impl FnMut() -> bool) {
        for (at, bytes) in blocks {
            if reaches() {
                self.bytes[*at..*at + bytes.len()].copy_from_slice(bytes);
            }
        }
    }
}

/// What the store keeps in memory between one opening and the next crash.
struct Store {
    allocator: Allocator,
    cursor: Cursor,
    /// The areas as they are to be on the disk.
    images: BTreeMap<u64, Vec<u8>>,
    committed: Vec<Record>,
}

impl Store {
    fn image(&mut self, disk: &Disk, area: u64) -> &mut Vec<u8> {
        let size = disk.chunk_bytes();
        self.images.entry(area).or_insert_with(|| vec![0; size])
    }

    /// The blocks that make `piece` on the disk what it is in memory.
    fn blocks(&mut self, disk: &Disk, piece: Piece) -> Vec<(usize, Vec<u8>)> {
        let range = piece.bytes(disk.block as u32);
        let range = range.start as usize..range.end as usize;
        let start = disk.area_range(piece.area).start;
        let block = disk.block;
        let image = self.image(disk, piece.area);
        assert!(range.end <= image.len());
        range
            .step_by(block)
            .map(|at| (start + at, image[at..at + block].to_vec()))
            .collect()
    }

    /// The blocks that make what has to be zero so.
    fn zero_blocks(&mut self, disk: &Disk, zeroing: &Zeroing) -> Vec<(usize, Vec<u8>)> {
        let from = zeroing.first as usize * RECORD_BYTES;
        self.image(disk, zeroing.area)[from..].fill(0);
        self.blocks(disk, zeroing.piece())
    }

    fn open(disk: &Disk) -> Self {
        let (committed, allocator, cursor) = disk.scan();
        let (area, index) = cursor.position();
        let mut images = BTreeMap::new();
        if area < disk.layout.areas() {
            let mut image = disk.bytes[disk.area_range(area)].to_vec();
            image[index as usize * RECORD_BYTES..].fill(0);
            images.insert(area, image);
        }
        Self {
            allocator,
            cursor,
            images,
            committed,
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Commits so many records, in batches of at most so many bytes.
    Commit { records: u64, max_bytes: u64 },
    /// Removes the last records, so many pieces of at most so many records.
    Remove { most: u32, pieces: u32 },
    /// Zeroes ahead.
    Zero,
    /// Commits, and the power fails: of the blocks under way some reach the disk.
    CrashInCommit { records: u64, seed: u64 },
    /// The same while the last records are removed.
    CrashInRemoval { most: u32, pieces: u32, seed: u64 },
    /// The power fails while an area is zeroed.
    CrashInZeroing { seed: u64 },
    /// Closed and opened again.
    Reopen,
    /// Allocated, and never recorded.
    Forget(u64),
    /// The device grows by so many chunks.
    Grow(u64),
    /// It becomes smaller, but for what is in use.
    Shrink(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let records = || prop_oneof![Just(1u64), 1..10u64, 1..200u64];
    let max_bytes = prop_oneof![Just(1u64), Just(512), Just(1024), Just(1 << 20)];
    let most = || prop_oneof![Just(1u32), 1..50u32, 1..1025u32];
    prop_oneof![
        8 => (records(), max_bytes).prop_map(|(records, max_bytes)| Step::Commit {
            records,
            max_bytes
        }),
        4 => (most(), 1..4u32).prop_map(|(most, pieces)| Step::Remove { most, pieces }),
        4 => (most(), 1..4u32, any::<u64>())
            .prop_map(|(most, pieces, seed)| Step::CrashInRemoval { most, pieces, seed }),
        4 => Just(Step::Zero),
        4 => (records(), any::<u64>())
            .prop_map(|(records, seed)| Step::CrashInCommit { records, seed }),
        2 => any::<u64>().prop_map(|seed| Step::CrashInZeroing { seed }),
        1 => Just(Step::Reopen),
        1 => (1..20u64).prop_map(Step::Forget),
        1 => (1..40u64).prop_map(Step::Grow),
        1 => (1..40u64).prop_map(Step::Shrink),
    ]
}

/// Bits in an order that only the seed knows.
fn bits(mut seed: u64) -> impl FnMut() -> bool {
    seed |= 1;
    move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed & 16 != 0
    }
}

/// The device changes its size. Nothing that is in use is cut off, nor the area in which the next
/// record goes with the chunk behind it.
fn resize(disk: &mut Disk, store: &mut Store, by: i64) {
    let (area, _) = store.cursor.position();
    let behind = |area| disk.layout.area_chunk(area).map_or(0, |chunk| chunk.0 + 2);
    let in_use = store.allocator.next_free().0.max(behind(area));
    let total = disk.layout.total_chunks;
    if by < 0 {
        disk.shrink_to(total.saturating_add_signed(by).max(in_use).min(total));
    } else {
        disk.grow_to(total.saturating_add_signed(by));
    }
    store.allocator.set_total(disk.layout.total_chunks);
    store.cursor.set_layout(&disk.layout);
}

/// Commits records; if `crash` is given, the last batch is under way when the power fails.
/// Answers false if the device is full.
fn commit(
    disk: &mut Disk,
    store: &mut Store,
    records: u64,
    max_bytes: u64,
    crash: Option<u64>,
) -> bool {
    let mut waiting: Vec<Record> = Vec::new();
    while (waiting.len() as u64) < records {
        let Some(run) = store.allocator.alloc(records - waiting.len() as u64) else {
            break;
        };
        for new in run.start..run.end {
            let old = Chunk(disk.next_old);
            disk.next_old += 1;
            waiting.push(Record {
                old,
                new: Chunk(new),
            });
        }
    }
    let is_full = (waiting.len() as u64) < records;
    // Copies end in any order.
    waiting.reverse();

    while !waiting.is_empty() {
        let block = disk.block as u32;
        let batch = match store.cursor.plan(waiting.len() as u64, block, max_bytes) {
            Ok(batch) => batch,
            Err(PlanError::NeedZeroed(zeroing)) => {
                let blocks = store.zero_blocks(disk, &zeroing);
                disk.write(&blocks, || true);
                store.cursor.zeroed(&zeroing);
                continue;
            }
            Err(PlanError::NoSpace) => panic!("a chunk was free, and a record has no place"),
        };
        let count = batch.records() as usize;
        assert!(count >= 1 && count <= waiting.len());
        let mut blocks = Vec::new();
        let mut next = waiting.iter();
        for piece in batch.pieces() {
            for index in piece.first..piece.first + piece.count {
                let record = next.next().unwrap();
                let image = store.image(disk, piece.area);
                assert_eq!(Record::decode(image, index), None, "written twice");
                assert!(record.encode_into(image, index));
            }
            blocks.extend(store.blocks(disk, piece));
        }
        assert_eq!(waiting.len() - next.len(), count);
        assert!(blocks.len() as u64 <= (max_bytes / u64::from(block)).max(1));
        let batch_records: Vec<Record> = waiting.drain(..count).collect();

        if let (Some(seed), true) = (crash, waiting.is_empty()) {
            disk.write(&blocks, bits(seed));
            let before = store.committed.clone();
            *store = Store::open(disk);
            // All that was committed, and of what was under way the first few or none.
            let (kept, extra) = store.committed.split_at(before.len());
            assert_eq!(kept, before);
            assert!(batch_records.starts_with(extra));
            return true;
        }
        disk.write(&blocks, || true);
        store.cursor.advance(&batch);
        store.committed.extend(batch_records);
    }
    !is_full
}

/// Removes the last records, so many pieces of them; if `crash` is given, the last piece is under
/// way when the power fails.
fn remove(disk: &mut Disk, store: &mut Store, most: u32, pieces: u32, crash: Option<u64>) {
    for nth in 1..=pieces {
        let Some(piece) = store.cursor.last(most) else {
            assert!(store.committed.is_empty());
            return;
        };
        let left = store.committed.len() - piece.count as usize;
        // As the store does it: the blocks that the records are in are read, and written again
        // without them and without whatever lies behind them.
        let first = piece.first as usize * RECORD_BYTES;
        let range = piece.bytes(disk.block as u32);
        let (from, to) = (range.start as usize, range.end as usize);
        let mut image = disk.bytes[disk.area_range(piece.area)].to_vec();
        for (index, record) in (piece.first..).zip(&store.committed[left..]) {
            assert_eq!(Record::decode(&image, index), Some(*record));
        }
        image[first..to].fill(0);
        let start = disk.area_range(piece.area).start;
        let blocks: Vec<(usize, Vec<u8>)> = (from..to)
            .step_by(disk.block)
            .map(|at| (start + at, image[at..at + disk.block].to_vec()))
            .collect();

        if let (Some(seed), true) = (crash, nth == pieces) {
            disk.write(&blocks, bits(seed));
            let before = std::mem::take(&mut store.committed);
            *store = Store::open(disk);
            // All whose removal had not begun, and of the others the first few or none.
            assert!(store.committed.starts_with(&before[..left]));
            assert!(before.starts_with(&store.committed));
            return;
        }
        disk.write(&blocks, || true);
        store.cursor.retreat(&piece);
        store.committed.truncate(left);
        // What is written next has nothing behind it, or it is zeroed before.
        image[first..].fill(0);
        store.images.insert(piece.area, image);
    }
}

fn check(disk: &Disk, store: &Store) {
    let (records, next_free) = disk.read_as_c().expect("C could not open it");
    assert_eq!(records, store.committed);
    let (records, allocator, cursor) = disk.scan();
    assert_eq!(records, store.committed);
    assert_eq!(cursor.position(), store.cursor.position());
    assert_eq!(allocator.next_free().0, next_free);
    let used: BTreeSet<u64> = records.iter().map(|r| r.new.0).collect();
    assert_eq!(used.len(), records.len());
    assert_eq!(store.cursor.records(&disk.layout), records.len() as u64);
    assert_eq!(cursor.records(&disk.layout), records.len() as u64);
    // The status line of the C target right after it opened the device.
    let area = cursor.position().0;
    assert_eq!(cursor.metadata_chunks(), area + 2);
}

fn simulate(sectors: u64, chunks: u64, block: usize, steps: &[Step]) {
    let mut disk = Disk::new(layout(sectors, chunks), block);
    let mut store = Store {
        allocator: Allocator::fresh(&disk.layout),
        cursor: Cursor::fresh(&disk.layout),
        images: BTreeMap::new(),
        committed: Vec::new(),
    };
    for step in steps {
        match *step {
            Step::Commit { records, max_bytes } => {
                commit(&mut disk, &mut store, records, max_bytes, None);
            }
            Step::Zero => {
                while let Some(zeroing) = store.cursor.wants_zeroing() {
                    let blocks = store.zero_blocks(&disk, &zeroing);
                    disk.write(&blocks, || true);
                    store.cursor.zeroed(&zeroing);
                }
            }
            Step::CrashInCommit { records, seed } => {
                commit(&mut disk, &mut store, records, 1 << 20, Some(seed));
            }
            Step::Remove { most, pieces } => remove(&mut disk, &mut store, most, pieces, None),
            Step::CrashInRemoval { most, pieces, seed } => {
                remove(&mut disk, &mut store, most, pieces, Some(seed));
            }
            Step::CrashInZeroing { seed } => {
                if let Some(zeroing) = store.cursor.wants_zeroing() {
                    let blocks = store.zero_blocks(&disk, &zeroing);
                    disk.write(&blocks, bits(seed));
                }
                let before = store.committed.clone();
                store = Store::open(&disk);
                assert_eq!(store.committed, before);
            }
            Step::Reopen => store = Store::open(&disk),
            Step::Forget(count) => drop(store.allocator.alloc(count)),
            Step::Grow(more) => resize(&mut disk, &mut store, more as i64),
            Step::Shrink(less) => resize(&mut disk, &mut store, -(less as i64)),
        }
        check(&disk, &store);
    }
    // What was forgotten or removed is found again, and the device can be filled to the last
    // chunk.
    store = Store::open(&disk);
    while commit(&mut disk, &mut store, 50, 1 << 20, None) {}
    check(&disk, &store);
    let layout = &disk.layout;
    let usable = (0..layout.usable_end()).filter(|c| !layout.is_metadata(Chunk(*c)));
    assert_eq!(store.committed.len(), usable.count());
}

proptest! {
    #![proptest_config(super::config(1))]

    /// 32 records an area in one block: a batch goes over several areas.
    #[test]
    fn records_survive_crashes_in_small_areas(
        chunks in 3..if cfg!(miri) { 70 } else { 250u64 },
        steps in prop::collection::vec(step(), 0..if cfg!(miri) { 8 } else { 40 }),
    ) {
        simulate(1, chunks, 512, &steps);
    }

    /// 128 records an area in four blocks: of a batch the later ones may be there alone.
    #[test]
    #[cfg_attr(miri, ignore = "slow")]
    fn records_survive_crashes_in_large_areas(
        chunks in 3..600u64,
        steps in prop::collection::vec(step(), 0..40),
    ) {
        simulate(4, chunks, 512, &steps);
    }

    /// The same with blocks of 2 KiB.
    #[test]
    #[cfg_attr(miri, ignore = "slow")]
    fn records_survive_crashes_in_large_blocks(
        chunks in 3..600u64,
        steps in prop::collection::vec(step(), 0..40),
    ) {
        simulate(8, chunks, 2048, &steps);
    }

    /// Whatever an area holds: records that are good, or an error that names one; no panic.
    #[test]
    fn no_area_is_a_panic(
        records in prop::collection::vec((0..40u64, 0..80u64), 0..40),
        noise in prop::collection::vec(any::<u8>(), 0..512),
        raw: bool,
    ) {
        let layout = layout(1, 70);
        let mut bytes = vec![0u8; 512];
        if raw {
            bytes[..noise.len()].copy_from_slice(&noise);
        }
        for (index, (old, new)) in records.iter().enumerate() {
            let record = Record { old: Chunk(*old), new: Chunk(*new) };
            record.encode_into(&mut bytes, index as u32);
        }
        let mut scan = Scan::new(&layout);
        let mut seen = BTreeSet::new();
        match scan.area(&bytes, |r| match seen.insert(r.old) {
            true => Ok(()),
            false => Err(Refused::OldTwice),
        }) {
            Ok(()) => prop_assert!(seen.len() as u64 == scan.records()),
            Err(ScanError::Bad(bad)) => {
                let record = Record::decode(&bytes, bad.index);
                prop_assert_eq!(record, Some(bad.record));
                // Those before were good.
                prop_assert_eq!(scan.records(), u64::from(bad.index));
            }
            Err(e) => prop_assert!(false, "{:?}", e),
        }
    }
}

/// A cursor, and which records there should be: a number for each, the later the higher.
struct Tail {
    layout: Layout,
    cursor: Cursor,
    /// By area: its records, or nothing where it may hold anything.
    areas: Vec<Option<Vec<u64>>>,
    records: Vec<u64>,
    next: u64,
}

impl Tail {
    /// A device of so many areas, the last one without any of its data.
    fn new(areas: u64) -> Self {
        let layout = layout(1, 2 + 33 * (areas - 1));
        let mut known = vec![None; areas as usize];
        known[0] = Some(Vec::new());
        Self {
            layout,
            cursor: Cursor::fresh(&layout),
            areas: known,
            records: Vec::new(),
            next: 0,
        }
    }

    fn zero(&mut self, zeroing: &Zeroing) {
        let area = &mut self.areas[zeroing.area as usize];
        assert_eq!(*area, None, "zeroed for no reason");
        assert_eq!(zeroing.first, 0);
        *area = Some(Vec::new());
        self.cursor.zeroed(zeroing);
    }

    /// Appends so many records, or as many as have a place.
    fn append(&mut self, count: u64) {
        let end = self.next + count;
        while self.next < end {
            match self.cursor.plan(end - self.next, 512, 1024) {
                Ok(batch) => {
                    for piece in batch.pieces() {
                        for index in piece.first..piece.first + piece.count {
                            let area = self.areas[piece.area as usize].as_mut();
                            let area = area.expect("an area that may hold anything");
                            assert_eq!(area.len(), index as usize, "not behind the last one");
                            area.push(self.next);
                            self.records.push(self.next);
                            self.next += 1;
                            if area.len() == 32 {
                                // Who reads on must find an end.
                                assert!(self.areas[piece.area as usize + 1].is_some());
                            }
                        }
                    }
                    self.cursor.advance(&batch);
                }
                Err(PlanError::NeedZeroed(zeroing)) => self.zero(&zeroing),
                Err(PlanError::NoSpace) => {
                    assert_eq!(self.records.len(), self.areas.len() * 32 - 1);
                    break;
                }
            }
            self.check();
        }
    }

    /// Removes one piece of at most so many records; answers whether there was any.
    fn remove(&mut self, most: u32) -> bool {
        let Some(piece) = self.cursor.last(most) else {
            assert!(self.records.is_empty());
            return false;
        };
        let area = self.areas[piece.area as usize].as_mut().unwrap();
        assert_eq!(area.len() as u32, piece.first + piece.count, "not the last");
        assert_eq!(piece.count, most.min(area.len() as u32));
        let removed = area.split_off(piece.first as usize);
        let left = self.records.len() - removed.len();
        assert_eq!(self.records.split_off(left), removed);
        self.cursor.retreat(&piece);
        true
    }

    /// What a status line shows of a snapshot that is being merged, in chunks: those allocated,
    /// and the metadata.
    fn status(&self) -> (u64, u64) {
        let metadata = self.cursor.metadata_chunks();
        (metadata + self.cursor.records(&self.layout), metadata)
    }

    fn check(&self) {
        let count = self.records.len() as u64;
        assert_eq!(self.cursor.records(&self.layout), count);
        assert_eq!(self.cursor.position(), (count / 32, (count % 32) as u32));
        assert_eq!(self.status(), (count / 32 + 2 + count, count / 32 + 2));
    }
}

proptest! {
    #![proptest_config(super::config(1))]

    /// Records come and go at the end, over the borders of areas.
    #[test]
    fn records_come_and_go_at_the_end(
        areas in 1..8u64,
        steps in prop::collection::vec(
            (any::<bool>(), prop_oneof![Just(1u32), Just(32), 1..100u32], any::<bool>()),
            0..60,
        ),
    ) {
        let mut tail = Tail::new(areas);
        for (is_more, count, is_ahead) in steps {
            if is_more {
                tail.append(u64::from(count));
            } else {
                tail.remove(count);
            }
            tail.check();
            while let Some(zeroing) = tail.cursor.wants_zeroing().filter(|_| is_ahead) {
                tail.zero(&zeroing);
            }
        }
        // What userspace looks at while all of it is merged: it never grows, and at the end, and
        // not before, all that is allocated is metadata.
        let mut before = tail.status();
        while tail.remove(7) {
            tail.check();
            let now = tail.status();
            prop_assert!(now.0 < before.0 && now.1 <= before.1);
            prop_assert_eq!(now.0 == now.1, tail.records.is_empty());
            before = now;
        }
        prop_assert_eq!(tail.status(), (2, 2));
        prop_assert_eq!(tail.cursor.position(), (0, 0));
        // There is room for all of it again.
        tail.append(u64::MAX / 2);
    }
}

#[test]
fn the_last_records_are_those_of_one_area() {
    let layout = layout(1, 1000);
    let piece = |area, first, count| Some(Piece { area, first, count });
    assert_eq!(Cursor::fresh(&layout).last(9), None);
    let at = |area, index| Cursor::resume(&layout, area, index, true);
    assert_eq!(at(0, 5).last(9), piece(0, 0, 5));
    assert_eq!(at(0, 5).last(2), piece(0, 3, 2));
    assert_eq!(at(3, 5).last(1024), piece(3, 0, 5));
    assert_eq!(at(3, 0).last(1024), piece(2, 0, 32));
    assert_eq!(at(3, 0).last(1), piece(2, 31, 1));
    assert_eq!(at(3, 5).records(&layout), 3 * 32 + 5);
}

#[test]
fn what_a_torn_removal_leaves_is_zeroed_before_anything_is_written_there() {
    // 128 records in four blocks; all but the first two are removed, and of the blocks only the
    // first reaches the disk.
    let mut disk = Disk::new(layout(4, 400), 512);
    let mut store = Store {
        allocator: Allocator::fresh(&disk.layout),
        cursor: Cursor::fresh(&disk.layout),
        images: BTreeMap::new(),
        committed: Vec::new(),
    };
    assert!(commit(&mut disk, &mut store, 100, 1 << 20, None));
    let piece = store.cursor.last(98).unwrap();
    let range = piece.bytes(512);
    assert_eq!((range.start, range.end), (0, 4 * 512));
    let start = disk.area_range(0).start;
    disk.bytes[start + 2 * RECORD_BYTES..start + 512].fill(0);
    let before = store.committed.clone();
    store = Store::open(&disk);
    assert_eq!(store.committed, before[..2]);
    // One more is removed first: the blocks behind are still what they were.
    remove(&mut disk, &mut store, 1, 1, None);
    assert!(disk.bytes[start + 512..start + 1024]
        .iter()
        .any(|b| *b != 0));
    let wanted = store.cursor.wants_zeroing().unwrap();
    assert_eq!((wanted.area, wanted.first), (0, 1));
    assert_eq!(
        store.cursor.plan(1, 512, 512),
        Err(PlanError::NeedZeroed(wanted))
    );
    assert!(commit(&mut disk, &mut store, 31, 1 << 20, None));
    check(&disk, &store);
    assert_eq!(store.committed.len(), 32);
}

#[test]
fn an_area_is_filled_only_when_the_next_one_is_zero() {
    let layout = layout(1, 1000);
    let mut cursor = Cursor::fresh(&layout);
    let batch = cursor.plan(100, 512, 1 << 20).unwrap();
    assert_eq!(batch.records(), 31);
    cursor.advance(&batch);
    assert_eq!(cursor.position(), (0, 31));
    let Err(PlanError::NeedZeroed(zeroing)) = cursor.plan(100, 512, 1 << 20) else {
        panic!("the last record was given away");
    };
    assert_eq!((zeroing.area, zeroing.first), (1, 0));
    cursor.zeroed(&zeroing);
    let batch = cursor.plan(100, 512, 1 << 20).unwrap();
    let pieces: Vec<Piece> = batch.pieces().collect();
    let piece = |area, first, count| Piece { area, first, count };
    assert_eq!(pieces, [piece(0, 31, 1), piece(1, 0, 31)]);
    assert_eq!(batch.records(), 32);
    // One block only.
    assert_eq!(cursor.plan(100, 512, 512).unwrap().records(), 1);
}

#[test]
fn zeroing_keeps_ahead() {
    let layout = layout(1, 1 + 33 * 3);
    let mut cursor = Cursor::fresh(&layout);
    let mut zeroed = Vec::new();
    while let Some(zeroing) = cursor.wants_zeroing() {
        zeroed.push(zeroing);
        cursor.zeroed(&zeroing);
    }
    // What is told twice or late changes nothing.
    cursor.zeroed(&zeroed[0]);
    assert_eq!(cursor.wants_zeroing(), None);
    let zeroed: Vec<u64> = zeroed.iter().map(|z| z.area).collect();
    // The fourth area is not there.
    assert_eq!(zeroed, [1, 2]);
    let batch = cursor.plan(1000, 512, 1 << 20).unwrap();
    // The last record stays free.
    assert_eq!(batch.records(), 3 * 32 - 1);
    cursor.advance(&batch);
    assert_eq!(cursor.plan(1, 512, 1 << 20), Err(PlanError::NoSpace));
    assert_eq!(cursor.metadata_chunks(), 4);
    // It grows.
    let mut grown = layout;
    grown.total_chunks += 1;
    cursor.set_layout(&grown);
    assert_eq!(cursor.wants_zeroing().map(|z| z.area), Some(3));
}

#[test]
fn a_device_that_becomes_smaller() {
    let four = layout(1, 1 + 33 * 4);
    let two = layout(1, 1 + 33 * 2);
    let mut cursor = Cursor::fresh(&four);
    let mut zeroed = Vec::new();
    while let Some(zeroing) = cursor.wants_zeroing() {
        cursor.zeroed(&zeroing);
        zeroed.push(zeroing);
    }
    assert_eq!(zeroed.last().map(|z| z.area), Some(2));
    cursor.set_layout(&two);
    assert!(cursor.is_gone(&zeroed[1]));
    assert_eq!(cursor.wants_zeroing(), None);
    // What was under way meanwhile changes nothing.
    cursor.zeroed(&zeroed[1]);
    let batch = cursor.plan(1000, 512, 1 << 20).unwrap();
    assert_eq!(batch.records(), 2 * 32 - 1);
    // It grows, and nobody knows what is there now.
    cursor.set_layout(&four);
    assert_eq!(cursor.wants_zeroing().map(|z| z.area), Some(2));
    assert_eq!(cursor.plan(1000, 512, 1 << 20), Ok(batch));
}

#[test]
fn records_stay_whatever_is_said_of_the_size() {
    // Cut off and put back while they are being written.
    let (one, four) = (layout(1, 1 + 33), layout(1, 1 + 33 * 4));
    for (records, position) in [(40, (1, 8)), (64, (2, 0))] {
        let mut cursor = Cursor::fresh(&four);
        while let Some(zeroing) = cursor.wants_zeroing() {
            cursor.zeroed(&zeroing);
        }
        let batch = cursor.plan(records, 512, 1 << 20).unwrap();
        cursor.set_layout(&one);
        cursor.advance(&batch);
        cursor.set_layout(&four);
        assert_eq!(cursor.position(), position);
        assert_eq!(cursor.wants_zeroing().map(|z| z.area), Some(2));
    }
}

#[test]
fn what_is_cut_off_while_it_is_zeroed_does_not_count() {
    let (one, two) = (layout(1, 1 + 33), layout(1, 1 + 33 * 2));
    let mut cursor = Cursor::fresh(&two);
    let zeroing = cursor.wants_zeroing().unwrap();
    cursor.set_layout(&one);
    cursor.set_layout(&two);
    assert!(cursor.is_gone(&zeroing));
    cursor.zeroed(&zeroing);
    let again = cursor.wants_zeroing().unwrap();
    assert_eq!((again.area, cursor.is_gone(&again)), (1, false));
}

#[test]
fn a_full_last_area_is_not_the_end() {
    // The device was larger: no program writes the last record without an area behind it.
    let layout = layout(1, 34);
    let mut area = vec![0u8; 512];
    for index in 0..32 {
        let record = Record {
            old: Chunk(u64::from(index)),
            new: Chunk(2 + u64::from(index)),
        };
        assert!(record.encode_into(&mut area, index));
    }
    let mut scan = Scan::new(&layout);
    assert_eq!(scan.wants(), Some(Chunk(1)));
    scan.area(&area, |_| Ok(())).unwrap();
    assert_eq!(scan.wants(), None);
    assert!(!scan.has_end());
    assert!(scan.finish().is_err());
}

#[test]
fn a_bad_record_stops_the_scan() {
    let layout = layout(1, 1000);
    let bad = |records: [(u64, u64); 3]| {
        let mut area = vec![0u8; 512];
        for (index, (old, new)) in (0..).zip(records) {
            let record = Record {
                old: Chunk(old),
                new: Chunk(new),
            };
            record.encode_into(&mut area, index);
        }
        let mut scan = Scan::new(&layout);
        let mut seen = BTreeSet::new();
        let done = scan.area(&area, |r| match seen.insert(r.old) {
            true => Ok(()),
            false => Err(Refused::OldTwice),
        });
        match done {
            Err(ScanError::Bad(bad)) => (bad.area, bad.index, bad.error),
            other => panic!("{other:?}"),
        }
    };
    let (header, far) = ((3, 1), (3, 1000));
    assert_eq!(bad([(1, 2), (2, 3), header]), (0, 2, RecordError::Metadata));
    assert_eq!(
        bad([(1, 2), far, (4, 4)]),
        (0, 1, RecordError::BeyondDevice)
    );
    assert_eq!(bad([(1, 2), (2, 3), (3, 2)]), (0, 2, RecordError::NewTwice));
    assert_eq!(bad([(1, 2), (1, 3), (3, 4)]), (0, 1, RecordError::OldTwice));
    assert_eq!(
        bad([(1 << 20, 2), (1, 3), (3, 4)]),
        (0, 0, RecordError::BeyondOrigin)
    );
}

#[test]
fn a_scan_tells_what_failed() {
    let layout = layout(1, 1000);
    let mut area = vec![0u8; 512];
    let record = Record {
        old: Chunk(1),
        new: Chunk(2),
    };
    record.encode_into(&mut area, 0);
    let mut scan = Scan::new(&layout);
    assert_eq!(
        scan.area(&area, |_| Err(Refused::Failed(ENOMEM))),
        Err(ScanError::Failed(ENOMEM))
    );
    let mut scan = Scan::new(&layout);
    assert_eq!(
        scan.area(&area[..511], |_| Ok(())),
        Err(ScanError::Failed(EINVAL))
    );
    assert!(scan.finish().is_err());
    let mut scan = Scan::new(&layout);
    host::fail(Fail::Always);
    let done = scan.area(&area, |_| Ok(()));
    host::fail(Fail::Never);
    assert_eq!(done, Err(ScanError::Failed(ENOMEM)));
}
