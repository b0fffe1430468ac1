// SPDX-License-Identifier: GPL-2.0

//! Devices and image files, for reading only.

#![deny(unsafe_code)]

use crate::{
    failure::{Failure, Result},
    units::SECTOR_SIZE,
};
use rustix::fs::{ioctl_blksszget, major, minor, OFlags};
use std::{
    cell::RefCell,
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom},
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Memory for direct I/O begins at a multiple of this: no logical block is larger in practice,
/// and none is larger than a page on the machines that have 4 KiB pages.
const ALIGNMENT: usize = 65536;

/// A block device or an image file, opened for reading.
pub(crate) struct Device {
    file: File,
    bytes: u64,
    /// Of a block device: its logical block size, and its number.
    block: Option<(u32, (u32, u32))>,
    /// Aligned as direct I/O wants it, from some place on.
    buffer: RefCell<Vec<u8>>,
}

impl Device {
    /// Opens a device or an image.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Self::try_open(path).map_err(|e| Failure::because(path.display(), e))
    }

    fn try_open(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        let kind = metadata.file_type();
        if kind.is_file() {
            return Ok(Self {
                file: File::open(path)?,
                bytes: metadata.len(),
                block: None,
                buffer: RefCell::default(),
            });
        }
        if !kind.is_block_device() {
            return Err(io::Error::other("neither a block device nor a file"));
        }
        // The kernel's snapshots write beneath the page cache, which would go on showing
        // what it once read.
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::DIRECT.bits() as i32)
            .open(path)?;
        let bytes = file.seek(SeekFrom::End(0))?;
        let block = ioctl_blksszget(&file)?;
        let number = metadata.rdev();
        Ok(Self {
            file,
            bytes,
            block: Some((block, (major(number), minor(number)))),
            buffer: RefCell::default(),
        })
    }

    /// The size in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The size in whole sectors.
    pub(crate) fn sectors(&self) -> u64 {
        self.bytes / SECTOR_SIZE
    }

    /// The logical block size; an image has none.
    pub(crate) fn block_size(&self) -> Option<u32> {
        self.block.map(|(size, _)| size)
    }

    /// The devices that are built on this one.
    pub(crate) fn holders(&self) -> Vec<String> {
        let Some((_, (major, minor))) = self.block else {
            return Vec::new();
        };
        let holders = fs::read_dir(format!("/sys/dev/block/{major}:{minor}/holders"));
        let entries = holders.into_iter().flatten().flatten();
        let mut names: Vec<_> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// Fills `to` with what stands at `offset`.
    pub(crate) fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let Some((block, _)) = self.block else {
            return self.file.read_exact_at(to, offset);
        };
        // Whole blocks, into memory that is aligned.
        let block = u64::from(block);
        let start = offset / block * block;
        let skip = (offset - start) as usize;
        let len = (skip + to.len()).next_multiple_of(block as usize);
        let mut buffer = self.buffer.borrow_mut();
        if buffer.len() < len + ALIGNMENT {
            buffer.resize(len + ALIGNMENT, 0);
        }
        let from = buffer.as_ptr().align_offset(ALIGNMENT);
        let aligned = buffer
            .get_mut(from..from.saturating_add(len))
            .ok_or(io::ErrorKind::OutOfMemory)?;
        self.file.read_exact_at(aligned, start)?;
        to.copy_from_slice(&aligned[skip..skip + to.len()]);
        Ok(())
    }
}

/// The path of the device that device-mapper calls by its number, `major:minor`.
pub(crate) fn path_of(number: &str) -> Result<PathBuf> {
    let uevent = format!("/sys/dev/block/{number}/uevent");
    let text = fs::read_to_string(&uevent).map_err(|e| Failure::because(&uevent, e))?;
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map(|name| Path::new("/dev").join(name))
        .ok_or_else(|| Failure::because(&uevent, "names no device"))
}
