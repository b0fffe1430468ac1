// SPDX-License-Identifier: GPL-2.0

//! What this tool says of a device is what the module would do with it: both are given the
//! same images, good ones and bad ones, and the module's own scan decides.

#![deny(unsafe_code)]

use crate::{
    exception::{InsertError, Spare, Table},
    image::{Image, Origin},
    store::{
        area::{Refused, Scan, ScanError},
        format::{BadRecord, Header, Layout, Record},
    },
    units::{Chunk, ChunkSize},
    walk::{Holes, Step, Walk},
};
use kernel::prelude::{EINVAL, ENOMEM, GFP_KERNEL};
use proptest::prelude::*;
use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::PathBuf,
};

const ORIGIN_CHUNKS: u64 = 300;

pub(crate) struct TempFile(pub(crate) PathBuf);

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Writes an image with these records, and opens it.
pub(crate) fn image(size: ChunkSize, chunks: u64, records: &[Record]) -> (TempFile, Image, Layout) {
    let id = std::thread::current().id();
    let path = std::env::temp_dir().join(format!("snaprs.{}.{id:?}", std::process::id()));
    let path = TempFile(path);
    let origin = Origin {
        sectors: Some(ORIGIN_CHUNKS * size.sectors()),
        block_size: None,
    };
    let cow_sectors = chunks * size.sectors();
    let layout = Layout::new(size, cow_sectors, ORIGIN_CHUNKS * size.sectors()).unwrap();
    let file = File::create(&path.0).unwrap();
    file.set_len(cow_sectors * 512).unwrap();
    let header = Header {
        valid: true,
        chunk_size: size,
    };
    file.write_all_at(&header.encode(), 0).unwrap();
    for (number, record) in (0..).zip(records) {
        let (area, index) = (
            number / u64::from(layout.per_area),
            number % u64::from(layout.per_area),
        );
        let chunk = layout.area_chunk(area).unwrap();
        if chunk.0 < chunks {
            let at = layout.chunk_size.first_sector(chunk).0 * 512 + index * 16;
            file.write_all_at(&record.encode(), at).unwrap();
        }
    }
    let image = Image::open(&path.0, origin).unwrap();
    (path, image, layout)
}

/// What the module says of a device.
struct Verdict {
    /// How many records it took.
    taken: u64,
    /// The bad one at which it stopped.
    bad: Option<BadRecord>,
    /// Where the next record goes, and how many chunks are free.
    next: (u64, u32),
    free: u64,
}

/// Has the module's own scan read all records.
fn module(image: &Image, layout: &Layout) -> Verdict {
    let (mut table, mut spare) = (Table::new(), Spare::new());
    let mut scan = Scan::new(layout);
    let mut area = 0;
    while scan.wants().is_some() {
        let mut bytes = vec![0; layout.chunk_size.bytes() as usize];
        image.read_records(layout, area, 0, &mut bytes).unwrap();
        let taken = scan.area(&bytes, |record| loop {
            match table.insert(record.old, record.new, 1, &mut spare) {
                Ok(()) => return Ok(()),
                Err(InsertError::Overlap) => return Err(Refused::OldTwice),
                Err(InsertError::OutOfRange) => return Err(Refused::Failed(EINVAL)),
                Err(InsertError::NeedMemory) => spare
                    .refill(GFP_KERNEL)
                    .map_err(|_| Refused::Failed(ENOMEM))?,
            }
        });
        match taken {
            Ok(()) => area += 1,
            Err(ScanError::Bad(bad)) => {
                return Verdict {
                    taken: scan.records(),
                    bad: Some(bad),
                    next: (0, 0),
                    free: 0,
                }
            }
            Err(ScanError::Failed(e)) => panic!("{e:?}"),
        }
    }
    let taken = scan.records();
    let (allocator, cursor) = scan.finish().unwrap();
    Verdict {
        taken,
        bad: None,
        next: cursor.position(),
        free: allocator.free_chunks(),
    }
}

/// Records of which most are good.
fn records() -> impl Strategy<Value = Vec<Record>> {
    let good = (any::<bool>(), 0..ORIGIN_CHUNKS, 2..250u64);
    let stretch = (good, 1..40u64, prop::bool::weighted(0.03));
    prop::collection::vec(stretch, 0..12).prop_map(|stretches| {
        let mut records: Vec<Record> = Vec::new();
        for ((goes_on, old, new), len, wild) in stretches {
            let (old, new) = match records.last() {
                Some(last) if goes_on => (last.old.0 + 1, last.new.0 + 1),
                _ => (old, new),
            };
            for n in 0..len {
                let new = if wild { new * 1000 } else { new } + n;
                // Metadata areas of chunks of one sector are left out, mostly.
                if new % 33 != 1 || wild {
                    let (old, new) = (Chunk(old + n), Chunk(new));
                    records.push(Record { old, new });
                }
            }
        }
        records
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn it_says_what_the_module_says(records in records(), shift in 0..3u32, chunks in 3..260u64) {
        let size = ChunkSize::from_sectors(1 << shift).unwrap();
        let (_file, image, layout) = image(size, chunks, &records);
        let module = module(&image, &layout);

        let mut walk = Walk::new(&image, &layout, None);
        let mut found = Vec::new();
        while let Some(step) = walk.step() {
            match step {
                Step::Records(more) => found.extend(more),
                Step::Unreadable { error, .. } => panic!("{error}"),
            }
        }
        let first_bad = found.iter().find_map(|found| found.bad());
        prop_assert_eq!(first_bad, module.bad);
        if module.bad.is_some() {
            let good = found.iter().take_while(|found| found.error.is_none()).count() as u64;
            prop_assert_eq!(good, module.taken);
            return Ok(());
        }
        prop_assert_eq!(walk.count(), module.taken);
        prop_assert_eq!((walk.next().area, walk.next().index), module.next);

        // What is free is in the holes, or behind the last chunk in use.
        let used_end = walk.used().ranges().last().map_or(2, |range| range.end);
        let behind = (used_end..layout.usable_end()).filter(|c| !layout.is_metadata(Chunk(*c)));
        let free = Holes::of(&layout, walk.used()).chunks + behind.count() as u64;
        // The module leaves one unused for one at the end that is used and should not be.
        let left = free.min((used_end > layout.usable_end()).into());
        prop_assert_eq!(free - left, module.free);
    }
}
