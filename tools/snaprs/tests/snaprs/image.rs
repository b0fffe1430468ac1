// SPDX-License-Identifier: GPL-2.0

//! Images of COW devices, and the command run on them.

use serde_json::Value;
use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

pub const SECTOR: u64 = 512;

/// An image, as it is to be written.
#[derive(Clone, Debug)]
pub struct Image {
    /// Magic number, valid, version, chunk size in sectors.
    pub header: [u32; 4],
    /// The chunk size that places are reckoned with.
    pub chunk: u64,
    /// The size of the device in chunks.
    pub chunks: u64,
    /// Old and new chunks.
    pub records: Vec<(u64, u64)>,
}

/// A file that goes away with its value.
pub struct TempFile(pub PathBuf);

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl AsRef<OsStr> for TempFile {
    fn as_ref(&self) -> &OsStr {
        self.0.as_os_str()
    }
}

/// A name that nobody else has.
pub fn temp(name: &str) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let id = std::process::id();
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.{id}.{number}"))
}

impl Image {
    pub fn new(chunk: u64, chunks: u64) -> Self {
        Self {
            header: [0x7041_6e53, 1, 1, chunk as u32],
            chunk,
            chunks,
            records: Vec::new(),
        }
    }

    pub fn chunk_bytes(&self) -> u64 {
        self.chunk * SECTOR
    }

    pub fn per_area(&self) -> u64 {
        self.chunk_bytes() / 16
    }

    /// The chunk of an area.
    pub fn area_chunk(&self, area: u64) -> u64 {
        1 + area * (self.per_area() + 1)
    }

    /// Whether a chunk holds data, not the header or an area.
    pub fn is_data(&self, chunk: u64) -> bool {
        chunk > 1 && chunk % (self.per_area() + 1) != 1
    }

    /// The chunks for data, in their order.
    pub fn data_chunks(&self) -> impl Iterator<Item = u64> + '_ {
        (2..self.chunks).filter(|chunk| self.is_data(*chunk))
    }

    /// The area and the number of a record.
    pub fn place(&self, record: usize) -> (u64, u64) {
        let record = record as u64;
        (record / self.per_area(), record % self.per_area())
    }

    /// Where a record stands in the file.
    pub fn offset(&self, record: usize) -> u64 {
        let (area, index) = self.place(record);
        self.area_chunk(area) * self.chunk_bytes() + index * 16
    }

    pub fn write(&self) -> TempFile {
        let path = temp("image");
        let mut file = File::create(&path).unwrap();
        let mut header = Vec::new();
        for field in self.header {
            header.extend(field.to_le_bytes());
        }
        file.write_all(&header).unwrap();
        let mut first = 0;
        for records in self.records.chunks(self.per_area() as usize) {
            let mut bytes = Vec::new();
            for (old, new) in records {
                bytes.extend(old.to_le_bytes());
                bytes.extend(new.to_le_bytes());
            }
            file.seek(SeekFrom::Start(self.offset(first))).unwrap();
            file.write_all(&bytes).unwrap();
            first += records.len();
        }
        file.set_len(self.chunks * self.chunk_bytes()).unwrap();
        TempFile(path)
    }
}

/// Changes bytes of a file.
pub fn patch(file: &TempFile, offset: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(&file.0).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

/// What the command did.
pub struct Ran {
    pub status: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e} in: {}", self.out))
    }
}

/// Runs the command.
pub fn snaprs<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Ran {
    ran(Command::new(env!("CARGO_BIN_EXE_snaprs")).args(arguments))
}

/// Runs any command.
pub fn ran(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    let ran = Ran {
        status: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    };
    assert!(!ran.err.contains("panicked"), "{}", ran.err);
    ran
}

/// Runs the command on an image, with more options.
pub fn on(command: &str, image: &TempFile, options: &[&str]) -> Ran {
    let words = [command.as_ref(), image.as_ref()];
    snaprs(words.into_iter().chain(options.iter().map(AsRef::as_ref)))
}
