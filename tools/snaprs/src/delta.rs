// SPDX-License-Identifier: GPL-2.0

//! `snaprs delta`: what has changed on the origin since the snapshot was taken.

#![deny(unsafe_code)]

use crate::{
    check::Report,
    chunkset::ChunkSet,
    failure::{status, Result},
    image::Image,
    json::Object,
    units::{ChunkSize, SECTOR_SIZE},
};
use serde::Serialize;
use std::io::Write;

/// A changed range of the origin, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
struct Range {
    offset: u64,
    length: u64,
}

/// Why what is listed may be more than what has changed.
fn reasons(image: &Image, chunk_size: Option<ChunkSize>) -> Vec<String> {
    let mut reasons = Vec::new();
    if let Some(size) = chunk_size {
        reasons.push(format!(
            "whole chunks of {} bytes are listed, however little of them was written, and \
             whether or not it was other data",
            size.bytes()
        ));
    }
    reasons.push("what was written to the snapshot itself is listed too".into());
    if image.live.is_some() {
        reasons.push(
            "the snapshot is live: a chunk is listed as soon as its old data is saved, and \
             the write may not have reached the origin yet"
                .into(),
        );
    }
    reasons
}

/// Lists what has changed; the answer is the exit status. Where there is any problem nothing is
/// listed: something would be missing, and a backup without that is none.
pub(crate) fn run(image: &Image, json: bool, out: &mut impl Write) -> Result<u8> {
    let (saved, mut notes) = Report::of(image, 1)?.into_saved()?;
    if image.live.is_some() {
        notes.push("writes that came after the list was begun are not in it".into());
    }
    let header = image.header().ok().flatten();
    let size = header.map(|header| header.chunk_size);
    let limit = image
        .origin
        .sectors
        .map(|sectors| sectors.saturating_mul(SECTOR_SIZE));
    let ranges = || ranges(&saved, size, limit);
    let total: u64 = ranges().map(|range| range.length).sum();
    if json {
        let mut object = Object::begin(out)?;
        object.member("device", &image.name)?;
        object.member("live", &image.live)?;
        object.member("chunk_bytes", &size.map(ChunkSize::bytes))?;
        object.member("origin_bytes", &limit)?;
        object.member("superset", &true)?;
        object.member("because", &reasons(image, size))?;
        object.member("notes", &notes)?;
        object.member("changed_bytes", &total)?;
        object.list("ranges", |list| {
            ranges().try_for_each(|range| list.push(&range))
        })?;
        object.end()?;
        return Ok(status::CLEAN);
    }
    writeln!(
        out,
        "# {}: {total} bytes of the origin have changed, at most:",
        image.name
    )?;
    for reason in reasons(image, size) {
        writeln!(out, "# - {reason}")?;
    }
    for note in &notes {
        writeln!(out, "# note: {note}")?;
    }
    writeln!(out, "# offset length, in bytes")?;
    for range in ranges() {
        writeln!(out, "{} {}", range.offset, range.length)?;
    }
    Ok(status::CLEAN)
}

/// The ranges in bytes. The last chunk of an origin may be there only in part.
fn ranges(
    saved: &ChunkSet,
    size: Option<ChunkSize>,
    limit: Option<u64>,
) -> impl Iterator<Item = Range> + '_ {
    saved.ranges().filter_map(move |range| {
        let sectors = size?.sectors_of(range);
        let offset = sectors.start.checked_mul(SECTOR_SIZE)?;
        let end = sectors.end.checked_mul(SECTOR_SIZE)?;
        let end = limit.map_or(end, |limit| end.min(limit));
        Some(Range {
            offset,
            length: end.checked_sub(offset)?,
        })
    })
}
