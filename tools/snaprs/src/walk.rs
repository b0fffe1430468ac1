// SPDX-License-Identifier: GPL-2.0

//! Reads the records in their order, and looks at each as the module does when it opens the
//! device; but where the module stops, this goes on.

#![deny(unsafe_code)]

use crate::{
    chunkset::ChunkSet,
    image::Image,
    progress::Progress,
    store::format::{BadRecord, Layout, Record, RecordError, HEADER_CHUNKS, RECORD_BYTES},
    units::{Chunk, Chunks},
};
use serde::Serialize;
use std::io;

/// How many records are read at a time, within an area.
const PIECE: u64 = 1 << 16;

/// The number of records in a sector: a crash leaves all of a sector's records or none that
/// were written together.
const PER_SECTOR: u32 = 512 / RECORD_BYTES as u32;

/// Where a record stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Place {
    pub(crate) area: u64,
    pub(crate) index: u32,
}

/// A record, and what is wrong with it.
pub(crate) struct Found {
    pub(crate) place: Place,
    pub(crate) record: Record,
    pub(crate) error: Option<RecordError>,
}

impl Found {
    /// The record with what is wrong with it, as the module names it.
    pub(crate) fn bad(&self) -> Option<BadRecord> {
        self.error.map(|error| BadRecord {
            area: self.place.area,
            index: self.place.index,
            record: self.record,
            error,
        })
    }
}

/// What was read next.
pub(crate) enum Step {
    /// Records of one area.
    Records(Vec<Found>),
    /// Records that cannot be read.
    Unreadable {
        from: Place,
        count: u32,
        error: io::Error,
    },
}

/// Where the records end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// There is an empty record. If its old chunk is not empty, that is odd. Of the records
    /// behind it in its sector, so many are not zero, which is odd as well.
    Empty { at: Place, old: u64, behind: u32 },
    /// The device has no area behind this last one, which is full.
    Device,
    /// A live snapshot has no more.
    Live,
}

impl End {
    /// The end at a record that is number `index` of those in `bytes`. The rest of its sector is
    /// in there too, and is looked at there: read once more, it could hold records that were
    /// appended meanwhile.
    fn empty(at: Place, bytes: &[u8], index: u32) -> Self {
        let mut rest = bytes.chunks_exact(RECORD_BYTES).skip(index as usize);
        let old = rest.next().and_then(|record| record.first_chunk());
        let in_sector = PER_SECTOR - 1 - at.index % PER_SECTOR;
        let behind = rest.take(in_sector as usize).filter(is_filled).count();
        Self::Empty {
            at,
            old: old.map_or(0, |old| u64::from_le_bytes(*old)),
            behind: behind as u32,
        }
    }

    /// The record at the end, if it is not empty: its new chunk is the header.
    pub(crate) fn odd(self) -> Option<Found> {
        match self {
            Self::Empty { at, old, .. } if old != 0 => Some(Found {
                place: at,
                record: Record {
                    old: Chunk(old),
                    new: Chunk(0),
                },
                error: Some(RecordError::Header),
            }),
            _ => None,
        }
    }
}

/// Goes through the records.
pub(crate) struct Walk<'a> {
    image: &'a Image,
    layout: Layout,
    next: Place,
    records: u64,
    end: Option<End>,
    /// Chunks of the COW device that are in use.
    used: ChunkSet,
    /// Chunks of the origin that have a record.
    saved: ChunkSet,
    progress: Progress,
}

impl<'a> Walk<'a> {
    /// Nothing has been read yet. `what` is shown while it goes on.
    pub(crate) fn new(image: &'a Image, layout: &Layout, what: Option<&'static str>) -> Self {
        Self {
            image,
            layout: *layout,
            next: Place { area: 0, index: 0 },
            records: 0,
            end: None,
            used: ChunkSet::default(),
            saved: ChunkSet::default(),
            progress: Progress::new(what, layout.areas()),
        }
    }

    /// Reads on; `None` at the end.
    pub(crate) fn step(&mut self) -> Option<Step> {
        if self.end.is_some() {
            return None;
        }
        let left = match &self.image.live {
            Some(live) => live.records().saturating_sub(self.records),
            None => u64::MAX,
        };
        if left == 0 {
            self.end = Some(End::Live);
            return None;
        }
        if self.next.area >= self.layout.areas() {
            self.end = Some(End::Device);
            return None;
        }
        let from = self.next;
        let room = u64::from(self.layout.per_area - from.index);
        let count = room.min(PIECE).min(left) as u32;
        let mut bytes = vec![0; count as usize * RECORD_BYTES];
        let read = self
            .image
            .read_records(&self.layout, from.area, from.index, &mut bytes);
        if let Err(error) = read {
            // As if they were all there: what comes behind them may still be worth reading.
            self.advance(count);
            return Some(Step::Unreadable { from, count, error });
        }
        let mut found = Vec::with_capacity(count as usize);
        for index in 0..count {
            let place = Place {
                area: from.area,
                index: from.index + index,
            };
            let Some(record) = Record::decode(&bytes, index) else {
                self.end = Some(End::empty(place, &bytes, index));
                break;
            };
            let error = self.judge(&record);
            found.push(Found {
                place,
                record,
                error,
            });
        }
        self.advance(found.len() as u32);
        Some(Step::Records(found))
    }

    fn advance(&mut self, count: u32) {
        self.records += u64::from(count);
        self.next.index += count;
        if self.next.index >= self.layout.per_area {
            self.next = Place {
                area: self.next.area + 1,
                index: 0,
            };
        }
        self.progress.at(self.next.area, self.records);
    }

    /// What is wrong with a record, in the order in which the module looks.
    fn judge(&mut self, record: &Record) -> Option<RecordError> {
        if let Err(error) = self.layout.check(record) {
            return Some(error);
        }
        if !self.used.insert(record.new.0) {
            return Some(RecordError::NewTwice);
        }
        (!self.saved.insert(record.old.0)).then_some(RecordError::OldTwice)
    }

    /// How many records there were, bad ones among them.
    pub(crate) fn count(&self) -> u64 {
        self.records
    }

    /// Where the next record would stand.
    pub(crate) fn next(&self) -> Place {
        self.next
    }

    /// Where the records end, once they have been read.
    pub(crate) fn end(&self) -> Option<End> {
        self.end
    }

    /// The chunks of the COW device that records use.
    pub(crate) fn used(&self) -> &ChunkSet {
        &self.used
    }

    /// The chunks of the origin that have a record.
    pub(crate) fn into_saved(self) -> ChunkSet {
        self.saved
    }
}

/// Chunks before the last one in use that no record uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub(crate) struct Holes {
    /// How many places where chunks are free.
    pub(crate) places: u64,
    /// How many chunks.
    pub(crate) chunks: u64,
}

impl Holes {
    /// The holes between the chunks that are in use.
    pub(crate) fn of(layout: &Layout, used: &ChunkSet) -> Self {
        let mut holes = Self::default();
        let mut free_from = HEADER_CHUNKS;
        for range in used.ranges() {
            holes.add(
                layout,
                Chunks {
                    start: free_from,
                    end: range.start,
                },
            );
            free_from = range.end;
        }
        holes
    }

    /// Counts a range that no record uses, and that may have metadata areas in it.
    fn add(&mut self, layout: &Layout, free: Chunks) {
        let areas_before = |chunk: u64| {
            chunk
                .saturating_sub(HEADER_CHUNKS)
                .div_ceil(layout.stride())
        };
        let areas = areas_before(free.end) - areas_before(free.start);
        let chunks = free.len() - areas;
        if chunks == 0 {
            return;
        }
        let at_ends = u64::from(layout.is_metadata(Chunk(free.start)))
            + u64::from(layout.is_metadata(Chunk(free.end - 1)));
        self.chunks += chunks;
        // Areas side by side there are none, so each that is not at an end parts two places.
        self.places += 1 + areas - at_ends;
    }
}

/// What stands where no record should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub(crate) struct Remains {
    /// How many records are not zero.
    pub(crate) filled: u64,
    /// How many of these could be records of this snapshot.
    pub(crate) likely: u64,
}

impl Remains {
    /// Looks at the records of an area from number `from` up to `end`.
    pub(crate) fn find(
        image: &Image,
        layout: &Layout,
        area: u64,
        from: u32,
        end: u32,
    ) -> io::Result<Self> {
        let mut remains = Self::default();
        let mut from = from;
        while from < end {
            let count = u64::from(end - from).min(PIECE) as u32;
            let mut bytes = vec![0; count as usize * RECORD_BYTES];
            image.read_records(layout, area, from, &mut bytes)?;
            for (index, record) in bytes.chunks_exact(RECORD_BYTES).enumerate() {
                if is_filled(&record) {
                    remains.filled += 1;
                    let record = Record::decode(&bytes, index as u32);
                    let likely = record.is_some_and(|record| layout.check(&record).is_ok());
                    remains.likely += u64::from(likely);
                }
            }
            from += count;
        }
        Ok(remains)
    }
}

/// Whether a record is not zero.
fn is_filled(record: &&[u8]) -> bool {
    record.iter().any(|byte| *byte != 0)
}

/// The first record behind the sector of that one.
pub(crate) fn next_sector(index: u32, layout: &Layout) -> u32 {
    (index / PER_SECTOR + 1)
        .saturating_mul(PER_SECTOR)
        .min(layout.per_area)
}
