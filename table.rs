// SPDX-License-Identifier: GPL-2.0

//! Table lines in, status and table texts out.
//!
//! The syntax is that of the kernel's `snapshot` and `snapshot-origin` targets, and so are
//! the texts that `dmsetup status` and `dmsetup table` show. Three things are stricter: a
//! store type is `P`, `PO` or `N` in either case and nothing else; a chunk size of 0 is
//! refused (the kernel's target takes it for that in the COW header, or 32 sectors); and so
//! is anything behind the last argument.

#![deny(unsafe_code)]

use crate::store::format::MAX_CHUNK_SECTORS;
use crate::units::{ChunkSize, SECTOR_SIZE};
use core::ffi::CStr;
use core::fmt::{self, Write};
use core::num::IntErrorKind;

/// Where exceptions are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum StoreType {
    /// `P`: on the COW device, over a restart.
    Persistent,
    /// `PO`: the same, and user space knows the status `Overflow`.
    PersistentOverflow,
    /// `N`: in memory.
    Transient,
}

impl StoreType {
    /// As it stands in a table line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Persistent => "P",
            Self::PersistentOverflow => "PO",
            Self::Transient => "N",
        }
    }

    /// Whether records are kept on the COW device.
    pub(crate) fn is_persistent(self) -> bool {
        match self {
            Self::Persistent | Self::PersistentOverflow => true,
            Self::Transient => false,
        }
    }

    fn parse(arg: &CStr) -> Option<Self> {
        [Self::Persistent, Self::PersistentOverflow, Self::Transient]
            .into_iter()
            .find(|t| arg.to_bytes().eq_ignore_ascii_case(t.name().as_bytes()))
    }
}

/// A feature that may stand at the end of a table line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Feature {
    /// Not supported yet.
    DiscardZeroesCow,
    /// Not supported yet.
    DiscardPassdownOrigin,
}

impl Feature {
    /// All that are known, in the order in which a table line shows them.
    const ALL: [Self; 2] = [Self::DiscardZeroesCow, Self::DiscardPassdownOrigin];

    /// As it stands in a table line.
    fn name(self) -> &'static str {
        match self {
            Self::DiscardZeroesCow => "discard_zeroes_cow",
            Self::DiscardPassdownOrigin => "discard_passdown_origin",
        }
    }

    /// Whether it may be asked for.
    fn is_supported(self) -> bool {
        match self {
            Self::DiscardZeroesCow | Self::DiscardPassdownOrigin => false,
        }
    }

    fn bit(self) -> u32 {
        match self {
            Self::DiscardZeroesCow => 1,
            Self::DiscardPassdownOrigin => 1 << 1,
        }
    }
}

/// A set of features.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Features {
    bits: u32,
}

impl Features {
    /// None at all.
    pub(crate) const NONE: Self = Self { bits: 0 };

    /// Whether a feature was asked for.
    pub(crate) fn has(self, feature: Feature) -> bool {
        self.bits & feature.bit() != 0
    }

    fn add(&mut self, feature: Feature) {
        self.bits |= feature.bit();
    }

    /// As in a table line, with a space before each word; nothing if there is none.
    fn write(self, w: &mut impl Write) -> fmt::Result {
        let set = || Feature::ALL.into_iter().filter(|f| self.has(*f));
        match set().count() {
            0 => return Ok(()),
            n => write!(w, " {n}")?,
        }
        for feature in set() {
            write!(w, " {}", feature.name())?;
        }
        Ok(())
    }
}

/// One of the two devices that a table line names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Device {
    /// The first.
    Origin,
    /// The second.
    Cow,
}

impl Device {
    fn name(self) -> &'static str {
        match self {
            Self::Origin => "origin",
            Self::Cow => "COW device",
        }
    }
}

/// What is wrong with a table line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ArgError<'a> {
    /// `snapshot-rs` has fewer than four arguments.
    TooFew(usize),
    /// Something stands behind the last argument.
    TooMany(&'a CStr),
    /// `snap-origin-rs` has not exactly one argument.
    OriginCount(usize),
    /// The name of a device is empty.
    NoName(Device),
    /// The store type is not known.
    StoreType(&'a CStr),
    /// The chunk size is not a number.
    ChunkSizeNotNumber(&'a CStr),
    /// The chunk size is zero.
    ChunkSizeZero,
    /// The chunk size is above the limit.
    ChunkSizeTooLarge(&'a CStr),
    /// The chunk size is not a power of two.
    ChunkSizeNotPower(u64),
    /// The chunk size in sectors is not a multiple of a device's logical blocks of so many
    /// bytes.
    ChunkSizeNotMultiple(u64, Device, u32),
    /// The number of features is not a number.
    FeatureCount(&'a CStr),
    /// So many features are announced, and so many are there.
    FeaturesMissing(u64, u64),
    /// The feature is known and not supported.
    FeatureUnsupported(Feature),
    /// The feature is not known.
    FeatureUnknown(&'a CStr),
    /// Origin and COW device are the same.
    SameDevice,
    /// The device cannot be opened; the code that came of it.
    CannotOpen(Device, &'a CStr, i32),
    /// The COW device is read-only.
    CowReadOnly(&'a CStr),
    /// The COW device has so many sectors, and needs so many.
    CowTooSmall(u64, u64),
}

/// An argument as it is shown in a log line: what is not printable is escaped.
fn shown(arg: &CStr) -> core::slice::EscapeAscii<'_> {
    arg.to_bytes().escape_ascii()
}

impl ArgError<'_> {
    /// Says in a sentence which argument it is and what is wrong with it.
    pub(crate) fn write(&self, w: &mut dyn Write) -> fmt::Result {
        match *self {
            Self::TooFew(n) => write!(
                w,
                "too few arguments: {n} given, at least 4 needed: \
                 <origin> <COW device> <P|PO|N> <chunk size> [<#features> <feature>...]"
            ),
            Self::TooMany(arg) => write!(
                w,
                "too many arguments: '{}' stands behind the last one",
                shown(arg)
            ),
            Self::OriginCount(n) => {
                write!(
                    w,
                    "wrong number of arguments: {n} given, 1 needed: <origin>"
                )
            }
            Self::NoName(device) => write!(w, "{} has an empty name", device.name()),
            Self::StoreType(arg) => {
                write!(w, "store type '{}' is not P, PO or N", shown(arg))
            }
            Self::ChunkSizeNotNumber(arg) => {
                write!(w, "chunk size '{}' is not a number", shown(arg))
            }
            Self::ChunkSizeZero => write!(
                w,
                "chunk size 0 is not allowed: give a power of two of sectors"
            ),
            Self::ChunkSizeTooLarge(arg) => write!(
                w,
                "chunk size {} is too large: the limit is {MAX_CHUNK_SECTORS} sectors",
                shown(arg)
            ),
            Self::ChunkSizeNotPower(n) => write!(w, "chunk size {n} is not a power of two"),
            Self::ChunkSizeNotMultiple(n, device, block) => write!(
                w,
                "chunk size {n} is not a multiple of the logical block size of the {}: \
                 {} sectors",
                device.name(),
                u64::from(block) / SECTOR_SIZE
            ),
            Self::FeatureCount(arg) => {
                write!(w, "number of features '{}' is not a number", shown(arg))
            }
            Self::FeaturesMissing(said, given) => write!(
                w,
                "too few arguments: {said} features announced, {given} given"
            ),
            Self::FeatureUnsupported(feature) => {
                write!(w, "feature '{}' is not supported: ", feature.name())?;
                Self::write_allowed(w)
            }
            Self::FeatureUnknown(arg) => {
                write!(w, "feature '{}' is not known: ", shown(arg))?;
                Self::write_allowed(w)
            }
            Self::SameDevice => write!(w, "COW device is the same device as the origin"),
            Self::CannotOpen(device, arg, code) => write!(
                w,
                "{} '{}' cannot be opened: error {code}",
                device.name(),
                shown(arg)
            ),
            Self::CowReadOnly(arg) => {
                write!(w, "COW device '{}' is read-only", shown(arg))
            }
            Self::CowTooSmall(has, needs) => write!(
                w,
                "COW device is too small: it has {has} sectors, and at least {needs} are \
                 needed"
            ),
        }
    }

    /// Says which features there are.
    fn write_allowed(w: &mut dyn Write) -> fmt::Result {
        let mut allowed = Feature::ALL.iter().filter(|f| f.is_supported());
        let Some(first) = allowed.next() else {
            return write!(w, "no feature can be asked for");
        };
        write!(w, "allowed is {}", first.name())?;
        allowed.try_for_each(|f| write!(w, ", {}", f.name()))
    }

    /// The same in a few words, without the values: for device-mapper's own log line.
    pub(crate) fn short(&self) -> &'static CStr {
        match self {
            Self::TooFew(_) => c"Requires 4 or more arguments",
            Self::TooMany(_) => c"Too many arguments",
            Self::OriginCount(_) => c"Requires 1 argument",
            Self::NoName(Device::Origin) => c"Origin device has no name",
            Self::NoName(Device::Cow) => c"COW device has no name",
            Self::StoreType(_) => c"Exception store type is not P, PO or N",
            Self::ChunkSizeNotNumber(_) => c"Chunk size is not a number",
            Self::ChunkSizeZero => c"Chunk size is zero",
            Self::ChunkSizeTooLarge(_) => c"Chunk size is too high",
            Self::ChunkSizeNotPower(_) => c"Chunk size is not a power of 2",
            Self::ChunkSizeNotMultiple(_, Device::Origin, _) => {
                c"Chunk size is not a multiple of the origin's logical block size"
            }
            Self::ChunkSizeNotMultiple(_, Device::Cow, _) => {
                c"Chunk size is not a multiple of the COW device's logical block size"
            }
            Self::FeatureCount(_) => c"Number of features is not a number",
            Self::FeaturesMissing(..) => c"Too few feature arguments",
            Self::FeatureUnsupported(_) => c"Feature is not supported",
            Self::FeatureUnknown(_) => c"Unrecognised feature requested",
            Self::SameDevice => c"COW device cannot be the same as origin device",
            Self::CannotOpen(Device::Origin, ..) => c"Cannot get origin device",
            Self::CannotOpen(Device::Cow, ..) => c"Cannot get COW device",
            Self::CowReadOnly(_) => c"COW device is read-only",
            Self::CowTooSmall(..) => c"COW device is too small",
        }
    }
}

impl kernel::fmt::Display for ArgError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f)
    }
}

/// The arguments of `snapshot-rs`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SnapshotArgs<'a> {
    /// The name of the origin.
    pub(crate) origin: &'a CStr,
    /// The name of the COW device.
    pub(crate) cow: &'a CStr,
    /// Where exceptions are kept.
    pub(crate) store: StoreType,
    /// The size of a chunk.
    pub(crate) chunk_size: ChunkSize,
    /// What else is asked for.
    pub(crate) features: Features,
}

/// The name of a device.
fn device_name(arg: &CStr, device: Device) -> Result<&CStr, ArgError<'_>> {
    if arg.is_empty() {
        return Err(ArgError::NoName(device));
    }
    Ok(arg)
}

impl<'a> SnapshotArgs<'a> {
    /// Reads `<origin> <COW device> <P|PO|N> <chunk size> [<#features> <feature>...]`.
    ///
    /// # Errors
    ///
    /// See [`ArgError`].
    pub(crate) fn parse(args: impl IntoIterator<Item = &'a CStr>) -> Result<Self, ArgError<'a>> {
        let mut args = args.into_iter();
        let mut given = 0usize;
        let mut next = || {
            let arg = args.next().ok_or(ArgError::TooFew(given))?;
            given = given.saturating_add(1);
            Ok(arg)
        };
        let (origin, cow, store, chunk_size) = (next()?, next()?, next()?, next()?);
        Ok(Self {
            origin: device_name(origin, Device::Origin)?,
            cow: device_name(cow, Device::Cow)?,
            store: StoreType::parse(store).ok_or(ArgError::StoreType(store))?,
            chunk_size: parse_chunk_size(chunk_size)?,
            features: parse_features(args)?,
        })
    }
}

/// A decimal number, as the kernel reads one; `None` if it is none.
fn parse_number(arg: &CStr) -> Option<Result<u64, IntErrorKind>> {
    match arg.to_str().ok()?.parse::<u64>() {
        Ok(n) => Some(Ok(n)),
        Err(e) if *e.kind() == IntErrorKind::PosOverflow => Some(Err(IntErrorKind::PosOverflow)),
        Err(_) => None,
    }
}

fn parse_chunk_size(arg: &CStr) -> Result<ChunkSize, ArgError<'_>> {
    match parse_number(arg).ok_or(ArgError::ChunkSizeNotNumber(arg))? {
        Ok(0) => Err(ArgError::ChunkSizeZero),
        Ok(n) if n <= MAX_CHUNK_SECTORS => {
            ChunkSize::from_sectors(n).map_err(|_| ArgError::ChunkSizeNotPower(n))
        }
        _ => Err(ArgError::ChunkSizeTooLarge(arg)),
    }
}

fn parse_features<'a>(mut args: impl Iterator<Item = &'a CStr>) -> Result<Features, ArgError<'a>> {
    let mut features = Features::NONE;
    let Some(count) = args.next() else {
        return Ok(features);
    };
    let announced = match parse_number(count) {
        Some(Ok(n)) => n,
        Some(Err(_)) | None => return Err(ArgError::FeatureCount(count)),
    };
    let mut given = 0u64;
    while given < announced {
        let arg = args
            .next()
            .ok_or(ArgError::FeaturesMissing(announced, given))?;
        let feature = Feature::ALL
            .into_iter()
            .find(|f| arg.to_bytes().eq_ignore_ascii_case(f.name().as_bytes()))
            .ok_or(ArgError::FeatureUnknown(arg))?;
        if !feature.is_supported() {
            return Err(ArgError::FeatureUnsupported(feature));
        }
        features.add(feature);
        given = given.saturating_add(1);
    }
    match args.next() {
        Some(arg) => Err(ArgError::TooMany(arg)),
        None => Ok(features),
    }
}

/// Checks that a chunk is made of whole logical blocks of a device, whose size is given in
/// bytes.
///
/// # Errors
///
/// [`ArgError::ChunkSizeNotMultiple`].
pub(crate) fn check_block_size(
    chunk_size: ChunkSize,
    device: Device,
    block: u32,
) -> Result<(), ArgError<'static>> {
    match chunk_size.bytes().checked_rem(u64::from(block)) {
        Some(0) => Ok(()),
        _ => Err(ArgError::ChunkSizeNotMultiple(
            chunk_size.sectors(),
            device,
            block,
        )),
    }
}

/// The arguments of `snap-origin-rs`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OriginArgs<'a> {
    /// The name of the origin.
    pub(crate) origin: &'a CStr,
}

impl<'a> OriginArgs<'a> {
    /// Reads `<origin>`.
    ///
    /// # Errors
    ///
    /// See [`ArgError`].
    pub(crate) fn parse(args: impl IntoIterator<Item = &'a CStr>) -> Result<Self, ArgError<'a>> {
        let mut args = args.into_iter();
        let origin = args.next().ok_or(ArgError::OriginCount(0))?;
        match args.count() {
            0 => Ok(Self {
                origin: device_name(origin, Device::Origin)?,
            }),
            more => Err(ArgError::OriginCount(more.saturating_add(1))),
        }
    }
}

/// What a table line of `snapshot-rs` says, to be shown again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TableLine<'a> {
    /// The origin by its numbers.
    pub(crate) origin: &'a CStr,
    /// The COW device by its numbers.
    pub(crate) cow: &'a CStr,
    /// Where exceptions are kept.
    pub(crate) store: StoreType,
    /// The size of a chunk, in sectors.
    pub(crate) chunk_sectors: u64,
    /// What else was asked for.
    pub(crate) features: Features,
}

impl TableLine<'_> {
    /// The text for `STATUSTYPE_TABLE`.
    pub(crate) fn table(&self, w: &mut impl Write) -> fmt::Result {
        write!(
            w,
            "{} {} {} {}",
            shown(self.origin),
            shown(self.cow),
            self.store.name(),
            self.chunk_sectors
        )?;
        self.features.write(w)
    }
}

/// How a snapshot is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Status {
    /// Whether it can be used.
    pub(crate) valid: bool,
    /// Whether a merge had to be given up.
    pub(crate) merge_failed: bool,
    /// Whether the COW device ran full, and user space asked to be told so.
    pub(crate) overflowed: bool,
    /// Sectors of the COW device in use, with metadata.
    pub(crate) allocated: u64,
    /// Sectors that the COW device has.
    pub(crate) total: u64,
    /// Sectors of the COW device that hold metadata.
    pub(crate) metadata: u64,
}

impl Status {
    /// The text for `STATUSTYPE_INFO`.
    pub(crate) fn info(&self, w: &mut impl Write) -> fmt::Result {
        if !self.valid {
            w.write_str("Invalid")
        } else if self.merge_failed {
            w.write_str("Merge failed")
        } else if self.overflowed {
            w.write_str("Overflow")
        } else {
            write!(w, "{}/{} {}", self.allocated, self.total, self.metadata)
        }
    }

    /// The text for `STATUSTYPE_IMA`, of a target of this name and version.
    pub(crate) fn ima(
        &self,
        w: &mut impl Write,
        target: &CStr,
        version: [u32; 3],
        line: &TableLine<'_>,
    ) -> fmt::Result {
        let [major, minor, patch] = version;
        let yes_no = |yes| if yes { 'y' } else { 'n' };
        write!(
            w,
            "target_name={},target_version={major}.{minor}.{patch}",
            shown(target)
        )?;
        write!(w, ",snap_origin_name={}", shown(line.origin))?;
        write!(w, ",snap_cow_name={}", shown(line.cow))?;
        write!(w, ",snap_valid={}", yes_no(self.valid))?;
        write!(w, ",snap_merge_failed={}", yes_no(self.merge_failed))?;
        write!(w, ",snapshot_overflowed={};", yes_no(self.overflowed))
    }
}
