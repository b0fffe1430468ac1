// SPDX-License-Identifier: GPL-2.0

//! The store over the image of a COW device: it is opened as `tenant.rs` opens one, records are
//! added as `commit.rs` adds them, and taken away as `merger.rs` takes them.

use crate::{
    dm::{self, Block, Buffer, Client, Device, WriteFlags},
    dm_err,
    exception::{Run, Table},
    naive::{self, Setup, View},
    pending::{Flight, Saved, SnapId},
    store::{
        format::Layout,
        load,
        persistent::{Next, Persistent, LANE_BYTES},
        NoChunk, Store,
    },
    table::{check_block_size, Device as Which},
    units::{Chunk, ChunkSize, Sectors, SpanSize},
};
use kernel::prelude::{Result, EINVAL, GFP_KERNEL};
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// An activated snapshot.
pub struct Opened {
    chunk_size: ChunkSize,
    is_valid: bool,
    store: Store,
    tables: Vec<Table>,
    client: Arc<Client>,
    device: Device,
}

/// What came of an attempt to activate one.
pub struct Attempt {
    /// The errors in the log.
    pub log: Vec<String>,
    /// The snapshot, or the image as it is after the refusal.
    pub opened: std::result::Result<Opened, Vec<u8>>,
}

impl Attempt {
    /// The outcome; the records in the order of their old chunks.
    pub fn view(&self) -> View {
        match &self.opened {
            Err(_) => View::Refused,
            Ok(opened) if !opened.is_valid => View::Invalid,
            Ok(opened) => View::Records {
                chunk: opened.chunk_size.sectors(),
                records: opened.records(),
            },
        }
    }
}

/// Activates a snapshot, as the constructor of its target does.
pub fn open(image: &[u8], setup: &Setup) -> Attempt {
    dm::log::take();
    let device = Device::new(image.to_vec(), setup.block);
    let client = Arc::new(Client);
    let opened = match activate(&client, &device, setup) {
        Ok((chunk_size, is_valid, loaded)) => Ok(Opened {
            chunk_size,
            is_valid,
            store: Store::Persistent(loaded.store),
            tables: loaded.tables.into_iter().collect(),
            client,
            device,
        }),
        Err(_) => Err(device.into_bytes()),
    };
    let log = dm::log::take();
    Attempt { log, opened }
}

/// How chunks are dealt out to the slots.
fn spans(chunk_size: ChunkSize) -> SpanSize {
    SpanSize::MIN.with_chunks(chunk_size)
}

fn activate(
    client: &Arc<Client>,
    cow: &Device,
    setup: &Setup,
) -> Result<(ChunkSize, bool, load::Loaded)> {
    let asked = ChunkSize::from_sectors(setup.asked)?;
    let refuse = |what: &dyn std::fmt::Display| {
        dm_err!("{}", what);
        EINVAL
    };
    let too_small = "the COW device is too small";
    if cow.sectors() * 512 < u64::from(setup.block) {
        return Err(refuse(&too_small));
    }
    let found = load::read_header(client, cow, asked)?;
    let chunk_size = found.chunk_size;
    for which in [Which::Origin, Which::Cow] {
        check_block_size(chunk_size, which, setup.block).map_err(|e| refuse(&e))?;
    }
    let layout = Layout::new(chunk_size, cow.sectors(), setup.origin_sectors).ok_or(EINVAL)?;
    if !layout.is_large_enough() {
        return Err(refuse(&too_small));
    }
    let sectors = setup.origin_sectors;
    let loaded = load::load(client, cow, &found, &layout, sectors, spans(chunk_size))?;
    Ok((chunk_size, found.is_valid, loaded))
}

impl Opened {
    fn persistent(&self) -> &Persistent {
        self.store.persistent().expect("it is one")
    }

    /// Old chunk and new chunk of each record, in the order of the old ones.
    fn records(&self) -> Vec<(u64, u64)> {
        let spans = spans(self.chunk_size);
        let slot_of = |run: &Run| spans.slot_of(self.chunk_size.first_sector(run.old));
        for (slot, table) in self.tables.iter().enumerate() {
            assert!(table.iter().all(|run| slot_of(&run) as usize == slot));
        }
        let runs = self.tables.iter().flat_map(Table::iter);
        let mut all: Vec<_> = runs
            .flat_map(|run| (0..run.len).map(move |i| (run.old.0 + i, run.new.0 + i)))
            .collect();
        all.sort_unstable();
        all
    }

    /// Writes all records that wait, as `commit.rs` does.
    fn commit(&mut self, is_ahead: bool, witness: &mut Witness<'_>) {
        let lane = LANE_BYTES.max(self.device.logical_block_size() as usize);
        let mut lanes = [(); 2].map(|()| Buffer::new(lane, GFP_KERNEL).unwrap());
        let mut ended = kernel::prelude::KVec::with_capacity(8, GFP_KERNEL).unwrap();
        let mut was_stuck = false;
        loop {
            if is_ahead || was_stuck {
                self.zero_one();
                witness.see_all(self.device.take_written());
            }
            match self.persistent().begin(&mut lanes) {
                Next::Nothing => return,
                Next::Full => panic!("no room for a record of a chunk that was handed out"),
                Next::Zero => {
                    assert!(!is_ahead && !was_stuck, "an area has to be zeroed twice");
                    was_stuck = true;
                }
                Next::Commit { writes } => {
                    for (write, lane) in writes.iter().zip(&lanes) {
                        let Some(write) = write else { continue };
                        let flags = WriteFlags::Fua;
                        let done =
                            self.client
                                .write(&self.device, write.at, lane, write.bytes, flags);
                        done.expect("records are within the device");
                    }
                    let count = self.persistent().finish() as usize;
                    assert_ne!(count, 0);
                    // Both lanes write at a time.
                    let blocks = self.device.take_written().into_iter().flatten().collect();
                    witness.see(blocks, witness.durable + count);
                    while self.persistent().take_committed(&mut ended) {
                        ended.clear();
                    }
                    ended.clear();
                    was_stuck = false;
                }
            }
        }
    }

    /// Zeroes what should be zeroed next, if anything should.
    fn zero_one(&mut self) {
        if let Some((zeroing, at, bytes)) = self.persistent().wants_zeroing() {
            let zeroes = Buffer::zeroes(bytes as usize, GFP_KERNEL).unwrap();
            let flags = WriteFlags::Fua;
            let done = self
                .client
                .write(&self.device, at, &zeroes, bytes as usize, flags);
            done.expect("areas are within the device");
            self.persistent().zeroed(&zeroing);
        }
    }

    /// Takes the last records away, `most` at a time, as a merge does. Answers them.
    fn merge(&mut self, most: u32) -> Option<Vec<(u64, u64)>> {
        let (piece, at, bytes) = self.persistent().last_records(most)?;
        let mut blocks = Buffer::new(bytes, GFP_KERNEL).unwrap();
        let read = self.client.read(&self.device, at, &mut blocks, bytes);
        read.expect("records are within the device");
        let records = self.persistent().decode(&piece, &blocks).unwrap();
        self.persistent().remove(&piece, &mut blocks).unwrap();
        let flags = WriteFlags::Fua;
        let done = self.client.write(&self.device, at, &blocks, bytes, flags);
        done.expect("records are within the device");
        self.persistent().removed(&piece);
        Some(records.iter().map(|r| (r.old.0, r.new.0)).collect())
    }
}

/// Numbers without an order, from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % limit
    }
}

/// The records of a view, sorted by their old chunks.
fn sorted(view: View) -> View {
    match view {
        View::Records { chunk, mut records } => {
            records.sort_unstable();
            View::Records { chunk, records }
        }
        other => other,
    }
}

/// Follows a COW device from write to write, and cuts its power in the middle of each.
struct Witness<'a> {
    setup: &'a Setup,
    chunk: u64,
    /// All records in their order, of which the first `durable` are on the device.
    records: Vec<(u64, u64)>,
    durable: usize,
    /// What is on it.
    image: Vec<u8>,
    /// What one of the cuts has left.
    torn: Option<Vec<u8>>,
    random: Random,
}

impl Witness<'_> {
    /// These blocks have been written, in no certain order, and then so many records are durable.
    /// A cut before the end loses none that stays, and shows none that was never there.
    fn see(&mut self, blocks: Vec<Block>, durable: usize) {
        let (low, high) = (durable.min(self.durable), durable.max(self.durable));
        for _ in 0..if blocks.len() > 1 { 3 } else { 0 } {
            let mut image = self.image.clone();
            for block in &blocks {
                if self.random.below(2) == 0 {
                    block.put(&mut image);
                }
            }
            self.shows(&image, low..=high);
            if self.random.below(4) == 0 {
                self.torn = Some(image);
            }
        }
        for block in blocks {
            block.put(&mut self.image);
        }
        self.durable = durable;
        self.shows(&self.image, durable..=durable);
    }

    /// There were these writes, one after the other, and the device shows the same as before.
    fn see_all(&mut self, writes: Vec<Vec<Block>>) {
        for blocks in writes {
            self.see(blocks, self.durable);
        }
    }

    /// The device has been opened. It was written to only where something had to be zeroed.
    fn see_opened(&mut self, device: &Device) {
        let (chunk, count) = (self.chunk, self.durable as u64);
        let is_fresh = self.image.starts_with(&[0; 4]);
        let has_leftovers = naive::has_leftovers(&self.image, chunk, count);
        let writes = device.take_written();
        assert_eq!(!writes.is_empty(), is_fresh || has_leftovers);
        self.see_all(writes);
        assert!(!naive::has_leftovers(&self.image, chunk, count));
        if is_fresh {
            let behind_header = &self.image[16..self.setup.block as usize];
            assert!(behind_header.iter().all(|byte| *byte == 0));
        }
    }

    /// An image has the first records, so many of them.
    fn shows(&self, image: &[u8], count: RangeInclusive<usize>) {
        let View::Records { chunk, records } = naive::read(image, self.setup) else {
            panic!("the device cannot be used any more");
        };
        assert!(
            count.contains(&records.len()),
            "{} records, not {count:?}",
            records.len()
        );
        assert_eq!(
            (chunk, &*records),
            (self.chunk, &self.records[..records.len()])
        );
    }
}

/// From so many images, each left by a cut of the one before, a check goes on.
const CUTS: u32 = 2;

/// Opens an image, and compares what the store makes of it with the naive reader; then goes on
/// with it as the module would: fills it to the last chunk, reads it again, merges it. Cuts the
/// power meanwhile, and does the same with what is left. `seed` says how. Panics when anything is
/// not as it should be. Answers what the image shows.
pub fn check(image: &[u8], setup: &Setup, seed: u64) -> View {
    let wanted = naive::read(image, setup);
    let mut torn = look(image, setup, Random(seed));
    for cut in 0..CUTS.into() {
        let Some(image) = torn else { break };
        torn = look(&image, setup, Random(seed ^ cut << 32));
    }
    wanted
}

/// Does so with one image; answers what a cut has left.
fn look(image: &[u8], setup: &Setup, random: Random) -> Option<Vec<u8>> {
    let wanted = naive::read(image, setup);
    let attempt = open(image, setup);
    assert_eq!(attempt.view(), sorted(wanted.clone()));
    let opened = match attempt.opened {
        Err(after) => {
            assert!(!attempt.log.is_empty(), "there is no reason in the log");
            assert!(after == image, "a device that is refused was written to");
            return None;
        }
        Ok(opened) => opened,
    };
    let View::Records { chunk, records } = wanted else {
        let written = opened.device.take_written();
        assert!(
            written.is_empty(),
            "a device that is invalid was written to"
        );
        return None;
    };
    let mut witness = Witness {
        setup,
        chunk,
        durable: records.len(),
        records,
        image: image.to_vec(),
        torn: None,
        random,
    };
    witness.see_opened(&opened.device);
    fill(opened, &mut witness);
    merge(&mut witness);
    witness.torn
}

/// Fills a device to the last chunk of either side.
fn fill(mut opened: Opened, witness: &mut Witness<'_>) {
    let Setup { origin_sectors, .. } = *witness.setup;
    // Every chunk of data that no record names is handed out, once.
    let sectors = opened.device.sectors();
    let used: BTreeSet<u64> = witness.records.iter().map(|r| r.1).collect();
    let data = naive::data_chunks(witness.chunk, sectors);
    let end = data.last().map_or(0, |c| c + 1);
    let mut free: BTreeSet<u64> = data.into_iter().filter(|c| !used.contains(c)).collect();
    // Where the kernel's target has used a chunk that should stay unused, another one does.
    let has_used_it = used.last().is_some_and(|last| *last >= end);
    let left = free.len().min(has_used_it.into());
    assert_eq!(opened.store.free_chunks(), (free.len() - left) as u64);
    let mut flight = Flight::new(1).unwrap();
    let item = flight.start_read(SnapId(1), Sectors::ALL).unwrap();
    let origin_chunks = origin_sectors.div_ceil(witness.chunk);
    let mapped: BTreeSet<u64> = witness.records.iter().map(|r| r.0).collect();
    let olds: Vec<u64> = (0..origin_chunks).filter(|c| !mapped.contains(c)).collect();
    let mut olds = olds.as_slice();
    // Many records at a time are in several blocks.
    let rarity = [1, 4, 40][witness.random.below(3) as usize];
    while let Some(&old) = olds.first() {
        let ahead = olds.iter().zip(old..).take_while(|(a, b)| **a == *b);
        let want = (ahead.count() as u64).min(1 + witness.random.below(9));
        let run = match opened.store.alloc(want, || sectors) {
            Ok(run) => run,
            Err(NoChunk::NoMemory) => {
                opened.store.grow().unwrap();
                continue;
            }
            Err(NoChunk::Full) => {
                assert_eq!(free.len(), left, "chunks are lost: {free:?}");
                break;
            }
        };
        for (old, new) in (old..).zip(run.start..run.end) {
            assert!(free.remove(&new), "chunk {new} is not free");
            witness.records.push((old, new));
        }
        opened.persistent().add(Saved {
            old: Chunk(old),
            new: Chunk(run.start),
            len: run.len(),
            slot: 0,
            item,
        });
        olds = &olds[run.len() as usize..];
        if witness.random.below(rarity) == 0 {
            let is_ahead = witness.random.below(2) == 0;
            opened.commit(is_ahead, witness);
        }
    }
    opened.commit(false, witness);
    assert_eq!(witness.durable, witness.records.len());
}

/// Opens a device once more, finds all of it again, and takes the records away, the last ones
/// first.
fn merge(witness: &mut Witness<'_>) {
    let again = open(&witness.image, witness.setup);
    let records = View::Records {
        chunk: witness.chunk,
        records: witness.records.clone(),
    };
    assert_eq!(again.view(), sorted(records));
    let mut again = again.opened.ok().expect("it was just seen");
    witness.see_opened(&again.device);
    again.persistent().start_merge();
    while let Some(gone) = again.merge(1 + witness.random.below(40) as u32) {
        let left = witness.durable - gone.len();
        assert_eq!(witness.records[left..witness.durable], gone);
        let blocks = again.device.take_written().into_iter().flatten().collect();
        witness.see(blocks, left);
        let (image, left) = (&witness.image, left as u64);
        assert!(!naive::has_leftovers(image, witness.chunk, left));
    }
    assert_eq!(witness.durable, 0);
}

/// Makes an image from any bytes, and [`check`]s it. The first six are what is around the device
/// and its size; the others are laid into the header and the areas, one area after the other, so
/// that a short input reaches far.
pub fn check_bytes(bytes: &[u8]) {
    let [around, origin, size_low, size_high, seed, filler, metadata @ ..] = bytes else {
        return;
    };
    let setup = Setup {
        block: 512 << (around & 1),
        asked: 1 << (around >> 1 & 7),
        origin_sectors: 1 + u64::from(*origin) * 5,
    };
    let sectors = u64::from(u16::from_le_bytes([*size_low, *size_high]) % 400);
    let mut image = vec![*filler; sectors as usize * 512];
    let (header, mut records) = metadata.split_at(metadata.len().min(16));
    if let Some(place) = image.get_mut(..header.len()) {
        place.copy_from_slice(header);
    }
    let said = header.get(12).map_or(1, |byte| u64::from(*byte));
    let chunk = if [1, 2, 4, 8, 16].contains(&said) {
        said
    } else {
        1
    };
    for area in 0.. {
        let at = (naive::area_chunk(chunk, area) * chunk * 512) as usize;
        let Some(place) = image.get_mut(at..at + chunk as usize * 512) else {
            break;
        };
        let (now, rest) = records.split_at(records.len().min(place.len()));
        place.fill(0);
        place[..now.len()].copy_from_slice(now);
        records = rest;
        if records.is_empty() {
            break;
        }
    }
    check(&image, &setup, u64::from(*seed));
}
