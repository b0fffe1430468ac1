// SPDX-License-Identifier: GPL-2.0

//! Sectors and chunks against arithmetic that cannot overflow.

use crate::units::{Chunk, ChunkSize, Chunks, Sector, Sectors, SpanSize, SLOTS};
use proptest::prelude::*;

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..5000u64,
        any::<u64>(),
        (0..5000u64).prop_map(|n| u64::MAX - n)
    ]
}

proptest! {
    #![proptest_config(super::config(1))]

    #[test]
    fn chunks_and_sectors(shift in 0..31u32, at in number(), len in number()) {
        let size = ChunkSize::from_sectors(1 << shift).unwrap();
        prop_assert_eq!((size.sectors(), size.bytes()), (1 << shift, 512 << shift));
        let chunk = size.chunk_of(Sector(at));
        prop_assert_eq!(chunk.0, at / size.sectors());
        prop_assert_eq!(size.offset_in_chunk(Sector(at)), at % size.sectors());
        // What would lie behind the last sector there is, lies there.
        let first = |c: u64| u64::try_from(u128::from(c) << shift).unwrap_or(u64::MAX);
        prop_assert_eq!(size.first_sector(Chunk(at)).0, first(at));

        let range = Sectors::new(Sector(at), len);
        prop_assert_eq!(range.end, at.saturating_add(len));
        let chunks = size.chunks_of(range);
        if range.is_empty() {
            prop_assert_eq!(chunks.len(), 0);
        } else {
            prop_assert_eq!(chunks.start, at / size.sectors());
            prop_assert_eq!(chunks.end, (range.end - 1) / size.sectors() + 1);
            let around = size.sectors_of(chunks);
            prop_assert!(around.start <= range.start && around.end >= range.end);
        }
        let around = size.sectors_of(Chunks { start: at, end: at.saturating_add(len) });
        prop_assert_eq!((around.start, around.end), (first(at), first(at.saturating_add(len))));
    }

    #[test]
    fn ranges_overlap_where_they_share_a_sector(
        a in (0..40u64, 0..20u64),
        b in (0..40u64, 0..20u64),
    ) {
        let (one, two) = (Sectors::new(Sector(a.0), a.1), Sectors::new(Sector(b.0), b.1));
        let has = |r: &Sectors, s: u64| r.start <= s && s < r.end;
        let shared = (0..60).any(|s| has(&one, s) && has(&two, s));
        if a.1 != 0 && b.1 != 0 {
            prop_assert_eq!(one.overlaps(&two), shared);
        }
        let both = one.union(&two);
        prop_assert!((0..60).all(|s| has(&both, s) || !(has(&one, s) || has(&two, s))));
    }

    /// A span is in one slot, ends where the next one begins, and holds whole chunks.
    #[test]
    fn spans(shift in 0..31u32, at in number()) {
        let size = ChunkSize::from_sectors(1 << shift).unwrap();
        let spans = SpanSize::MIN.with_chunks(size);
        let len = 1u64 << spans.shift();
        prop_assert!(len >= 2048 && len >= size.sectors());
        let start = at - at % len;
        let end = spans.end_of(Sector(at)).0;
        prop_assert_eq!(end, start.checked_add(len).unwrap_or(u64::MAX));
        let slot = spans.slot_of(Sector(at));
        prop_assert!((slot as usize) < SLOTS);
        prop_assert_eq!(spans.slot_of(Sector(start)), slot);
        prop_assert_eq!(spans.slot_of(Sector(end - 1)), slot);
    }
}

#[test]
fn a_chunk_size_is_a_power_of_two() {
    for sectors in [0, 3, 6, 1 << 31, 1 << 40, u64::MAX] {
        assert!(ChunkSize::from_sectors(sectors).is_err(), "{sectors}");
    }
}

/// Neighbours and strides that are powers of two are spread over the slots.
#[test]
fn slots_are_used_evenly() {
    for shift in 0..20 {
        let mut counts = [0u32; SLOTS];
        for n in 0..SLOTS as u64 {
            let span = n << shift;
            counts[SpanSize::MIN.slot_of(Sector(span << SpanSize::MIN.shift())) as usize] += 1;
        }
        let most = counts.iter().max().unwrap();
        assert!(*most <= 16, "stride {shift}: {most} spans in a slot");
    }
}
