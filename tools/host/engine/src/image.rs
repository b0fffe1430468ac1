// SPDX-License-Identifier: GPL-2.0

//! The store over the image of a COW device: it is opened as `tenant.rs` opens one, records are
//! added as `commit.rs` adds them, and taken away as `merger.rs` takes them.

use crate::{
    dm::{self, Buffer, Client, Device, WriteFlags},
    dm_err,
    exception::Table,
    naive::{self, Setup, View},
    pending::{Flight, Saved, SnapId},
    store::{
        format::Layout,
        load,
        persistent::{Next, Persistent, LANE_BYTES},
        NoChunk, Store,
    },
    table::{check_block_size, Device as Which},
    units::{Chunk, ChunkSize, Sector, Sectors, SpanSize},
};
use kernel::prelude::{Result, EINVAL, GFP_KERNEL};
use std::collections::{BTreeMap, BTreeSet};
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
    /// The lines of the log.
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
    let spans = SpanSize::MIN.with_chunks(chunk_size);
    let sectors = setup.origin_sectors;
    let loaded = load::load(client, cow, &found, &layout, sectors, spans)?;
    Ok((chunk_size, found.is_valid, loaded))
}

impl Opened {
    fn persistent(&self) -> &Persistent {
        self.store.persistent().expect("it is one")
    }

    /// Old chunk and new chunk of each record, in the order of the old ones.
    fn records(&self) -> Vec<(u64, u64)> {
        let runs = self.tables.iter().flat_map(Table::iter);
        let mut all: Vec<_> = runs
            .flat_map(|run| (0..run.len).map(move |i| (run.old.0 + i, run.new.0 + i)))
            .collect();
        all.sort_unstable();
        all
    }

    fn image(&self) -> Vec<u8> {
        let mut bytes = Buffer::new(self.device.sectors() as usize * 512, GFP_KERNEL).unwrap();
        let all = self.device.sectors() as usize * 512;
        let whole = all - all % self.device.logical_block_size() as usize;
        self.client
            .read(&self.device, Sector(0), &mut bytes, whole)
            .unwrap();
        let mut image = vec![0; whole];
        bytes.read(0, &mut image).unwrap();
        image
    }

    /// Writes all records that wait, as `commit.rs` does.
    fn commit(&mut self, is_ahead: bool) {
        let lane = LANE_BYTES.max(self.device.logical_block_size() as usize);
        let mut lanes = [(); 2].map(|()| Buffer::new(lane, GFP_KERNEL).unwrap());
        let mut ended = kernel::prelude::KVec::with_capacity(8, GFP_KERNEL).unwrap();
        let mut was_stuck = false;
        loop {
            if is_ahead || was_stuck {
                self.zero_one();
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
                        let flags = WriteFlags::FlushFua;
                        let done =
                            self.client
                                .write(&self.device, write.at, lane, write.bytes, flags);
                        done.expect("records are within the device");
                    }
                    assert_ne!(self.persistent().finish(), 0);
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
        let flags = WriteFlags::FlushFua;
        let done = self.client.write(&self.device, at, &blocks, bytes, flags);
        done.expect("records are within the device");
        self.persistent().removed(&piece, &blocks);
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

/// Opens an image, and compares what the store makes of it with the naive reader; then goes on
/// with it as the module would: fills it to the last chunk, reads it again, merges it. `seed` says
/// how. Panics when anything is not as it should be. Answers what the image shows.
pub fn check(image: &[u8], setup: &Setup, seed: u64) -> View {
    let wanted = naive::read(image, setup);
    let attempt = open(image, setup);
    assert_eq!(attempt.view(), sorted(wanted.clone()));
    let opened = match attempt.opened {
        Err(after) => {
            assert!(!attempt.log.is_empty(), "there is no reason in the log");
            assert!(after == image, "a device that is refused was written to");
            return wanted;
        }
        Ok(opened) => opened,
    };
    if let View::Records { chunk, records } = &wanted {
        go_on(opened, setup, *chunk, records.clone(), Random(seed));
    }
    wanted
}

fn go_on(
    mut opened: Opened,
    setup: &Setup,
    chunk: u64,
    mut records: Vec<(u64, u64)>,
    mut random: Random,
) {
    let shows = |image: &[u8], records: &[(u64, u64)]| {
        let records = records.to_vec();
        assert_eq!(naive::read(image, setup), View::Records { chunk, records });
    };
    shows(&opened.image(), &records);

    // Every chunk of data that no record names is handed out, once.
    let sectors = opened.device.sectors();
    let used: BTreeSet<u64> = records.iter().map(|r| r.1).collect();
    let mut free: BTreeSet<u64> = naive::data_chunks(chunk, sectors).into_iter().collect();
    free.retain(|c| !used.contains(c));
    assert_eq!(opened.store.free_chunks(), free.len() as u64);
    let mut flight = Flight::new(1).unwrap();
    let item = flight.start_read(SnapId(1), Sectors::ALL).unwrap();
    let origin_chunks = setup.origin_sectors.div_ceil(chunk);
    let mapped: BTreeSet<u64> = records.iter().map(|r| r.0).collect();
    let mut olds = (0..origin_chunks)
        .filter(|c| !mapped.contains(c))
        .peekable();
    loop {
        let want = 1 + random.below(9);
        let run = match opened.store.alloc(want, sectors) {
            Ok(run) => run,
            Err(NoChunk::NoMemory) => {
                opened.store.grow().unwrap();
                continue;
            }
            Err(NoChunk::Full) => break assert!(free.is_empty(), "chunks are lost: {free:?}"),
        };
        for new in run.start..run.end {
            assert!(free.remove(&new), "chunk {new} is not free");
            let Some(old) = olds.next() else { continue };
            let saved = Saved {
                old: Chunk(old),
                new: Chunk(new),
                len: 1,
                slot: 0,
                item,
            };
            opened.persistent().add(saved);
            records.push((old, new));
        }
        if random.below(4) == 0 {
            let is_ahead = random.below(2) == 0;
            opened.commit(is_ahead);
        }
        if olds.peek().is_none() {
            break;
        }
    }
    opened.commit(false);
    let image = opened.image();
    shows(&image, &records);

    // All of it is found again; then the records go, the last ones first.
    let again = open(&image, setup);
    let all: BTreeMap<u64, u64> = records.iter().copied().collect();
    let all = all.into_iter().collect();
    assert_eq!(
        again.view(),
        View::Records {
            chunk,
            records: all
        }
    );
    let mut again = again.opened.ok().expect("it was just seen");
    again.persistent().start_merge();
    while let Some(gone) = again.merge(1 + random.below(40) as u32) {
        let left = records.len() - gone.len();
        assert_eq!(records.split_off(left), gone);
        shows(&again.image(), &records);
    }
    assert!(records.is_empty());
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
