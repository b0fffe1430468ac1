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

/// What becomes of writes that need room on a COW device that is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WhenFull {
    /// The snapshot is given up, as by the kernel's target; the origin goes on.
    Invalidate,
    /// They wait until the COW device has grown, or too long.
    Queue,
    /// They fail, and the snapshot stays.
    Fail,
}

impl WhenFull {
    /// All of them, in the order of their numbers.
    pub(crate) const ALL: [Self; 3] = [Self::Invalidate, Self::Queue, Self::Fail];
}

/// What else was asked for at the end of a table line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Features {
    /// A discard of the snapshot zeroes what is on the COW device.
    pub(crate) discard_zeroes_cow: bool,
    /// A discard of the snapshot goes on to the origin as well.
    pub(crate) discard_passdown_origin: bool,
    /// What happens when the COW device is full.
    pub(crate) when_full: WhenFull,
    /// An event is raised when no more than so many chunks of the COW device are free.
    pub(crate) low_water_mark: Option<u64>,
}

/// What stands before the value of the low-water mark.
const LOW_WATER_MARK: &[u8] = b"low_water_mark:";

impl Features {
    /// None at all.
    pub(crate) const NONE: Self = Self {
        discard_zeroes_cow: false,
        discard_passdown_origin: false,
        when_full: WhenFull::Invalidate,
        low_water_mark: None,
    };

    /// Those that are a word each, in the order in which a table line shows them.
    fn words(&self) -> [(bool, &'static str); 4] {
        [
            (self.discard_zeroes_cow, "discard_zeroes_cow"),
            (self.discard_passdown_origin, "discard_passdown_origin"),
            (self.when_full == WhenFull::Queue, "queue_if_no_space"),
            (self.when_full == WhenFull::Fail, "error_if_no_space"),
        ]
    }

    /// Takes one more in.
    fn add<'a>(&mut self, arg: &'a CStr) -> Result<(), ArgError<'a>> {
        let lower = arg.to_bytes();
        let is = |name: &str| lower.eq_ignore_ascii_case(name.as_bytes());
        if is("discard_zeroes_cow") {
            self.discard_zeroes_cow = true;
        } else if is("discard_passdown_origin") {
            self.discard_passdown_origin = true;
        } else if is("queue_if_no_space") {
            self.fill_with(WhenFull::Queue)?;
        } else if is("error_if_no_space") {
            self.fill_with(WhenFull::Fail)?;
        } else if let Some((name, value)) = lower.split_at_checked(LOW_WATER_MARK.len()) {
            if !name.eq_ignore_ascii_case(LOW_WATER_MARK) {
                return Err(ArgError::FeatureUnknown(arg));
            }
            let number = core::str::from_utf8(value).ok().map(str::parse);
            match number {
                Some(Ok(chunks)) => self.low_water_mark = Some(chunks),
                _ => return Err(ArgError::FeatureValue(arg)),
            }
        } else {
            return Err(ArgError::FeatureUnknown(arg));
        }
        Ok(())
    }

    fn fill_with<'a>(&mut self, policy: WhenFull) -> Result<(), ArgError<'a>> {
        if self.when_full != WhenFull::Invalidate && self.when_full != policy {
            return Err(ArgError::FeaturesContradict);
        }
        self.when_full = policy;
        Ok(())
    }

    /// As in a table line, with a space before each word; nothing if there is none.
    fn write(&self, w: &mut impl Write) -> fmt::Result {
        let words = self.words();
        let set = || words.iter().filter(|(is_set, _)| *is_set);
        let count = set()
            .count()
            .saturating_add(self.low_water_mark.iter().count());
        if count == 0 {
            return Ok(());
        }
        write!(w, " {count}")?;
        for (_, name) in set() {
            write!(w, " {name}")?;
        }
        match self.low_water_mark {
            Some(chunks) => write!(w, " low_water_mark:{chunks}"),
            None => Ok(()),
        }
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
    /// The value of the feature is not a number.
    FeatureValue(&'a CStr),
    /// `discard_passdown_origin` stands there without `discard_zeroes_cow`.
    FeatureNeedsOther,
    /// Two features say what to do when the COW device is full.
    FeaturesContradict,
    /// The feature is not known.
    FeatureUnknown(&'a CStr),
    /// Origin and COW device are the same.
    SameDevice,
    /// The device cannot be opened; the code that came of it.
    CannotOpen(Device, &'a CStr, i32),
    /// The device is read-only, and has to be written to.
    ReadOnly(Device, &'a CStr),
    /// The COW device has so many sectors, and needs so many.
    CowTooSmall(u64, u64),
    /// A merge was asked for of a store without metadata.
    MergeTransient,
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
            Self::FeatureValue(arg) => write!(
                w,
                "feature '{}' has no number of chunks behind the colon",
                shown(arg)
            ),
            Self::FeatureNeedsOther => write!(
                w,
                "feature 'discard_passdown_origin' needs the feature 'discard_zeroes_cow'"
            ),
            Self::FeaturesContradict => write!(
                w,
                "features 'queue_if_no_space' and 'error_if_no_space' exclude each other"
            ),
            Self::FeatureUnknown(arg) => write!(
                w,
                "feature '{}' is not known: allowed are discard_zeroes_cow, \
                 discard_passdown_origin, queue_if_no_space, error_if_no_space, \
                 low_water_mark:<chunks>",
                shown(arg)
            ),
            Self::SameDevice => write!(w, "COW device is the same device as the origin"),
            Self::CannotOpen(device, arg, code) => write!(
                w,
                "{} '{}' cannot be opened: error {code}",
                device.name(),
                shown(arg)
            ),
            Self::ReadOnly(device, arg) => {
                write!(w, "{} '{}' is read-only", device.name(), shown(arg))
            }
            Self::CowTooSmall(has, needs) => write!(
                w,
                "COW device is too small: it has {has} sectors, and at least {needs} are \
                 needed"
            ),
            Self::MergeTransient => write!(
                w,
                "a snapshot of store type N cannot be merged: it has no metadata to go by"
            ),
        }
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
            Self::FeatureValue(_) => c"Invalid value of a feature",
            Self::FeatureNeedsOther => {
                c"'discard_passdown_origin' feature depends on 'discard_zeroes_cow'"
            }
            Self::FeaturesContradict => c"Features exclude each other",
            Self::FeatureUnknown(_) => c"Unrecognised feature requested",
            Self::SameDevice => c"COW device cannot be the same as origin device",
            Self::CannotOpen(Device::Origin, ..) => c"Cannot get origin device",
            Self::CannotOpen(Device::Cow, ..) => c"Cannot get COW device",
            Self::ReadOnly(Device::Origin, _) => c"Origin device is read-only",
            Self::ReadOnly(Device::Cow, _) => c"COW device is read-only",
            Self::CowTooSmall(..) => c"COW device is too small",
            Self::MergeTransient => c"Snapshot exception store does not support snapshot-merge",
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
        features.add(arg)?;
        given = given.saturating_add(1);
    }
    if let Some(arg) = args.next() {
        return Err(ArgError::TooMany(arg));
    }
    if features.discard_passdown_origin && !features.discard_zeroes_cow {
        return Err(ArgError::FeatureNeedsOther);
    }
    Ok(features)
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

/// A message to a target (`dmsetup message`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Message {
    /// Show what has been counted.
    Stats,
    /// Begin to count anew.
    ResetStats,
    /// Make all records durable and say how many there are.
    Commit,
}

/// What is wrong with a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum MessageError<'a> {
    /// The message is not known to this target, which knows these.
    Unknown(&'a CStr, &'static [(&'static str, Message)]),
    /// There is none, or something stands behind it.
    Count(usize),
}

/// What an origin target can be asked.
pub(crate) const ORIGIN_MESSAGES: &[(&str, Message)] = &[
    ("stats", Message::Stats),
    ("reset_stats", Message::ResetStats),
];

/// What a snapshot or merge target can be asked.
pub(crate) const SNAPSHOT_MESSAGES: &[(&str, Message)] = &[
    ("stats", Message::Stats),
    ("reset_stats", Message::ResetStats),
    ("commit", Message::Commit),
];

impl Message {
    /// Reads a message, which must be one of those in `known`.
    ///
    /// # Errors
    ///
    /// See [`MessageError`].
    pub(crate) fn parse<'a>(
        args: impl IntoIterator<Item = &'a CStr>,
        known: &'static [(&'static str, Message)],
    ) -> Result<Self, MessageError<'a>> {
        let mut args = args.into_iter();
        let first = args.next().ok_or(MessageError::Count(0))?;
        match args.count() {
            0 => {}
            more => return Err(MessageError::Count(more.saturating_add(1))),
        }
        let is_meant = |name: &str| first.to_bytes().eq_ignore_ascii_case(name.as_bytes());
        let found = known.iter().find(|(name, _)| is_meant(name));
        found
            .map(|(_, message)| *message)
            .ok_or(MessageError::Unknown(first, known))
    }
}

impl MessageError<'_> {
    /// Says in a sentence what is wrong.
    pub(crate) fn write(&self, w: &mut dyn Write) -> fmt::Result {
        match self {
            Self::Unknown(arg, known) => {
                write!(w, "message '{}' is not known: allowed are ", shown(arg))?;
                for (i, (name, _)) in known.iter().enumerate() {
                    let comma = if i == 0 { "" } else { ", " };
                    write!(w, "{comma}{name}")?;
                }
                Ok(())
            }
            Self::Count(n) => write!(w, "wrong number of words in a message: {n} given, 1 needed"),
        }
    }
}

impl kernel::fmt::Display for MessageError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f)
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
