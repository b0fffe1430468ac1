// SPDX-License-Identifier: GPL-2.0

//! The command line. What stands here is also the text of the man pages.

#![deny(unsafe_code)]

use crate::image::ANY_ORIGIN;
use clap::{value_parser, Args, Parser, Subcommand};
use std::path::PathBuf;

/// Looks at the COW devices of persistent device-mapper snapshots
///
/// A persistent snapshot of snapshot-rs, or of the kernel's own target "snapshot", keeps what
/// it saved on a COW device, and the records of what is where. snaprs reads these records.
/// It works on a device or on an image of one, and never writes to it.
///
/// A snapshot that is active is read with --live: the kernel module is asked to put all its
/// records on the device, and they are read past the page cache.
#[derive(Parser)]
#[command(
    name = "snaprs",
    version,
    max_term_width = 90,
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Checks that a COW device keeps to every rule of the format
    ///
    /// Reads all records and names each bad one by its area and its number there, with the
    /// first rule that it breaks: its new chunk lies beyond the end of the device, is the
    /// header or a metadata area, or is used by an earlier record; its old chunk lies beyond
    /// the end of the origin, or has an earlier record. It goes on behind a bad record.
    ///
    /// The header, the chunk size and the end of the records are checked as well and, without
    /// --live, what stands behind it. That a snapshot is marked as invalid counts as a problem.
    ///
    /// Notes are no problems: that there is no header; what a crash left behind the last
    /// record; an area ahead that is not zero yet. Holes between the chunks in use, which a
    /// crash or a merge leaves, are only counted: they are used again.
    #[command(after_long_help = CHECK_STATUS)]
    Check {
        #[command(flatten)]
        source: Source,
        /// Name at most N problems; 0: all of them. They are all counted
        #[arg(long, value_name = "N", default_value_t = 1000)]
        limit: u64,
        /// Write JSON
        #[arg(long)]
        json: bool,
    },
    /// Shows the header, the areas, and the records or runs
    ///
    /// A run is what stands side by side in an area and is consecutive on the origin and on
    /// the COW device. Bad records are shown and marked, and so are those that cannot be read;
    /// it goes on behind them.
    #[command(after_long_help = DUMP_STATUS)]
    Dump {
        #[command(flatten)]
        source: Source,
        /// Show each record, not runs of them
        #[arg(long)]
        records: bool,
        /// Show runs of records, as is done without this option too
        #[arg(long, conflicts_with = "records")]
        runs: bool,
        /// Write JSON
        #[arg(long)]
        json: bool,
    },
    /// Lists what has changed on the origin since the snapshot was taken
    ///
    /// Writes the changed ranges of the origin in bytes, sorted and joined: an offset and a
    /// length on each line. This is what an incremental backup has to copy.
    ///
    /// The list may be a superset of what has changed: whole chunks are listed; what was
    /// written to the snapshot itself is listed too; and with --live a chunk is listed as
    /// soon as its old data is saved, while the write may still be on its way to the origin.
    ///
    /// Nothing is listed of a snapshot in which "snaprs check" finds a problem, since something
    /// would be missing; nor of a device without a header, as every snapshot that was ever active
    /// has one. Changes that were made past the origin target are not known, nor those of discards
    /// with the snapshot's feature discard_passdown_origin.
    #[command(after_long_help = DELTA_STATUS)]
    Delta {
        #[command(flatten)]
        source: Source,
        /// Write JSON
        #[arg(long)]
        json: bool,
    },
    /// Writes the man pages and the completions for shells
    #[command(hide = true)]
    Generate {
        /// The folder that gets share/man/man8 and so on
        dir: PathBuf,
    },
}

/// What is to be read.
#[derive(Args)]
pub(crate) struct Source {
    /// The COW device, or an image of one
    #[arg(required_unless_present = "live")]
    pub(crate) device: Option<PathBuf>,
    /// Read the COW device of an active snapshot, the device-mapper device NAME
    ///
    /// The records that are there at this moment are read. The snapshot has to be one of
    /// snapshot-rs: it is sent the message "commit" with dmsetup(8).
    #[arg(long, value_name = "NAME", conflicts_with = "device")]
    pub(crate) live: Option<String>,
    /// The origin, of which only the size is looked at
    ///
    /// Without it, old chunks are not checked against the end of the origin. With --live, it
    /// is known from the table.
    #[arg(long, value_name = "DEVICE")]
    pub(crate) origin: Option<PathBuf>,
    /// The size of the origin in sectors, instead of the origin itself
    #[arg(long, value_name = "N", conflicts_with = "origin")]
    #[arg(value_parser = value_parser!(u64).range(..=ANY_ORIGIN))]
    pub(crate) origin_sectors: Option<u64>,
}

const CHECK_STATUS: &str = "\
Exit status, with the bits of fsck(8):
  0   no problem was found
  4   problems were found; nothing is mended
  8   an operational error: the device cannot be opened, the report not be written, …
  12  problems were found, and parts cannot be read, or the report not be written
  16  the command line is wrong";

const DUMP_STATUS: &str = "\
Exit status, with the bits of fsck(8):
  0   it is done
  4   the header or a record is bad: see \"snaprs check\"
  8   an operational error: the device cannot be opened, parts cannot be read, …
  12  both
  16  the command line is wrong";

const DELTA_STATUS: &str = "\
Exit status, with the bits of fsck(8):
  0   it is done
  4   there is no header, or \"snaprs check\" finds a problem
  8   an operational error: the device cannot be opened, read, …
  16  the command line is wrong";
