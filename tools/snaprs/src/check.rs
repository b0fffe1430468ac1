// SPDX-License-Identifier: GPL-2.0

//! `snaprs check`: does a COW device keep to every rule of the format?

#![deny(unsafe_code)]

use crate::{
    chunkset::ChunkSet,
    failure::{status, Failure, Result},
    image::{Image, LayoutInfo, Origin, RawHeader},
    live::Live,
    store::format::{Header, Layout, RecordError},
    units::SECTOR_SIZE,
    walk::{next_sector, End, Found, Holes, Place, Remains, Step, Walk},
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, HashMap},
    fmt::Display,
    io::Write,
};

/// Something that is wrong.
#[derive(Serialize)]
struct Problem {
    kind: &'static str,
    #[serde(flatten)]
    place: Option<Place>,
    #[serde(skip_serializing_if = "Option::is_none")]
    old: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    new: Option<u64>,
    /// The record that came first, where two say the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    first: Option<Place>,
    text: String,
}

/// Something worth knowing that is not wrong.
#[derive(Serialize)]
struct Note {
    kind: &'static str,
    text: String,
}

/// What was found.
#[derive(Serialize)]
pub(crate) struct Report<'a> {
    device: &'a str,
    bytes: u64,
    live: Option<&'a Live>,
    /// `used`, `fresh` or `bad`.
    state: &'static str,
    header: Option<RawHeader>,
    layout: Option<LayoutInfo>,
    records: u64,
    next_record: Option<Place>,
    holes: Option<Holes>,
    problems: Vec<Problem>,
    /// How many problems of each kind there are, those that are not named among them.
    counts: BTreeMap<&'static str, u64>,
    notes: Vec<Note>,
    clean: bool,
    /// How many problems are named at most.
    #[serde(skip)]
    limit: u64,
    /// Whether something could not be read.
    #[serde(skip)]
    is_unreadable: bool,
    /// The chunks of the origin that have a record.
    #[serde(skip)]
    saved: ChunkSet,
}

/// Checks a device and tells what was found; the answer is the exit status.
pub(crate) fn run(image: &Image, limit: u64, json: bool, out: &mut impl Write) -> Result<u8> {
    let report = Report::of(image, limit)?;
    if json {
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        report.print(image, out)?;
    }
    Ok(report.status())
}

/// The name of what is wrong with a record, for programs.
pub(crate) fn kind(error: RecordError) -> &'static str {
    match error {
        RecordError::BeyondDevice => "new-beyond-device",
        RecordError::Header => "new-is-header",
        RecordError::Metadata => "new-is-metadata",
        RecordError::BeyondOrigin => "old-beyond-origin",
        RecordError::NewTwice => "new-twice",
        RecordError::OldTwice => "old-twice",
    }
}

impl<'a> Report<'a> {
    /// Looks at all of a device.
    pub(crate) fn of(image: &'a Image, limit: u64) -> Result<Self> {
        let mut report = Self {
            device: &image.name,
            bytes: image.device.bytes(),
            live: image.live.as_ref(),
            state: "bad",
            header: image.raw_header(),
            layout: None,
            records: 0,
            next_record: None,
            holes: None,
            problems: Vec::new(),
            counts: BTreeMap::new(),
            notes: Vec::new(),
            clean: true,
            limit,
            is_unreadable: false,
            saved: ChunkSet::default(),
        };
        report.check(image)?;
        Ok(report)
    }

    /// The chunks of the origin that have a record, and what else is worth knowing; a failure
    /// if there is any problem.
    pub(crate) fn into_saved(self) -> Result<(ChunkSet, Vec<String>)> {
        if let Some(problem) = self.problems.first() {
            let text = format!("{}: {}; see snaprs check", self.device, problem.text);
            return Err(if self.is_unreadable {
                Failure::Operation(text)
            } else {
                Failure::Damaged(text)
            });
        }
        let notes = self.notes.into_iter().map(|note| note.text).collect();
        Ok((self.saved, notes))
    }

    fn status(&self) -> u8 {
        match (self.clean, self.is_unreadable) {
            (true, _) => status::CLEAN,
            (false, false) => status::PROBLEMS,
            (false, true) => status::PROBLEMS | status::OPERATION,
        }
    }

    fn note(&mut self, kind: &'static str, text: impl Into<String>) {
        let text = text.into();
        self.notes.push(Note { kind, text });
    }

    /// Counts a problem, and names it unless too many have been named.
    fn problem(&mut self, kind: &'static str, place: Option<Place>, text: impl Display) {
        self.name(kind, || Problem {
            kind,
            place,
            old: None,
            new: None,
            first: None,
            text: text.to_string(),
        });
    }

    fn name(&mut self, kind: &'static str, problem: impl FnOnce() -> Problem) {
        self.clean = false;
        *self.counts.entry(kind).or_default() += 1;
        if self.limit == 0 || (self.problems.len() as u64) < self.limit {
            self.problems.push(problem());
        }
    }

    fn check(&mut self, image: &Image) -> Result {
        if let Some(text) = image.unsteady() {
            self.note("in-use", text);
        }
        match image.header() {
            Err(error) => {
                let mut text = String::new();
                // Writing to a string does not fail.
                let _ = error.write(&mut text);
                self.problem("header", None, text);
                Ok(())
            }
            Ok(None) => self.check_fresh(image),
            Ok(Some(header)) => self.check_used(image, &header),
        }
    }

    /// A device without a header. Whoever makes a new one need not have zeroed more than the
    /// sector of the header, and no target looks at more than the magic number: so what stands
    /// behind that sector is no problem.
    fn check_fresh(&mut self, image: &Image) -> Result {
        self.state = "fresh";
        if !image.head_is_zero() {
            self.problem(
                "header-lost",
                None,
                "COW header has the magic number 0, so the device counts as a new one, but \
                 what stands behind that is not empty",
            );
        } else if image.start_is_zero()? {
            self.note(
                "fresh",
                "there is no header, and the device begins with zeroes as a new one does",
            );
        } else {
            self.note(
                "foreign",
                "there is no header, so the device counts as a new one, but its first 4 KiB are \
                 not zero: it holds something else, or the header is lost",
            );
        }
        Ok(())
    }

    fn check_used(&mut self, image: &Image, header: &Header) -> Result {
        self.state = "used";
        let layout = image.layout(header)?;
        self.layout = Some(LayoutInfo::new(&layout, &image.origin));
        if !image.header_is_as_written(header) {
            self.problem(
                "header-odd",
                None,
                "COW header is not as it is ever written: the flag \"valid\" is neither 0 nor \
                 1, or the rest of its sector is not zero",
            );
        }
        if !header.valid {
            self.problem(
                "invalid",
                None,
                "the snapshot is marked as invalid: it became useless, for instance since the \
                 COW device was full",
            );
        }
        self.check_blocks("COW device", image.device.block_size(), header);
        self.check_blocks("origin", image.origin.block_size, header);
        if !layout.is_large_enough() {
            self.problem(
                "device-small",
                None,
                format!(
                    "the device is too small: its {} sectors have no room for the header, an \
                     area and data, in chunks of {} sectors",
                    image.sectors(),
                    layout.chunk_size.sectors()
                ),
            );
        }
        if image.device.bytes() % SECTOR_SIZE != 0 {
            self.problem(
                "device-odd",
                None,
                "the size of the image is no whole number of sectors",
            );
        }
        let mut walk = Walk::new(image, &layout, Some("checking"));
        let mut beyond = None;
        while let Some(step) = walk.step() {
            match step {
                Step::Records(found) => {
                    for found in found.iter().filter(|found| found.error.is_some()) {
                        self.bad_record(found);
                        if found.error == Some(RecordError::BeyondDevice) {
                            beyond = beyond.max(Some(found.record.new.0));
                        }
                    }
                }
                Step::Unreadable { from, count, error } => {
                    self.is_unreadable = true;
                    let last = u64::from(from.index) + u64::from(count) - 1;
                    let text = format!(
                        "records {} to {last} of area {} cannot be read ({error}); what is \
                         said of later ones may be wrong",
                        from.index, from.area
                    );
                    self.problem("unreadable", Some(from), text);
                }
            }
        }
        self.records = walk.count();
        self.next_record = Some(walk.next());
        if let Some(chunk) = beyond {
            self.note(
                "device-cut",
                format!(
                    "records lie beyond the end of the device, which has {} chunks; the \
                     furthest is chunk {chunk}: was it cut short?",
                    layout.total_chunks
                ),
            );
        }
        self.holes = Some(Holes::of(&layout, walk.used()));
        if let Some(end) = walk.end() {
            self.check_end(image, &layout, end);
        }
        self.saved = walk.into_saved();
        self.name_first(image, &layout)
    }

    /// A chunk has to be a multiple of a block.
    fn check_blocks(&mut self, which: &str, block: Option<u32>, header: &Header) {
        let chunk = header.chunk_size.bytes();
        let Some(block) = block.filter(|block| chunk % u64::from((*block).max(1)) != 0) else {
            return;
        };
        let text = format!(
            "the chunk size of {chunk} bytes is not a multiple of the logical block size of \
             the {which}, {block} bytes"
        );
        self.problem("chunk-size", None, text);
    }

    fn bad_record(&mut self, found: &Found) {
        let Some(bad) = found.bad() else {
            return;
        };
        let kind = kind(bad.error);
        self.name(kind, || {
            let mut text = String::new();
            let _ = bad.write(&mut text);
            Problem {
                kind,
                place: Some(found.place),
                old: Some(bad.record.old.0),
                new: Some(bad.record.new.0),
                first: None,
                text,
            }
        });
    }

    /// What stands where the records end, and behind that.
    fn check_end(&mut self, image: &Image, layout: &Layout, end: End) {
        let (at, old, behind) = match end {
            End::Live => return,
            End::Device => {
                self.problem(
                    "no-end",
                    None,
                    "the last area is full and no area comes behind it, so the records have no \
                     end; the kernel's own target cannot open such a device",
                );
                return;
            }
            End::Empty { at, old, behind } => (at, old, behind),
        };
        if let Some(live) = &image.live {
            let text = format!(
                "record {} of area {} is empty: only {} of {} records are on the device",
                at.index,
                at.area,
                self.records,
                live.records()
            );
            self.problem("records-missing", Some(at), text);
            return;
        }
        if old != 0 {
            let text = format!(
                "record {} of area {} (old chunk {old}, new chunk 0) ends the records, but is \
                 not empty: its new chunk is the header",
                at.index, at.area
            );
            self.problem("new-is-header", Some(at), text);
        }
        // A batch of records that was cut short by a crash may be there in its later sectors and
        // not in its earlier ones; but a sector is written as one.
        if behind != 0 {
            let text = format!(
                "record {} of area {} is empty, but {behind} records behind it in the same \
                 sector are not: records have been lost",
                at.index, at.area
            );
            self.problem("records-lost", Some(at), text);
        }
        if let Err(error) = self.look_behind(image, layout, at) {
            self.is_unreadable = true;
            let text = format!("what comes behind the last record cannot be read ({error})");
            self.problem("unreadable", Some(at), text);
        }
    }

    /// What stands in later sectors, where a crash may leave something.
    fn look_behind(&mut self, image: &Image, layout: &Layout, at: Place) -> std::io::Result<()> {
        let sector = next_sector(at.index, layout);
        let far = Remains::find(image, layout, at.area, sector, layout.per_area)?;
        if far.filled != 0 {
            self.note(
                "remains",
                format!(
                    "behind the last record, area {} is not empty in {} places, {} of them like \
                     records of this snapshot: a crash leaves that, and it is zeroed when the \
                     snapshot is next activated",
                    at.area, far.filled, far.likely
                ),
            );
        }
        let next = at.area.saturating_add(1);
        if next < layout.areas() {
            let ahead = Remains::find(image, layout, next, 0, layout.per_area)?;
            if ahead.filled != 0 {
                self.note(
                    "next-area",
                    format!(
                        "area {next}, the next one, is not zero yet in {} places, {} of them \
                         like records of this snapshot; it will be before it is needed",
                        ahead.filled, ahead.likely
                    ),
                );
            }
        }
        Ok(())
    }

    /// Reads all once more to find the records that came first, where two say the same.
    fn name_first(&mut self, image: &Image, layout: &Layout) -> Result {
        let mut olds: HashMap<u64, Option<Place>> = HashMap::new();
        let mut news: HashMap<u64, Option<Place>> = HashMap::new();
        for problem in &self.problems {
            match (problem.kind, problem.old, problem.new) {
                ("old-twice", Some(old), _) => drop(olds.insert(old, None)),
                ("new-twice", _, Some(new)) => drop(news.insert(new, None)),
                _ => {}
            }
        }
        let mut missing = olds.len() + news.len();
        let mut walk = Walk::new(image, layout, Some("looking for the first of two"));
        while missing != 0 {
            let found = match walk.step() {
                None => break,
                Some(Step::Unreadable { .. }) => continue,
                Some(Step::Records(found)) => found,
            };
            for found in found {
                let mut first = |map: &mut HashMap<_, _>, chunk| {
                    if let Some(place @ None) = map.get_mut(&chunk) {
                        *place = Some(found.place);
                        missing -= 1;
                    }
                };
                // A record with an old chunk that is there twice has a new chunk of its own.
                if matches!(found.error, None | Some(RecordError::OldTwice)) {
                    first(&mut news, found.record.new.0);
                }
                if found.error.is_none() {
                    first(&mut olds, found.record.old.0);
                }
            }
        }
        for problem in &mut self.problems {
            problem.first = match (problem.kind, problem.old, problem.new) {
                ("old-twice", Some(old), _) => olds.get(&old).copied().flatten(),
                ("new-twice", _, Some(new)) => news.get(&new).copied().flatten(),
                _ => None,
            };
        }
        Ok(())
    }

    /// Tells a person.
    fn print(&self, image: &Image, out: &mut impl Write) -> Result {
        writeln!(out, "{}", self.device)?;
        print_head(image, out)?;
        if self.layout.is_some() {
            writeln!(out, "  records:  {}", self.records)?;
        }
        if let Some(holes) = self.holes.filter(|holes| holes.chunks != 0) {
            writeln!(
                out,
                "  holes:    {} free chunks in {} places before the last one in use",
                holes.chunks, holes.places
            )?;
        }
        for note in &self.notes {
            writeln!(out, "note: {}", note.text)?;
        }
        for problem in &self.problems {
            write!(out, "problem: {}", problem.text)?;
            if let Some(first) = problem.first {
                write!(out, ", record {} of area {}", first.index, first.area)?;
            }
            writeln!(out)?;
        }
        let total: u64 = self.counts.values().sum();
        let more = total - self.problems.len() as u64;
        if more != 0 {
            writeln!(
                out,
                "problem: {more} more, which are not named; see --limit"
            )?;
        }
        match total {
            0 => writeln!(out, "clean")?,
            1 => writeln!(out, "1 problem")?,
            _ => writeln!(out, "{total} problems")?,
        }
        Ok(())
    }
}

/// What comes first for a person: the device, its header and where things are.
pub(crate) fn print_head(image: &Image, out: &mut impl Write) -> Result {
    writeln!(out, "  size:     {} bytes", image.device.bytes())?;
    if let Some(live) = &image.live {
        writeln!(out, "  live:     {live}")?;
    }
    let Some(raw) = image.raw_header() else {
        writeln!(out, "  header:   none, the device is too small")?;
        return Ok(());
    };
    writeln!(
        out,
        "  header:   magic {:#010x}, valid {}, version {}, chunk size {} sectors",
        raw.magic, raw.valid, raw.version, raw.chunk_size
    )?;
    if let Ok(Some(header)) = image.header() {
        let layout = image.layout(&header)?;
        writeln!(
            out,
            "  layout:   {} chunks of {} bytes, {} areas of {} records",
            layout.total_chunks,
            layout.chunk_size.bytes(),
            layout.areas(),
            layout.per_area
        )?;
        print_origin(&image.origin, &layout, out)?;
    }
    Ok(())
}

fn print_origin(origin: &Origin, layout: &Layout, out: &mut impl Write) -> Result {
    match origin.sectors {
        Some(sectors) => writeln!(
            out,
            "  origin:   {sectors} sectors, {} chunks",
            layout.origin_chunks
        )?,
        None => writeln!(
            out,
            "  origin:   not given, so old chunks were not checked against its size"
        )?,
    }
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
    use std::{fs::File, os::unix::fs::FileExt};

    /// The kernel may append records at any time, and so after the end of them was read.
    #[test]
    fn what_is_appended_meanwhile_is_not_lost() {
        let record = |n| Record {
            old: Chunk(n),
            new: Chunk(n + 2),
        };
        let records: Vec<_> = (0..3).map(record).collect();
        let (path, image, layout) = image(ChunkSize::from_sectors(8).unwrap(), 100, &records);
        let file = File::options().write(true).open(&path.0).unwrap();
        let put = |n, bytes: [u8; 16]| file.write_all_at(&bytes, 4096 + n * 16).unwrap();
        let end = || {
            let mut walk = Walk::new(&image, &layout, None);
            while walk.step().is_some() {}
            walk.end().unwrap()
        };
        let mut report = Report::of(&image, 0).unwrap();
        let before = end();
        for n in 3..6 {
            put(n, record(n).encode());
        }
        report.check_end(&image, &layout, before);
        assert!(report.clean, "{}", report.problems[0].text);
        // What stood there when the end was read counts, even if it has gone since.
        put(3, [0; 16]);
        let before = end();
        put(4, [0; 16]);
        put(5, [0; 16]);
        report.check_end(&image, &layout, before);
        assert_eq!(report.counts, BTreeMap::from([("records-lost", 1)]));
    }
}
