// SPDX-License-Identifier: GPL-2.0

//! `snaprs dump`: what stands on a COW device.

#![deny(unsafe_code)]

use crate::{
    check::{kind, print_head},
    failure::{status, Failure, Result},
    image::{Image, LayoutInfo},
    json::Object,
    store::format::{Header, Layout, RecordError},
    walk::{Found, Place, Walk},
};
use serde::Serialize;
use std::io::{self, IsTerminal, Write};

/// A record, or several side by side whose chunks are consecutive, old and new.
#[derive(Clone, Copy, Serialize)]
struct Run {
    #[serde(flatten)]
    place: Place,
    old: u64,
    new: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    length: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "name")]
    problem: Option<RecordError>,
}

fn name<S: serde::Serializer>(
    error: &Option<RecordError>,
    s: S,
) -> std::result::Result<S::Ok, S::Error> {
    error.map(kind).serialize(s)
}

impl Run {
    fn of(found: &Found, length: Option<u64>) -> Self {
        Self {
            place: found.place,
            old: found.record.old.0,
            new: found.record.new.0,
            length,
            problem: found.error,
        }
    }

    /// Takes in what comes next; false if it does not go on with this run.
    fn take(&mut self, next: &Run) -> bool {
        let (Some(length), Some(more)) = (self.length, next.length) else {
            return false;
        };
        let follows = |from: u64, to: u64| from.checked_add(length) == Some(to);
        if self.problem != next.problem
            || self.place.area != next.place.area
            || !follows(self.old, next.old)
            || !follows(self.new, next.new)
        {
            return false;
        }
        self.length = Some(length + more);
        true
    }

    fn print(&self, out: &mut impl Write) -> Result {
        write!(
            out,
            "  {}: old {} new {}",
            self.place.index, self.old, self.new
        )?;
        if let Some(length) = self.length {
            write!(out, " length {length}")?;
        }
        if let Some(error) = self.problem {
            write!(out, " BAD: {}", error.text())?;
        }
        writeln!(out)?;
        Ok(())
    }
}

/// What JSON says of an area.
#[derive(Serialize)]
struct Area {
    area: u64,
    chunk: u64,
    offset: u64,
    records: u64,
}

impl Area {
    /// The area, of which that many records are used by all areas together.
    fn of(layout: &Layout, area: u64, records: u64) -> Option<Self> {
        let chunk = layout.area_chunk(area)?.0;
        let per_area = u64::from(layout.per_area);
        Some(Self {
            area,
            chunk,
            offset: chunk * layout.chunk_size.bytes(),
            records: (records - area * per_area).min(per_area),
        })
    }
}

/// Writes out a device; the answer is the exit status.
pub(crate) fn run(image: &Image, records: bool, json: bool, out: &mut impl Write) -> Result<u8> {
    if let Some(text) = image.unsteady() {
        eprintln!("snaprs: {}: note: {text}", image.name);
    }
    let header = image.header();
    if json {
        let mut object = Object::begin(out)?;
        object.member("device", &image.name)?;
        object.member("bytes", &image.device.bytes())?;
        object.member("live", &image.live)?;
        object.member("header", &image.raw_header())?;
        let status = match &header {
            Ok(Some(header)) => members(image, header, records, &mut object)?,
            _ => status::CLEAN,
        };
        object.end()?;
        return verdict(header, status);
    }
    writeln!(out, "{}", image.name)?;
    print_head(image, out)?;
    let status = match &header {
        Ok(Some(header)) => lines(image, header, records, out)?,
        _ => status::CLEAN,
    };
    out.flush()?;
    verdict(header, status)
}

/// A bad header has been shown, and is a failure all the same.
fn verdict(
    header: std::result::Result<Option<Header>, crate::store::format::HeaderError>,
    status: u8,
) -> Result<u8> {
    header.map(|_| status).map_err(|error| {
        let mut text = String::new();
        let _ = error.write(&mut text);
        Failure::Damaged(text)
    })
}

/// Begins to read. Where the records go to a terminal, they show how far things are.
fn walk<'a>(image: &'a Image, layout: &Layout) -> Walk<'a> {
    let what = (!io::stdout().is_terminal()).then_some("dumping");
    Walk::new(image, layout, what)
}

/// Calls `each` for all runs, or all records; the answer is the exit status.
fn for_each(
    walk: &mut Walk<'_>,
    records: bool,
    mut each: impl FnMut(&Run) -> Result,
) -> Result<u8> {
    let mut status = status::CLEAN;
    let mut current: Option<Run> = None;
    while let Some(found) = walk.records()? {
        for found in &found {
            if found.error.is_some() {
                status = status::PROBLEMS;
            }
            let next = Run::of(found, (!records).then_some(1));
            if current.as_mut().is_some_and(|run| run.take(&next)) {
                continue;
            }
            if let Some(run) = current.replace(next) {
                each(&run)?;
            }
        }
    }
    if let Some(run) = current {
        each(&run)?;
    }
    Ok(status)
}

fn members<W: Write>(
    image: &Image,
    header: &Header,
    records: bool,
    object: &mut Object<'_, W>,
) -> Result<u8> {
    let layout = image.layout(header)?;
    object.member("layout", &LayoutInfo::new(&layout, &image.origin))?;
    let mut walk = walk(image, &layout);
    let mut status = status::CLEAN;
    let name = if records { "records" } else { "runs" };
    object.list(name, |list| {
        status = for_each(&mut walk, records, |run| list.push(run))?;
        Ok(())
    })?;
    let count = walk.count();
    object.list("areas", |list| {
        // Not only those in use: the one for the next record as well.
        let last = walk.next().area.min(layout.areas().saturating_sub(1));
        for area in (0..=last).take_while(|_| layout.areas() != 0) {
            if let Some(area) = Area::of(&layout, area, count) {
                list.push(&area)?;
            }
        }
        Ok(())
    })?;
    object.member("record_count", &count)?;
    object.member("next_record", &walk.next())?;
    Ok(status)
}

fn lines(image: &Image, header: &Header, records: bool, out: &mut impl Write) -> Result<u8> {
    let layout = image.layout(header)?;
    let mut walk = walk(image, &layout);
    let mut area = None;
    let status = for_each(&mut walk, records, |run| {
        if area != Some(run.place.area) {
            area = Some(run.place.area);
            print_area(&layout, run.place.area, out)?;
        }
        run.print(out)
    })?;
    let next = walk.next();
    if area != Some(next.area) && next.area < layout.areas() {
        print_area(&layout, next.area, out)?;
    }
    writeln!(out, "  {}: end, after {} records", next.index, walk.count())?;
    Ok(status)
}

fn print_area(layout: &Layout, area: u64, out: &mut impl Write) -> Result {
    let Some(chunk) = layout.area_chunk(area) else {
        return Ok(());
    };
    let offset = chunk.0 * layout.chunk_size.bytes();
    writeln!(out, "area {area}, in chunk {}, at byte {offset}", chunk.0)?;
    Ok(())
}
