// SPDX-License-Identifier: GPL-2.0

//! The on-disk format, byte by byte.

use crate::store::format::{
    BadRecord, Header, HeaderError, Layout, Record, RecordError, HEADER_BYTES, MAX_CHUNK_SECTORS,
    RECORD_BYTES,
};
use crate::units::{Chunk, ChunkSize};
use proptest::prelude::*;

fn size(sectors: u64) -> ChunkSize {
    ChunkSize::from_sectors(sectors).unwrap()
}

/// The header that the kernel's `snapshot` target writes for chunks of 8 sectors.
const HEADER: [u8; HEADER_BYTES] = [0x53, 0x6e, 0x41, 0x70, 1, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0];

fn changed(at: usize, bytes: [u8; 4]) -> [u8; HEADER_BYTES] {
    let mut header = HEADER;
    header[at..at + 4].copy_from_slice(&bytes);
    header
}

#[test]
fn the_header_is_the_kernels() {
    assert_eq!(&HEADER[..4], b"SnAp");
    let header = Header {
        valid: true,
        chunk_size: size(8),
    };
    assert_eq!(header.encode(), HEADER);
    assert_eq!(Header::decode(&HEADER), Ok(Some(header)));
    let invalid = Header {
        valid: false,
        ..header
    };
    assert_eq!(invalid.encode(), changed(4, [0; 4]));
    assert_eq!(Header::decode(&changed(4, [0; 4])), Ok(Some(invalid)));
}

#[test]
fn a_fresh_device_is_known_by_its_magic_only() {
    assert_eq!(Header::decode(&[0; 512]), Ok(None));
    assert_eq!(Header::decode(&changed(0, [0; 4])), Ok(None));
}

#[test]
fn a_bad_header_is_refused_and_named() {
    let cases: [(&[u8], HeaderError, &str); 7] = [
        (&HEADER[..15], HeaderError::Short, "cut short"),
        (&[], HeaderError::Short, "cut short"),
        (
            &changed(0, [1, 2, 3, 4]),
            HeaderError::Magic(0x0403_0201),
            "magic number 0x04030201, not 0x70416e53",
        ),
        (
            &changed(8, [2, 0, 0, 0]),
            HeaderError::Version(2),
            "version 2, only version 1",
        ),
        (
            &changed(12, [0; 4]),
            HeaderError::ChunkSize(0),
            "chunk size 0,",
        ),
        (
            &changed(12, [12, 0, 0, 0]),
            HeaderError::ChunkSize(12),
            "chunk size 12,",
        ),
        (
            &changed(12, [0, 0, 0x40, 0]),
            HeaderError::ChunkSize(1 << 22),
            "chunk size 4194304,",
        ),
    ];
    for (bytes, error, text) in cases {
        assert_eq!(Header::decode(bytes), Err(error));
        assert!(error.to_string().contains(text), "{error}");
        assert!(error.to_string().starts_with("COW header "));
    }
}

#[test]
fn a_record_is_two_little_endian_numbers() {
    let record = Record {
        old: Chunk(0x0102_0304_0506_0708),
        new: Chunk(0x1112_1314_1516_1718),
    };
    let bytes = [
        8, 7, 6, 5, 4, 3, 2, 1, 0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11,
    ];
    assert_eq!(record.encode(), bytes);
    let mut area = [0u8; 64];
    assert!(record.encode_into(&mut area, 2));
    assert_eq!(area[32..48], bytes);
    assert_eq!(Record::decode(&area, 2), Some(record));
    assert_eq!(Record::decode(&area, 1), None);
    assert_eq!(Record::decode(&area, 4), None);
    assert_eq!(Record::decode(&area, u32::MAX), None);
    assert!(!record.encode_into(&mut area, 4));
    assert!(!record.encode_into(&mut area, u32::MAX));
}

#[test]
fn a_record_ends_the_list_by_its_new_chunk_alone() {
    let mut area = [0u8; 32];
    area[0] = 9;
    assert_eq!(Record::decode(&area, 0), None);
    area[8] = 1;
    assert_eq!(
        Record::decode(&area, 0),
        Some(Record {
            old: Chunk(9),
            new: Chunk(1)
        })
    );
}

#[test]
fn places_on_the_device() {
    // 4 KiB chunks, 1024 of them: 256 records an area.
    let layout = Layout::new(size(8), 8 * 1024 + 7, 8 * 100 + 1).unwrap();
    assert_eq!((layout.per_area, layout.total_chunks), (256, 1024));
    assert_eq!(layout.origin_chunks, 101);
    let areas: Vec<u64> = (0..layout.areas())
        .map(|a| layout.area_chunk(a).unwrap().0)
        .collect();
    assert_eq!(areas, [1, 258, 515, 772]);
    let metadata: Vec<u64> = (0..1024)
        .filter(|c| layout.is_metadata(Chunk(*c)))
        .collect();
    assert_eq!(metadata, [0, 1, 258, 515, 772]);
    assert_eq!(layout.usable_end(), 1024);
    assert_eq!(layout.area_chunk(u64::MAX), None);
    assert_eq!(layout.area_chunk(u64::MAX / 256), None);

    // The next area would begin where the device ends.
    let layout = Layout::new(size(8), 8 * 258, 8).unwrap();
    assert_eq!((layout.areas(), layout.usable_end()), (1, 257));
    let layout = Layout::new(size(8), 8 * 259, 8).unwrap();
    assert_eq!((layout.areas(), layout.usable_end()), (2, 259));
}

#[test]
fn a_device_needs_a_header_an_area_and_a_chunk() {
    for (chunks, enough) in [(0, false), (1, false), (2, false), (3, true), (4, true)] {
        let layout = Layout::new(size(8), 8 * chunks, 8).unwrap();
        assert_eq!(layout.is_large_enough(), enough, "{chunks}");
    }
    assert!(Layout::new(size(1 << 21), 1 << 30, 8).is_some());
    assert!(Layout::new(size(1 << 22), 1 << 30, 8).is_none());
    assert_eq!(MAX_CHUNK_SECTORS, 4_194_303);
}

#[test]
fn a_bad_record_is_refused_and_named() {
    let layout = Layout::new(size(8), 8 * 1024, 8 * 100).unwrap();
    let cases = [
        (0, 0, RecordError::Header, "is the header"),
        (0, 1, RecordError::Metadata, "is a metadata area"),
        (0, 258, RecordError::Metadata, "is a metadata area"),
        (
            0,
            1024,
            RecordError::BeyondDevice,
            "beyond the end of the COW",
        ),
        (
            0,
            u64::MAX,
            RecordError::BeyondDevice,
            "beyond the end of the COW",
        ),
        (
            100,
            2,
            RecordError::BeyondOrigin,
            "beyond the end of the origin",
        ),
        (
            u64::MAX,
            2,
            RecordError::BeyondOrigin,
            "beyond the end of the origin",
        ),
    ];
    for (old, new, error, text) in cases {
        let record = Record {
            old: Chunk(old),
            new: Chunk(new),
        };
        assert_eq!(layout.check(&record), Err(error));
        let bad = BadRecord {
            area: 3,
            index: 17,
            record,
            error,
        };
        let line = bad.to_string();
        let name = format!("record 17 of area 3 (old chunk {old}, new chunk {new})");
        assert!(line.contains(&name) && line.contains(text), "{line}");
    }
    for (old, new) in [(0, 2), (99, 1023), (50, 257), (50, 259)] {
        let record = Record {
            old: Chunk(old),
            new: Chunk(new),
        };
        assert_eq!(layout.check(&record), Ok(()));
    }
}

proptest! {
    #![proptest_config(super::config(1))]

    #[test]
    fn headers_come_back(shift in 0..22u32, valid: bool) {
        let header = Header { valid, chunk_size: size(1 << shift) };
        prop_assert_eq!(Header::decode(&header.encode()), Ok(Some(header)));
    }

    #[test]
    fn no_bytes_are_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..100),
        index: u32,
        shift in 0..31u32,
        cow: u64,
        origin: u64,
        area: u64,
    ) {
        let _ = Header::decode(&bytes);
        let _ = Record::decode(&bytes, index);
        let _ = Record::decode(&bytes, index % 8);
        if let Some(layout) = Layout::new(size(1 << shift), cow, origin) {
            let record = Record { old: Chunk(area), new: Chunk(cow) };
            let _ = layout.check(&record);
            let _ = (layout.areas(), layout.usable_end(), layout.area_chunk(area));
            prop_assert_eq!(layout.per_area as usize * RECORD_BYTES, 512 << shift);
        }
    }

    #[test]
    fn records_come_back(old: u64, new in 1..=u64::MAX, index in 0..4u32) {
        let record = Record { old: Chunk(old), new: Chunk(new) };
        let mut area = [0u8; 64];
        prop_assert!(record.encode_into(&mut area, index));
        prop_assert_eq!(Record::decode(&area, index), Some(record));
        let others = (0..4u32).filter(|i| *i != index);
        prop_assert!(others.into_iter().all(|i| Record::decode(&area, i).is_none()));
    }

    /// Every chunk is either metadata by the list of areas, or is not.
    #[test]
    fn metadata_is_where_the_areas_are(shift in 0..3u32, chunks in 3..400u64) {
        let layout = Layout::new(size(1 << shift), chunks << shift, 1).unwrap();
        let areas: Vec<u64> = (0..).map_while(|a| layout.area_chunk(a))
            .map(|c| c.0)
            .take_while(|c| *c < chunks)
            .collect();
        prop_assert_eq!(areas.len() as u64, layout.areas());
        for chunk in 0..chunks {
            let is_metadata = chunk == 0 || areas.contains(&chunk);
            prop_assert_eq!(layout.is_metadata(Chunk(chunk)), is_metadata);
        }
    }

    /// A record is taken if both its chunks are where data can be, and for no other reason.
    #[test]
    fn a_record_is_good_where_data_can_be(
        shift in 0..4u32,
        cow in 3..3000u64,
        origin in 1..3000u64,
        old in prop_oneof![0..400u64, any::<u64>()],
        new in prop_oneof![0..400u64, any::<u64>()],
    ) {
        let layout = Layout::new(size(1 << shift), cow, origin).unwrap();
        let is_area = |c| (0..).map_while(|a| layout.area_chunk(a)).map(|a| a.0)
            .take_while(|a| *a <= c).any(|a| a == c);
        let has_old = u128::from(old) << shift < u128::from(origin);
        let has_new = (u128::from(new) + 1) << shift <= u128::from(cow);
        let is_good = has_old && has_new && new != 0 && !is_area(new);
        let record = Record { old: Chunk(old), new: Chunk(new) };
        prop_assert_eq!(layout.check(&record).is_ok(), is_good);
        prop_assert_eq!(layout.is_large_enough(),
            (1..layout.usable_end()).any(|c| !is_area(c)));
    }
}
