// SPDX-License-Identifier: GPL-2.0

//! A set of chunks.

#![deny(unsafe_code)]

use crate::units::Chunks;
use std::collections::BTreeMap;

/// The words of a page.
const WORDS: usize = 8;

/// The chunks of a page.
const PAGE: u64 = WORDS as u64 * 64;

/// A set of chunks: a bit for each, in small pages, of which only those are kept that are
/// not empty.
///
/// A device that is read may be damaged and name any chunk at all, so that one bitmap from
/// the first to the last would not do. So a chunk costs a page of some 140 bytes at most,
/// with its share of the tree, and where they are dense two bits.
#[derive(Default)]
pub(crate) struct ChunkSet {
    pages: BTreeMap<u64, [u64; WORDS]>,
}

impl ChunkSet {
    /// Adds a chunk; answers whether it was not there before.
    pub(crate) fn insert(&mut self, chunk: u64) -> bool {
        let page = self.pages.entry(chunk / PAGE).or_default();
        let word = &mut page[(chunk % PAGE / 64) as usize];
        let bit = 1 << (chunk % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    /// The chunks in ascending order, joined to the longest ranges there are. The last chunk
    /// that there can be is not looked at, since no range ends behind it.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = Chunks> + '_ {
        let mut words = self
            .pages
            .iter()
            .flat_map(|(page, words)| {
                let firsts = (0..WORDS as u64).map(move |n| page * PAGE + n * 64);
                firsts.zip(words.iter().copied())
            })
            .filter(|(_, word)| *word != 0);
        let mut current = (0, 0u64);
        let mut pieces = std::iter::from_fn(move || {
            if current.1 == 0 {
                current = words.next()?;
            }
            let (first, word) = current;
            let start = word.trailing_zeros();
            let len = (word >> start).trailing_ones();
            let taken = (u64::MAX >> (64 - len)) << start;
            current.1 &= !taken;
            let start = first + u64::from(start);
            let end = start.saturating_add(u64::from(len));
            Some(Chunks { start, end })
        })
        .peekable();
        std::iter::from_fn(move || {
            let mut range = pieces.next()?;
            while let Some(next) = pieces.next_if(|next| next.start == range.end) {
                range.end = next.end;
            }
            Some(range)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// Chunks that are dense in places, and others that lie anywhere.
    fn chunks() -> impl Strategy<Value = Vec<u64>> {
        let anywhere = prop_oneof![
            4 => 0..2000u64,
            1 => any::<u64>().prop_map(|n| n.min(u64::MAX - 1)),
            1 => u64::MAX - 600..u64::MAX,
        ];
        let stretch = (anywhere, prop_oneof![Just(1u64), 1..200u64]);
        prop::collection::vec(stretch, 0..60).prop_map(|stretches| {
            let all = stretches
                .into_iter()
                .flat_map(|(from, len)| from..from.saturating_add(len).min(u64::MAX - 1).max(from));
            all.collect()
        })
    }

    proptest! {
        #[test]
        fn it_is_a_set(chunks in chunks()) {
            let (mut set, mut model) = (ChunkSet::default(), BTreeSet::new());
            for chunk in &chunks {
                prop_assert_eq!(set.insert(*chunk), model.insert(*chunk));
            }
            let ranges: Vec<_> = set.ranges().collect();
            let listed: Vec<u64> = ranges.iter().flat_map(|r| r.start..r.end).collect();
            prop_assert_eq!(listed, model.into_iter().collect::<Vec<_>>());
            for pair in ranges.windows(2) {
                prop_assert!(pair[0].end < pair[1].start, "{:?} could be joined", pair);
            }
        }
    }
}
