// SPDX-License-Identifier: GPL-2.0

//! `snaprs dump`: what stands on a COW device.

#![deny(unsafe_code)]

use crate::{
    check::{kind, print_head},
    failure::{status, tell, Failure, Result},
    image::{Image, LayoutInfo},
    json::Object,
    store::format::{Header, Layout, RecordError},
    walk::{End, Found, Place, Step, Walk},
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

/// Records that cannot be read.
#[derive(Serialize)]
struct Gap {
    #[serde(flatten)]
    place: Place,
    length: u32,
    problem: &'static str,
    error: String,
}

impl Gap {
    fn of(place: Place, length: u32, error: &io::Error) -> Self {
        Self {
            place,
            length,
            problem: "unreadable",
            error: error.to_string(),
        }
    }

    fn print(&self, out: &mut impl Write) -> Result {
        writeln!(
            out,
            "  {}: length {} UNREADABLE: {}",
            self.place.index, self.length, self.error
        )?;
        Ok(())
    }
}

/// What is shown next, in a line or as an element of a list.
#[derive(Serialize)]
#[serde(untagged)]
enum Shown {
    Run(Run),
    Gap(Gap),
}

impl Shown {
    /// Takes in what comes next; false if it is to be shown for itself.
    fn take(&mut self, next: &Shown) -> bool {
        match (self, next) {
            (Self::Run(run), Self::Run(next)) => run.take(next),
            _ => false,
        }
    }

    fn area(&self) -> u64 {
        match self {
            Self::Run(run) => run.place.area,
            Self::Gap(gap) => gap.place.area,
        }
    }

    fn print(&self, out: &mut impl Write) -> Result {
        match self {
            Self::Run(run) => run.print(out),
            Self::Gap(gap) => gap.print(out),
        }
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
        tell(format!("{}: note: {text}", image.name));
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

/// Calls `each` for all runs, or all records, and for those that cannot be read; the answer is
/// the exit status.
fn for_each(
    walk: &mut Walk<'_>,
    records: bool,
    mut each: impl FnMut(&Shown) -> Result,
) -> Result<u8> {
    let mut status = status::CLEAN;
    let mut current: Option<Shown> = None;
    let mut show = |next: Shown| {
        if current.as_mut().is_some_and(|shown| shown.take(&next)) {
            return Ok(());
        }
        current.replace(next).map_or(Ok(()), |shown| each(&shown))
    };
    let length = (!records).then_some(1);
    while let Some(step) = walk.step() {
        match step {
            Step::Records(found) => {
                for found in &found {
                    if found.error.is_some() {
                        status |= status::PROBLEMS;
                    }
                    show(Shown::Run(Run::of(found, length)))?;
                }
            }
            Step::Unreadable { from, count, error } => {
                status |= status::OPERATION;
                show(Shown::Gap(Gap::of(from, count, &error)))?;
            }
        }
    }
    if let Some(odd) = walk.end().and_then(End::odd) {
        status |= status::PROBLEMS;
        show(Shown::Run(Run::of(&odd, length)))?;
    }
    current.map_or(Ok(()), |shown| each(&shown))?;
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
        status = for_each(&mut walk, records, |shown| list.push(shown))?;
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
    let status = for_each(&mut walk, records, |shown| {
        if area != Some(shown.area()) {
            area = Some(shown.area());
            print_area(&layout, shown.area(), out)?;
        }
        shown.print(out)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        store::format::Record,
        tests::image,
        units::{Chunk, ChunkSize},
    };
    use serde_json::{json, Value};
    use std::fs::File;

    /// The second of three areas cannot be read, nor what comes behind it.
    #[test]
    fn what_cannot_be_read_is_marked() {
        let size = ChunkSize::from_sectors(1).unwrap();
        let data = (2..).filter(|chunk| chunk % 33 != 1);
        let records: Vec<_> = (0..70)
            .zip(data)
            .map(|(n, new)| Record {
                old: Chunk(n),
                new: Chunk(new),
            })
            .collect();
        let (path, image, layout) = image(size, 100, &records);
        assert_eq!(layout.areas(), 3);
        let file = File::options().write(true).open(&path.0).unwrap();
        file.set_len(34 * 512 + 100).unwrap();

        let mut out = Vec::new();
        let status = run(&image, false, false, &mut out).unwrap();
        assert_eq!(status, status::OPERATION);
        let out = String::from_utf8(out).unwrap();
        let unreadable = "  0: length 32 UNREADABLE: failed to fill whole buffer\n";
        let wanted = [
            "area 0, in chunk 1, at byte 512\n  0: old 0 new 2 length 32\n",
            "area 1, in chunk 34, at byte 17408\n",
            unreadable,
            "area 2, in chunk 67, at byte 34304\n",
            unreadable,
        ];
        assert!(out.contains(&wanted.concat()), "{out}");

        for (records, name, shown) in [(false, "runs", 1), (true, "records", 32)] {
            let mut out = Vec::new();
            let status = run(&image, records, true, &mut out).unwrap();
            assert_eq!(status, status::OPERATION);
            let told: Value = serde_json::from_slice(&out).unwrap();
            let list = told[name].as_array().unwrap();
            assert_eq!(list.len(), shown + 2, "{told}");
            let unreadable = |area: u64| {
                json!({
                    "area": area, "index": 0, "length": 32, "problem": "unreadable",
                    "error": "failed to fill whole buffer"
                })
            };
            assert_eq!(list[shown..], [unreadable(1), unreadable(2)]);
            assert_eq!(told["record_count"], json!(96));
        }
    }
}
