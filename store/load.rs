// SPDX-License-Identifier: GPL-2.0

//! A persistent COW device is opened: its metadata is read, or made.
//!
//! All of it runs in a constructor, which may sleep and may fail. Nothing that is read is
//! trusted; see `format.rs` and `area.rs` for what is checked.

#![deny(unsafe_code)]

use super::{
    area::{Allocator, Cursor, Refused, Scan, ScanError},
    format::{Header, Layout, HEADER_BYTES, RECORD_BYTES},
    persistent::Persistent,
};
use crate::{
    dm::{Buffer, Client, Device, Span, WriteFlags, MAX_BYTES},
    dm_err, dm_warn,
    exception::{InsertError, Spare, Table},
    many::{self, Job},
    units::{Chunk, ChunkSize, Sector, SpanSize, SECTOR_SIZE, SLOTS},
};
use kernel::{prelude::*, sync::Arc};

/// How much metadata is read at a time, in bytes, where it consists of many small areas.
const READ_AHEAD_BYTES: u64 = 4 << 20;

/// The most areas that are read at a time.
const READ_AHEAD_AREAS: u64 = 256;

/// A COW device whose header has been read.
pub(crate) struct Found {
    /// The chunk size to be used: that of the header, if there is one.
    pub(crate) chunk_size: ChunkSize,
    /// Whether there is a header.
    is_used: bool,
    /// Whether the header says that the snapshot can be used.
    pub(crate) is_valid: bool,
}

/// Reads the header. `asked` is the chunk size in the table line.
///
/// # Errors
///
/// `EIO` if it can't be read, `EINVAL` if it is none of ours; the reason has been logged.
pub(crate) fn read_header(client: &Client, cow: &Device, asked: ChunkSize) -> Result<Found> {
    let block = cow.logical_block_size() as usize;
    let mut buffer = Buffer::new(block, GFP_KERNEL)?;
    client
        .read(cow, Sector(0), &mut buffer, block)
        .inspect_err(|_| dm_err!("header of COW device {} cannot be read", cow))?;
    let mut bytes = [0; HEADER_BYTES];
    buffer.read(0, &mut bytes)?;
    let header = Header::decode(&bytes).map_err(|e| {
        dm_err!("{} (COW device {})", e, cow);
        EINVAL
    })?;
    let Some(header) = header else {
        return Ok(Found {
            chunk_size: asked,
            is_used: false,
            is_valid: true,
        });
    };
    if header.chunk_size != asked {
        dm_warn!(
            "chunk size {} in the table line is overridden by chunk size {} of COW device {}",
            asked.sectors(),
            header.chunk_size.sectors(),
            cow
        );
    }
    Ok(Found {
        chunk_size: header.chunk_size,
        is_used: true,
        is_valid: header.valid,
    })
}

/// The header of a COW device, to be written from there. May sleep.
///
/// # Errors
///
/// `ENOMEM`.
pub(crate) fn header(cow: &Device, chunk_size: ChunkSize, valid: bool) -> Result<Buffer> {
    let block = cow.logical_block_size() as usize;
    let mut buffer = Buffer::new(block, GFP_KERNEL)?;
    // All of it, as the device beneath may have larger blocks when it is written.
    buffer.clear(0, buffer.len())?;
    buffer.write(0, &Header { valid, chunk_size }.encode())?;
    Ok(buffer)
}

/// Writes the header; it is on stable media afterwards. Nothing else needs to be for a snapshot to
/// be marked as invalid, and where a flush fails, a write may still be possible.
///
/// # Errors
///
/// `EIO`. Sleeps, and asks for no memory.
pub(crate) fn write_header(client: &Client, cow: &Device, header: &Buffer) -> Result {
    let block = cow.logical_block_size() as usize;
    client.write(cow, Sector(0), header, block, WriteFlags::Fua)
}

/// The exceptions of a COW device, dealt out to the slots, and the store itself.
pub(crate) struct Loaded {
    pub(crate) store: Pin<KBox<Persistent>>,
    pub(crate) tables: KVec<Table>,
}

/// Empty tables, one for each slot.
///
/// # Errors
///
/// `ENOMEM`. May sleep.
pub(crate) fn empty_tables() -> Result<KVec<Table>> {
    let mut tables = KVec::with_capacity(SLOTS, GFP_KERNEL)?;
    for _ in 0..SLOTS {
        tables.push(Table::new(), GFP_KERNEL)?;
    }
    Ok(tables)
}

/// Reads the metadata of a COW device, or makes a device one that has none.
///
/// `spans` says how chunks of the origin are dealt out to the slots.
///
/// # Errors
///
/// `EIO`, `ENOMEM`, `EINVAL` if the metadata is bad; the reason has been logged. Sleeps.
pub(crate) fn load(
    client: &Arc<Client>,
    cow: &Device,
    found: &Found,
    layout: &Layout,
    origin_sectors: u64,
    spans: SpanSize,
) -> Result<Loaded> {
    let mut tables = empty_tables()?;
    let block = cow.logical_block_size() as usize;
    let mut tail = KVec::from_elem(0u8, block, GFP_KERNEL)?;
    let written = |result: Result| {
        result.inspect_err(|_| dm_err!("metadata cannot be written to COW device {}", cow))
    };
    let (mut allocator, cursor) = if !found.is_used {
        written(zero_first_area(client, cow, layout))?;
        (Allocator::fresh(layout), Cursor::fresh(layout))
    } else if found.is_valid {
        let read = scan(client, cow, layout, spans, &mut tables, &mut tail);
        read.inspect_err(|_| dm_err!("metadata of COW device {} cannot be used", cow))?
    } else {
        // Whatever the metadata says, nobody will ask for it.
        (Allocator::fresh(layout), Cursor::fresh(layout))
    };
    allocator.reserve()?;
    let store = Persistent::new(*layout, origin_sectors, allocator, cursor, tail)?;
    let store = KBox::pin_init(store, GFP_KERNEL)?;
    if found.is_valid {
        written(zero_current(client, cow, &store))?;
    }
    if !found.is_used {
        let header = header(cow, layout.chunk_size, true)?;
        written(client.flush(cow))?;
        written(write_header(client, cow, &header))?;
    }
    Ok(Loaded { store, tables })
}

/// Zeroes `bytes` bytes from a sector on; they are on stable media afterwards.
fn zero(client: &Client, cow: &Device, at: Sector, bytes: u64) -> Result {
    let zeroes = Buffer::zeroes(bytes.min(MAX_BYTES as u64) as usize, GFP_KERNEL)?;
    let mut done = 0;
    while done < bytes {
        let piece = (bytes - done).min(MAX_BYTES as u64);
        let from = Sector(at.0.saturating_add(done / SECTOR_SIZE));
        client.write(cow, from, &zeroes, piece as usize, WriteFlags::Fua)?;
        done = done.saturating_add(piece);
    }
    Ok(())
}

fn zero_first_area(client: &Client, cow: &Device, layout: &Layout) -> Result {
    let chunk = layout.area_chunk(0).ok_or(EINVAL)?;
    let at = layout.chunk_size.first_sector(chunk);
    zero(client, cow, at, layout.chunk_size.bytes())
}

/// Zeroes what has to be zero before the next record is written (rule R5). Areas ahead are zeroed
/// when commits begin.
fn zero_current(client: &Client, cow: &Device, store: &Persistent) -> Result {
    while let Some((zeroing, at, bytes)) = store.wants_zeroing() {
        if zeroing.area > store.current_area() {
            break;
        }
        if let Some(block) = store.kept_of(&zeroing)? {
            // What a crash left behind the last record, in its very block: the records stay.
            let mut buffer = Buffer::new(block.len(), GFP_KERNEL)?;
            buffer.write(0, &block)?;
            client.write(cow, at, &buffer, block.len(), WriteFlags::Fua)?;
            let next = Sector(at.0.saturating_add(block.len() as u64 / SECTOR_SIZE));
            zero(client, cow, next, bytes.saturating_sub(block.len() as u64))?;
        } else {
            zero(client, cow, at, bytes)?;
        }
        store.zeroed(&zeroing);
    }
    Ok(())
}

/// Reads all records.
fn scan(
    client: &Arc<Client>,
    cow: &Device,
    layout: &Layout,
    spans: SpanSize,
    tables: &mut KVec<Table>,
    tail: &mut [u8],
) -> Result<(Allocator, Cursor)> {
    let area_bytes = layout.chunk_size.bytes();
    let mut scan = Scan::new(layout);
    let mut spare = Spare::new();
    let (mut ahead, mut most_ahead) = (1, READ_AHEAD_AREAS);
    let mut area = 0;
    let mut last = KVVec::new();
    while scan.wants().is_some() {
        let count = ahead.min(layout.areas().saturating_sub(area)).max(1);
        let areas = match read_areas(client, cow, layout, area, count) {
            Err(_) if count > 1 => {
                // An area behind the last record need not be readable: one at a time from here.
                (ahead, most_ahead) = (1, 1);
                continue;
            }
            areas => areas.inspect_err(|_| {
                dm_err!(
                    "metadata area {} of COW device {} cannot be read",
                    area,
                    cow
                );
            })?,
        };
        for bytes in areas {
            if scan.wants().is_none() {
                break;
            }
            scan.area(&bytes, |record| {
                let first = layout.chunk_size.first_sector(record.old);
                let slot = spans.slot_of(first) as usize;
                let table = tables.get_mut(slot).ok_or(Refused::Failed(EINVAL))?;
                insert(table, record.old, record.new, &mut spare)
            })
            .map_err(|e| match e {
                ScanError::Bad(bad) => {
                    dm_err!("{} (COW device {})", bad, cow);
                    EINVAL
                }
                ScanError::Failed(e) => e,
            })?;
            last = bytes;
        }
        area = area.saturating_add(count);
        ahead = (ahead * 2)
            .min(READ_AHEAD_BYTES / area_bytes.max(1))
            .clamp(1, most_ahead);
    }
    if !scan.has_end() {
        dm_err!(
            "the records go on beyond the end of COW device {}: has it become smaller?",
            cow
        );
    }
    let (allocator, cursor) = scan.finish()?;
    for table in tables {
        // Where there is no memory to pack it, it stays as it is.
        let _ = table.compact();
    }
    keep_tail(cursor, &last, tail);
    Ok((allocator, cursor))
}

/// Puts a record into a table. May sleep.
///
/// # Errors
///
/// See [`Refused`].
pub(crate) fn insert(
    table: &mut Table,
    old: Chunk,
    new: Chunk,
    spare: &mut Spare,
) -> Result<(), Refused> {
    loop {
        match table.insert(old, new, 1, spare) {
            Ok(()) => return Ok(()),
            Err(InsertError::Overlap) => return Err(Refused::OldTwice),
            Err(InsertError::OutOfRange) => return Err(Refused::Failed(EINVAL)),
            Err(InsertError::NeedMemory) => spare
                .refill(GFP_KERNEL)
                .map_err(|_| Refused::Failed(ENOMEM))?,
        }
    }
}

/// Copies what is before the cursor in its block; what is behind it may be left by a crash.
fn keep_tail(cursor: Cursor, area: &[u8], tail: &mut [u8]) {
    let (_, index) = cursor.position();
    let end = (index as usize).saturating_mul(RECORD_BYTES);
    let within = end % tail.len().max(1);
    let kept = area.get(end.saturating_sub(within)..end).unwrap_or(&[]);
    for (to, from) in tail.iter_mut().zip(kept) {
        *to = *from;
    }
}

/// Reads `count` areas from the one called `first` on, at a time.
fn read_areas(
    client: &Arc<Client>,
    cow: &Device,
    layout: &Layout,
    first: u64,
    count: u64,
) -> Result<KVec<KVVec<u8>>> {
    let area_bytes = layout.chunk_size.bytes();
    let pieces = area_bytes.div_ceil(MAX_BYTES as u64);
    let mut jobs = KVec::new();
    for area in first..first.saturating_add(count) {
        let chunk = layout.area_chunk(area).ok_or(EINVAL)?;
        let at = layout.chunk_size.first_sector(chunk).0;
        for piece in 0..pieces {
            let offset = piece.saturating_mul(MAX_BYTES as u64);
            let bytes = area_bytes.saturating_sub(offset).min(MAX_BYTES as u64) as usize;
            let from = Sector(at.saturating_add(offset / SECTOR_SIZE));
            let buffer = Buffer::new(bytes, GFP_KERNEL)?;
            let span = Span::at(from, bytes);
            jobs.push(Job { span, buffer }, GFP_KERNEL)?;
        }
    }
    let buffers = many::read(client, cow, jobs)?;
    let mut areas = KVec::with_capacity(count as usize, GFP_KERNEL)?;
    for area in buffers.chunks(pieces as usize) {
        let mut bytes = KVVec::from_elem(0u8, area_bytes as usize, GFP_KERNEL)?;
        for (part, buffer) in bytes.chunks_mut(MAX_BYTES).zip(area) {
            buffer.read(0, part)?;
        }
        areas.push(bytes, GFP_KERNEL)?;
    }
    Ok(areas)
}
