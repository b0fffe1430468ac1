// SPDX-License-Identifier: GPL-2.0

//! A stand-in for the module's `dm`, as far as the store needs it: a COW device is an image in
//! memory. I/O beyond its end, or not in whole blocks of it, fails, as at a device.

use crate::units::{Sector, SECTOR_SIZE};
use kernel::alloc::Flags;
use kernel::prelude::*;
use std::fmt;
use std::sync::Mutex;

pub(crate) mod log;

/// The largest amount of memory that is moved by one request, in bytes.
pub(crate) const MAX_BYTES: usize = 1 << 20;

const PAGE_SIZE: usize = 4096;

/// Memory for I/O: whole pages.
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    is_writable: bool,
}

type Vec<T> = std::vec::Vec<T>;

impl Buffer {
    pub(crate) fn new(bytes: usize, _flags: Flags) -> Result<Self> {
        // What is in new pages is not defined.
        let bytes = vec![0xa5; bytes.next_multiple_of(PAGE_SIZE)];
        Ok(Self {
            bytes,
            is_writable: true,
        })
    }

    pub(crate) fn zeroes(bytes: usize, _flags: Flags) -> Result<Self> {
        Ok(Self {
            bytes: vec![0; bytes.next_multiple_of(PAGE_SIZE)],
            is_writable: false,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    fn part(&mut self, offset: usize, len: usize) -> Result<&mut [u8]> {
        let end = offset.checked_add(len).ok_or(EINVAL)?;
        let part = self.bytes.get_mut(offset..end).ok_or(EINVAL)?;
        self.is_writable.then_some(part).ok_or(EINVAL)
    }

    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) -> Result {
        self.part(offset, data.len())?.copy_from_slice(data);
        Ok(())
    }

    pub(crate) fn clear(&mut self, offset: usize, len: usize) -> Result {
        self.part(offset, len)?.fill(0);
        Ok(())
    }

    pub(crate) fn read(&self, offset: usize, out: &mut [u8]) -> Result {
        let end = offset.checked_add(out.len()).ok_or(EINVAL)?;
        out.copy_from_slice(self.bytes.get(offset..end).ok_or(EINVAL)?);
        Ok(())
    }
}

/// A block of a device that has been written.
pub(crate) struct Block {
    /// Its first byte.
    at: usize,
    bytes: Vec<u8>,
}

impl Block {
    /// Writes it to an image.
    pub(crate) fn put(&self, image: &mut [u8]) {
        image[self.at..self.at + self.bytes.len()].copy_from_slice(&self.bytes);
    }
}

/// A device.
pub(crate) struct Device {
    bytes: Mutex<Vec<u8>>,
    block: u32,
    written: Mutex<Vec<Vec<Block>>>,
}

impl Device {
    pub(crate) fn new(bytes: Vec<u8>, block: u32) -> Self {
        Self {
            bytes: Mutex::new(bytes),
            block,
            written: Mutex::new(Vec::new()),
        }
    }

    pub(crate) fn sectors(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64 / SECTOR_SIZE
    }

    pub(crate) fn logical_block_size(&self) -> u32 {
        self.block
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes.into_inner().unwrap()
    }

    /// The writes since it was last asked, in their order: each is the blocks that it consists of.
    pub(crate) fn take_written(&self) -> Vec<Vec<Block>> {
        std::mem::take(&mut self.written.lock().unwrap())
    }

    /// Does something with a range of bytes, if the device takes I/O for it.
    fn at<T>(&self, at: Sector, bytes: usize, f: impl FnOnce(&mut [u8]) -> T) -> Result<T> {
        let start = at.0.checked_mul(SECTOR_SIZE).ok_or(EIO)?;
        let block = u64::from(self.block);
        if bytes == 0 || start % block != 0 || bytes as u64 % block != 0 {
            return Err(EIO);
        }
        let end = start.checked_add(bytes as u64).ok_or(EIO)?;
        if end > self.sectors() * SECTOR_SIZE {
            return Err(EIO);
        }
        let mut device = self.bytes.lock().unwrap();
        Ok(f(&mut device[start as usize..end as usize]))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "7:0")
    }
}

/// How a write is to reach the medium. Here each does at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WriteFlags {
    Fua,
}

/// Who does I/O.
pub(crate) struct Client;

impl Client {
    /// Here all that was written is on the medium already.
    pub(crate) fn flush(&self, _device: &Device) -> Result {
        Ok(())
    }

    pub(crate) fn read(
        &self,
        device: &Device,
        at: Sector,
        buffer: &mut Buffer,
        bytes: usize,
    ) -> Result {
        let to = buffer.part(0, bytes)?;
        device.at(at, bytes, |from| to.copy_from_slice(from))
    }

    pub(crate) fn write(
        &self,
        device: &Device,
        at: Sector,
        buffer: &Buffer,
        bytes: usize,
        _flags: WriteFlags,
    ) -> Result {
        let from = buffer.bytes.get(..bytes).ok_or(EINVAL)?;
        device.at(at, bytes, |to| to.copy_from_slice(from))?;
        let size = device.block as usize;
        let places = (at.0 as usize * 512..).step_by(size);
        let blocks = places.zip(from.chunks(size)).map(|(at, bytes)| Block {
            at,
            bytes: bytes.to_vec(),
        });
        device.written.lock().unwrap().push(blocks.collect());
        Ok(())
    }
}

/// Where a request begins, and how much it moves.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub(crate) at: Sector,
    pub(crate) bytes: usize,
}

impl Span {
    pub(crate) fn at(at: Sector, bytes: usize) -> Self {
        Self { at, bytes }
    }
}
