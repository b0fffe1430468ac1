// SPDX-License-Identifier: GPL-2.0

//! A snapshot that is active, read beside the kernel.
//!
//! The message `commit` has the module put all records on stable media and answer how many
//! there are. From then on these stay as they are until a merge takes some away, and then
//! the answer's generation is another. So they are read between two such messages.

#![deny(unsafe_code)]

use crate::{
    device::{path_of, Device},
    failure::{Failure, Result},
    image::{header_failure, read_area, read_head, Image, Origin},
    store::format::{Header, Layout, RECORD_BYTES},
};
use serde::Serialize;
use std::{fmt, io, path::Path, process::Command};

/// How often records are read again that were changed meanwhile.
const ATTEMPTS: u32 = 8;

/// How much is read at a time, in bytes.
const PIECE: u64 = 1 << 20;

/// What was read of a live snapshot.
#[derive(Serialize)]
pub(crate) struct Live {
    /// The name of the snapshot's device.
    name: String,
    /// What the kernel said.
    #[serde(flatten)]
    reply: Reply,
    /// The areas, one after the other, up to the last record.
    #[serde(skip)]
    areas: Vec<u8>,
}

impl fmt::Display for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Reply {
            records,
            generation,
            ..
        } = self.reply;
        write!(
            f,
            "{}, {records} records, generation {generation}",
            self.name
        )
    }
}

/// The answer to the message `commit`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
struct Reply {
    /// The chunk size in sectors.
    #[serde(skip)]
    chunk_size: u64,
    /// How many records are on stable media.
    records: u64,
    /// Another one after records were taken away.
    generation: u64,
}

impl Live {
    /// How many records there are.
    pub(crate) fn records(&self) -> u64 {
        self.reply.records
    }

    /// Gives what stands `offset` bytes behind the beginning of the first area, all areas
    /// taken together.
    pub(crate) fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).map_err(io::Error::other)?;
        let end = from.saturating_add(to.len());
        let bytes = self
            .areas
            .get(from..end)
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        to.copy_from_slice(bytes);
        Ok(())
    }
}

/// Reads the COW device of the snapshot whose device has that name.
pub(crate) fn open(name: &str, origin: Option<Origin>) -> Result<Image> {
    let devices = || {
        devices_of(&dmsetup(&["table", name])?)
            .map_err(|why| Failure::because(format!("{name}: its table"), why))
    };
    let numbers = devices()?;
    let (origin_number, cow_number) = &numbers;
    let origin = match origin {
        Some(origin) => origin,
        None => Origin::of(&path_of(origin_number)?)?,
    };
    let path = path_of(cow_number)?;
    let commit = || {
        let text = dmsetup(&["message", name, "0", "commit"])?;
        if devices()? != numbers {
            return Err(Failure::because(name, "it got another table meanwhile"));
        }
        Reply::parse(&text).ok_or_else(|| {
            Failure::because(
                format!("{name}: message commit"),
                "the answer is not understood",
            )
        })
    };
    let (reply, (device, head, areas)) = stable(name, commit, |reply| read(name, &path, reply))?;
    Ok(Image::captured(
        path.display().to_string(),
        device,
        origin,
        head,
        Live {
            name: name.to_string(),
            reply,
            areas,
        },
    ))
}

/// Reads between two messages, again if records were taken away between them.
fn stable<T>(
    name: &str,
    mut commit: impl FnMut() -> Result<Reply>,
    mut read: impl FnMut(&Reply) -> Result<T>,
) -> Result<(Reply, T)> {
    for _ in 0..ATTEMPTS {
        let before = commit()?;
        let found = read(&before);
        let after = commit()?;
        // Fewer records of the same generation are those of another snapshot by that name.
        if (after.chunk_size, after.generation) == (before.chunk_size, before.generation)
            && after.records >= before.records
        {
            return Ok((before, found?));
        }
    }
    Err(Failure::because(
        name,
        format!("records were taken away during each of {ATTEMPTS} attempts to read them; is it being merged?"),
    ))
}

/// Reads the header, and as many areas as hold so many records.
fn read(name: &str, path: &Path, reply: &Reply) -> Result<(Device, Vec<u8>, Vec<u8>)> {
    let device = Device::open(path)?;
    let head = read_head(&device).map_err(|e| header_failure(name, e))?;
    let header = Header::decode(&head)
        .ok()
        .flatten()
        .filter(|header| header.chunk_size.sectors() == reply.chunk_size)
        .ok_or_else(|| {
            Failure::Damaged(format!(
                "{}: its header is not that of a snapshot with chunks of {} sectors, which \
                 {name} is",
                path.display(),
                reply.chunk_size
            ))
        })?;
    let layout = Layout::new(header.chunk_size, device.sectors(), 0)
        .filter(|layout| reply.records / u64::from(layout.per_area) <= layout.areas())
        .ok_or_else(|| Failure::because(name, "there are more records than places for them"))?;
    let size = reply.records * RECORD_BYTES as u64;
    let mut areas = vec![0; usize::try_from(size).map_err(|e| Failure::because(name, e))?];
    let area_bytes = layout.chunk_size.bytes();
    let mut done = 0;
    while done < size {
        let within = done % area_bytes;
        let len = (area_bytes - within).min(PIECE).min(size - done);
        let to = &mut areas[done as usize..(done + len) as usize];
        let area = done / area_bytes;
        read_area(&device, &layout, area, within, to)
            .map_err(|e| Failure::because(format!("{}: area {area}", path.display()), e))?;
        done += len;
    }
    Ok((device, head, areas))
}

/// Runs dmsetup, and gives what it prints.
fn dmsetup(arguments: &[&str]) -> Result<String> {
    let what = || format!("dmsetup {}", arguments.join(" "));
    let output = Command::new("dmsetup")
        .args(arguments)
        .env("LC_ALL", "C")
        .output()
        .map_err(|e| Failure::because(what(), e))?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::because(what(), told.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The numbers of the origin and of the COW device in a snapshot's table.
fn devices_of(table: &str) -> std::result::Result<(String, String), String> {
    let mut lines = table.lines().filter(|line| !line.trim().is_empty());
    let line = lines.next().ok_or("it has none that is active")?;
    if lines.next().is_some() {
        return Err("it has more than one line".into());
    }
    let words: Vec<_> = line.split_whitespace().collect();
    let [_, _, target, origin, cow, store, ..] = words[..] else {
        return Err(format!("it is no snapshot: {line}"));
    };
    if !matches!(
        target,
        "snapshot-rs" | "snap-merge-rs" | "snapshot" | "snapshot-merge"
    ) {
        return Err(format!("it is no snapshot, but {target}"));
    }
    if !store.starts_with(['P', 'p']) {
        return Err("it is a transient snapshot: its records are only in memory".into());
    }
    Ok((origin.to_string(), cow.to_string()))
}

impl Reply {
    /// Reads an answer: names and numbers in turn. More than those that are known may come.
    fn parse(text: &str) -> Option<Self> {
        let words: Vec<_> = text.split_whitespace().collect();
        let number = |name| {
            let pair = words.chunks_exact(2).find(|pair| pair[0] == name)?;
            pair[1].parse().ok()
        };
        Some(Self {
            chunk_size: number("chunk_size")?,
            records: number("records")?,
            generation: number("generation")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(records: u64, generation: u64) -> Reply {
        Reply {
            chunk_size: 16,
            records,
            generation,
        }
    }

    #[test]
    fn an_answer_is_understood() {
        let text = "chunk_size 16 records 1234 generation 7\n";
        assert_eq!(Reply::parse(text), Some(reply(1234, 7)));
        let more = "chunk_size 16 records 1234 generation 7 and 9";
        assert_eq!(Reply::parse(more), Some(reply(1234, 7)));
        for bad in [
            "",
            "chunk_size 16 records 1234",
            "chunk_size 16 records -1 generation 7",
            "16 1234 7",
            "chunk_size 16 records 1234 generation",
        ] {
            assert_eq!(Reply::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_table_names_its_devices() {
        for target in ["snapshot-rs", "snap-merge-rs", "snapshot", "snapshot-merge"] {
            let table = format!("0 2048 {target} 254:1 254:2 P 16\n");
            assert_eq!(devices_of(&table), Ok(("254:1".into(), "254:2".into())));
        }
        let overflow = "0 2048 snapshot-rs 254:1 254:2 PO 16 1 some_feature\n";
        assert!(devices_of(overflow).is_ok());
        for (table, why) in [
            ("", "none"),
            ("0 2048 snapshot-rs 254:1 254:2 N 16\n", "transient"),
            ("0 2048 snap-origin-rs 254:1\n", "no snapshot"),
            ("0 2048 crypt a b c 0 254:1 0\n", "but crypt"),
            (
                "0 8 snapshot 1:1 1:2 P 8\n8 8 snapshot 1:1 1:2 P 8\n",
                "more than one",
            ),
        ] {
            let error = devices_of(table).unwrap_err();
            assert!(error.contains(why), "{table:?}: {error}");
        }
    }

    #[test]
    fn what_changed_meanwhile_is_read_again() {
        let mut answers = [(10, 1), (8, 2), (8, 2), (6, 3), (6, 3), (9, 3)].into_iter();
        let mut reads = 0;
        let commit = || {
            let (records, generation) = answers.next().unwrap();
            Ok(reply(records, generation))
        };
        let found = stable("snap", commit, |before| {
            reads += 1;
            // What is read may make no sense where records went away.
            match reads {
                1 => Err(Failure::Damaged("half".into())),
                _ => Ok(before.records),
            }
        });
        assert_eq!(found.unwrap(), (reply(6, 3), 6));
        assert_eq!(reads, 3);
    }

    #[test]
    fn it_gives_up_on_what_never_rests() {
        let mut generation = 0;
        let commit = || {
            generation += 1;
            Ok(reply(1, generation))
        };
        let found = stable("snap", commit, |_| Ok(()));
        let text = found.unwrap_err().text().unwrap();
        assert!(text.contains("taken away"), "{text}");
        assert_eq!(generation, 2 * u64::from(ATTEMPTS));
    }
}
