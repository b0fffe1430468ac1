// SPDX-License-Identifier: GPL-2.0

//! Whole images: what the store makes of them, and how it goes on.

use crate::image;
use crate::naive::{self, Setup, View};
use proptest::prelude::*;

/// An image with these records, and with `stale` where nothing was written.
fn make(chunk: u64, sectors: u64, records: &[(u64, u64)], stale: u8) -> Vec<u8> {
    let mut image = vec![stale; sectors as usize * 512];
    image[..512].fill(0);
    for (at, value) in [(0, 0x7041_6e53u32), (4, 1), (8, 1), (12, chunk as u32)] {
        image[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    let per_area = chunk * 32;
    for area in 0..=records.len() as u64 / per_area {
        let at = (naive::area_chunk(chunk, area) * chunk * 512) as usize;
        let Some(bytes) = image.get_mut(at..at + chunk as usize * 512) else {
            break;
        };
        bytes.fill(0);
        let records = records.iter().skip((area * per_area) as usize);
        for (place, (old, new)) in bytes.chunks_mut(16).zip(records) {
            place[..8].copy_from_slice(&old.to_le_bytes());
            place[8..].copy_from_slice(&new.to_le_bytes());
        }
    }
    image
}

/// Good records, and then some that may be anything.
fn records(chunk: u64, sectors: u64) -> impl Strategy<Value = Vec<(u64, u64)>> {
    let data = naive::data_chunks(chunk, sectors);
    let count = data.len();
    let good = Just(data).prop_shuffle();
    let bad = prop::collection::vec(
        (
            prop_oneof![0..300u64, any::<u64>()],
            prop_oneof![0..300u64, any::<u64>()],
        ),
        0..3,
    );
    (good, 0..=count, bad).prop_map(|(news, count, bad)| {
        let olds = (0..).map(|i| i * 7 % 1009);
        let good = olds.zip(news).take(count);
        good.chain(bad).collect()
    })
}

proptest! {
    #![proptest_config(super::config(1))]

    /// An image is shown as it is, refused as a whole, or is invalid; it goes on in the format.
    #[test]
    fn an_image_is_what_it_says(
        (chunk, sectors, block, records) in (0..4u32, 3..200u64, 0..4u32).prop_flat_map(|(shift, chunks, block)| {
            let (chunk, block) = (1 << shift, 512 << block.min(shift));
            let sectors = chunks * chunk;
            (Just(chunk), Just(sectors), Just(block), records(chunk, sectors))
        }),
        asked in 0..6u32,
        stale: u8,
        seed: u64,
    ) {
        let setup = Setup { block, asked: 1 << asked, origin_sectors: 1009 * chunk };
        let image = make(chunk, sectors, &records, stale);
        image::check(&image, &setup, seed);
    }
}

#[test]
fn a_fresh_device_is_made_one_of_ours() {
    let setup = Setup {
        block: 512,
        asked: 2,
        origin_sectors: 1000,
    };
    let mut image = vec![0xff; 300 * 512];
    image[..4].fill(0);
    let view = image::check(&image, &setup, 1);
    let records = Vec::new();
    assert_eq!(view, View::Records { chunk: 2, records });
}

#[test]
fn a_refusal_says_why() {
    let setup = Setup {
        block: 512,
        asked: 1,
        origin_sectors: 1000,
    };
    let cases: [(&[(u64, u64)], &str); 6] = [
        (
            &[(1, 2), (2, 400)],
            "record 1 of area 0 (old chunk 2, new chunk 400)",
        ),
        (&[(1, 2), (2, 34)], "is a metadata area"),
        (&[(1, 2), (2, 1)], "is a metadata area"),
        (&[(1, 2), (1000, 3)], "beyond the end of the origin"),
        (&[(1, 2), (1, 3)], "the same old chunk"),
        (&[(1, 2), (2, 2)], "the same new chunk"),
    ];
    for (records, reason) in cases {
        let image = make(1, 300, records, 0);
        assert_eq!(image::check(&image, &setup, 0), View::Refused);
        let log = image::open(&image, &setup).log.join("\n");
        assert!(log.contains(reason), "{log}");
        assert!(log.contains("cannot be used"), "{log}");
    }
}
