// SPDX-License-Identifier: GPL-2.0

//! What is looked at: a COW device or an image of one, or what was read of a live one.

#![deny(unsafe_code)]

use crate::{
    device::Device,
    failure::{Failure, Result},
    live::Live,
    store::format::{Header, HeaderError, Layout, HEADER_BYTES, RECORD_BYTES},
    units::SECTOR_SIZE,
};
use serde::Serialize;
use std::{io, path::Path};

/// The origin size that stands for "not known": no device has more sectors.
pub(crate) const ANY_ORIGIN: u64 = i64::MAX as u64 / SECTOR_SIZE;

/// As many bytes as lvcreate(8) zeroes at the beginning of a new device.
const START: u64 = 4096;

/// A COW device.
pub(crate) struct Image {
    /// How it is called.
    pub(crate) name: String,
    /// The device.
    pub(crate) device: Device,
    /// What is known of the origin.
    pub(crate) origin: Origin,
    /// If the snapshot is live.
    pub(crate) live: Option<Live>,
    /// The bytes of the header, and of what stands behind it in its sector.
    head: Vec<u8>,
}

/// What is known of the origin.
#[derive(Default)]
pub(crate) struct Origin {
    /// Its size.
    pub(crate) sectors: Option<u64>,
    /// Its logical block size.
    pub(crate) block_size: Option<u32>,
}

impl Origin {
    /// An origin that can be looked at.
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let device = Device::open(path)?;
        Ok(Self {
            sectors: Some(device.sectors()),
            block_size: device.block_size(),
        })
    }
}

/// The header, as it stands there.
#[derive(Serialize)]
pub(crate) struct RawHeader {
    pub(crate) magic: u32,
    pub(crate) valid: u32,
    pub(crate) version: u32,
    pub(crate) chunk_size: u32,
}

impl Image {
    /// Reads the header of a device.
    pub(crate) fn open(path: &Path, origin: Origin) -> Result<Self> {
        let device = Device::open(path)?;
        let name = path.display().to_string();
        let head = read_head(&device).map_err(|e| header_failure(&name, e))?;
        Ok(Self {
            name,
            device,
            origin,
            live: None,
            head,
        })
    }

    /// What was read of a live snapshot.
    pub(crate) fn captured(
        name: String,
        device: Device,
        origin: Origin,
        head: Vec<u8>,
        live: Live,
    ) -> Self {
        Self {
            name,
            device,
            origin,
            live: Some(live),
            head,
        }
    }

    /// The size of the device in whole sectors.
    pub(crate) fn sectors(&self) -> u64 {
        self.device.sectors()
    }

    /// The header.
    pub(crate) fn header(&self) -> std::result::Result<Option<Header>, HeaderError> {
        Header::decode(&self.head)
    }

    /// The header's fields, whatever they are; `None` if there are too few bytes.
    pub(crate) fn raw_header(&self) -> Option<RawHeader> {
        let field = |n: usize| {
            let bytes = self.head.get(n * 4..n * 4 + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        Some(RawHeader {
            magic: field(0)?,
            valid: field(1)?,
            version: field(2)?,
            chunk_size: field(3)?,
        })
    }

    /// Whether what stands in the sector of the header is, byte by byte, what is written for
    /// that header.
    pub(crate) fn header_is_as_written(&self, header: &Header) -> bool {
        let (fields, rest) = self.head.split_at(HEADER_BYTES.min(self.head.len()));
        fields == header.encode() && rest.iter().all(|byte| *byte == 0)
    }

    /// Whether the sector of the header is zero.
    pub(crate) fn head_is_zero(&self) -> bool {
        self.head.iter().all(|byte| *byte == 0)
    }

    /// Whether the device begins with zeroes, as a new one does.
    pub(crate) fn start_is_zero(&self) -> Result<bool> {
        let mut start = vec![0; self.device.bytes().min(START) as usize];
        self.device.read(0, &mut start).map_err(|e| {
            let what = format!("{}: the first {START} bytes cannot be read", self.name);
            Failure::because(what, e)
        })?;
        Ok(start.iter().all(|byte| *byte == 0))
    }

    /// Where things are.
    pub(crate) fn layout(&self, header: &Header) -> Result<Layout> {
        let origin = self.origin.sectors.unwrap_or(ANY_ORIGIN);
        Layout::new(header.chunk_size, self.sectors(), origin)
            .ok_or_else(|| Failure::because(&self.name, "the chunk size is too large"))
    }

    /// What the device is used by, unless it is live and was read as such.
    pub(crate) fn unsteady(&self) -> Option<String> {
        let holders = self.device.holders();
        (self.live.is_none() && !holders.is_empty()).then(|| {
            format!(
                "the device is in use by {}: what was read may be half of one state and \
                 half of another; --live reads a snapshot that is active",
                holders.join(", ")
            )
        })
    }

    /// Reads records of an area, from number `first` on.
    pub(crate) fn read_records(
        &self,
        layout: &Layout,
        area: u64,
        first: u32,
        to: &mut [u8],
    ) -> io::Result<()> {
        let within = u64::from(first) * RECORD_BYTES as u64;
        if let Some(live) = &self.live {
            return live.read(area * layout.chunk_size.bytes() + within, to);
        }
        read_area(&self.device, layout, area, within, to)
    }
}

/// Reads what stands `within` bytes behind the beginning of an area.
pub(crate) fn read_area(
    device: &Device,
    layout: &Layout,
    area: u64,
    within: u64,
    to: &mut [u8],
) -> io::Result<()> {
    let chunk = layout
        .area_chunk(area)
        .ok_or_else(|| io::Error::other("there is no such area"))?;
    let at = layout.chunk_size.first_sector(chunk).0;
    let at = at
        .checked_mul(SECTOR_SIZE)
        .and_then(|at| at.checked_add(within))
        .ok_or_else(|| io::Error::other("the area lies too far out"))?;
    device.read(at, to)
}

/// The first sector, or as much as there is of it.
pub(crate) fn read_head(device: &Device) -> io::Result<Vec<u8>> {
    let mut head = vec![0; device.bytes().min(SECTOR_SIZE) as usize];
    device.read(0, &mut head)?;
    Ok(head)
}

/// The header could not be read.
pub(crate) fn header_failure(name: &str, error: io::Error) -> Failure {
    Failure::because(format!("{name}: the header cannot be read"), error)
}

/// What JSON says of the layout.
#[derive(Serialize)]
pub(crate) struct LayoutInfo {
    chunk_bytes: u64,
    records_per_area: u32,
    chunks: u64,
    areas: u64,
    origin_chunks: Option<u64>,
}

impl LayoutInfo {
    pub(crate) fn new(layout: &Layout, origin: &Origin) -> Self {
        Self {
            chunk_bytes: layout.chunk_size.bytes(),
            records_per_area: layout.per_area,
            chunks: layout.total_chunks,
            areas: layout.areas(),
            origin_chunks: origin.sectors.map(|_| layout.origin_chunks),
        }
    }
}
