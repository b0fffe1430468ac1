// SPDX-License-Identifier: GPL-2.0

//! What a COW device shows, by what the documentation says of the format and by nothing else:
//! none of the module's code is used here, and no pains are taken to be quick.

use std::collections::HashSet;

/// What is around a COW device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setup {
    /// The bytes of a logical block, of the COW device and of the origin.
    pub block: u32,
    /// The chunk size in the table line, in sectors: a power of two.
    pub asked: u64,
    /// The size of the origin.
    pub origin_sectors: u64,
}

/// What becomes of an attempt to activate a snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum View {
    /// It is refused.
    Refused,
    /// It is there, and its status is "Invalid".
    Invalid,
    /// It shows these.
    Records {
        /// The chunk size, in sectors.
        chunk: u64,
        /// Old chunk and new chunk, in the order of the records.
        records: Vec<(u64, u64)>,
    },
}

fn number<const N: usize>(bytes: &[u8], at: u64) -> u64 {
    let at = at as usize;
    let mut wide = [0; 8];
    wide[..N].copy_from_slice(&bytes[at..at + N]);
    u64::from_le_bytes(wide)
}

/// The number of the chunk that area `area` is in.
pub fn area_chunk(chunk: u64, area: u64) -> u64 {
    1 + area * (chunk * 512 / 16 + 1)
}

/// The chunks of data that may be used on a device of so many sectors.
pub fn data_chunks(chunk: u64, sectors: u64) -> Vec<u64> {
    let total = sectors / chunk;
    let is_area = |c: u64| c % (chunk * 32 + 1) == 1;
    // Where the next area would begin just behind the end, the last chunk stays unused.
    let end = if is_area(total) { total - 1 } else { total };
    (1..end).filter(|c| !is_area(*c)).collect()
}

/// Whether there is anything behind so many records, up to the end of the area in which the next
/// one goes: it would become a record when those before it are.
pub fn has_leftovers(image: &[u8], chunk: u64, records: u64) -> bool {
    let per_area = chunk * 32;
    let at = area_chunk(chunk, records / per_area) * chunk * 512;
    let behind = (at + records % per_area * 16) as usize..(at + chunk * 512) as usize;
    let behind = image.get(behind).unwrap_or_default();
    behind.iter().any(|byte| *byte != 0)
}

/// Reads an image.
pub fn read(image: &[u8], setup: &Setup) -> View {
    let sectors = image.len() as u64 / 512;
    if sectors * 512 < u64::from(setup.block) {
        return View::Refused;
    }
    let is_used = number::<4>(image, 0) != 0;
    let chunk = if is_used {
        number::<4>(image, 12)
    } else {
        setup.asked
    };
    if is_used && (number::<4>(image, 0) != 0x7041_6e53 || number::<4>(image, 8) != 1) {
        return View::Refused;
    }
    let fits =
        chunk.is_power_of_two() && chunk < 1 << 22 && chunk * 512 % u64::from(setup.block) == 0;
    if !fits || data_chunks(chunk, sectors).is_empty() {
        return View::Refused;
    }
    let mut records = Vec::new();
    if !is_used {
        return View::Records { chunk, records };
    }
    if number::<4>(image, 4) == 0 {
        return View::Invalid;
    }
    let (mut olds, mut news) = (HashSet::new(), HashSet::new());
    let total = sectors / chunk;
    for area in 0.. {
        let at = area_chunk(chunk, area);
        if at >= total {
            break;
        }
        for index in 0..chunk * 32 {
            let place = at * chunk * 512 + index * 16;
            let (old, new) = (number::<8>(image, place), number::<8>(image, place + 8));
            if new == 0 {
                return View::Records { chunk, records };
            }
            let is_good = new < total
                && new % (chunk * 32 + 1) != 1
                && old < setup.origin_sectors.div_ceil(chunk)
                && olds.insert(old)
                && news.insert(new);
            if !is_good {
                return View::Refused;
            }
            records.push((old, new));
        }
    }
    // The device was larger, with another area.
    View::Refused
}
