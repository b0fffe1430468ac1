// SPDX-License-Identifier: GPL-2.0

//! `snaprs delta`: what has changed on the origin since the snapshot was taken.

#![deny(unsafe_code)]

use crate::{
    check::Report,
    chunkset::ChunkSet,
    failure::{status, Failure, Result},
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
fn reasons(image: &Image, chunk_size: ChunkSize) -> Vec<String> {
    let mut reasons = vec![
        format!(
            "whole chunks of {} bytes are listed, however little of them was written, and \
             whether or not it was other data",
            chunk_size.bytes()
        ),
        "what was written to the snapshot itself is listed too".into(),
    ];
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
    // Every snapshot that was ever active has a header. Without one nothing is known, which is
    // not the same as that nothing has changed.
    let Ok(Some(header)) = image.header() else {
        return Err(Failure::Damaged(format!(
            "{}: there is no header: no snapshot has used this device, or the header is lost",
            image.name
        )));
    };
    let size = header.chunk_size;
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
        object.member("chunk_bytes", &size.bytes())?;
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
    size: ChunkSize,
    limit: Option<u64>,
) -> impl Iterator<Item = Range> + '_ {
    saved.ranges().map(move |range| {
        let sectors = size.sectors_of(range);
        // No origin is so large that this saturates; and no range may be left out.
        let offset = sectors.start.saturating_mul(SECTOR_SIZE);
        let end = sectors.end.saturating_mul(SECTOR_SIZE);
        let end = limit.map_or(end, |limit| end.min(limit));
        Range {
            offset,
            length: end.saturating_sub(offset),
        }
    })
}
