// SPDX-License-Identifier: GPL-2.0

//! Looks at the COW devices of persistent snapshots: those of snapshot-rs, and those of the
//! kernel's own `snapshot` target, which have the same format.
//!
//! The format is read by the module's own source, `store/format.rs`. From there on:
//!
//! - [`image`]: the header, and bytes of areas, of a [`device`] or of what was read of a
//!   [`live`] snapshot;
//! - [`walk`]: the records in their order, each with what is wrong with it;
//! - [`check`], [`dump`], [`delta`]: the three commands.

#![deny(unsafe_code)]

mod check;
mod chunkset;
mod cli;
mod delta;
mod device;
mod dump;
#[cfg(test)]
#[allow(dead_code)]
#[path = "../../../exception.rs"]
mod exception;
mod failure;
mod generate;
mod image;
mod json;
mod live;
mod progress;
mod store;
#[cfg(test)]
mod tests;
#[allow(dead_code)]
#[path = "../../../units.rs"]
mod units;
mod walk;

use clap::Parser;
use cli::{Cli, Command, Source};
use failure::{status, tell, Failure, Result};
use image::{Image, Origin};
use std::{
    io::{self, BufWriter, Write},
    process::ExitCode,
};

/// Opens what is to be read.
fn open(source: &Source) -> Result<Image> {
    let origin = match (&source.origin, source.origin_sectors) {
        (Some(path), _) => Some(Origin::of(path)?),
        (None, Some(sectors)) => Some(Origin {
            sectors: Some(sectors),
            block_size: None,
        }),
        (None, None) => None,
    };
    match (&source.live, &source.device) {
        (Some(name), _) => live::open(name, origin),
        (None, Some(path)) => Image::open(path, origin.unwrap_or_default()),
        (None, None) => Err(Failure::Operation("there is no device to read".into())),
    }
}

fn run(command: &Command, out: &mut impl Write) -> Result<u8> {
    match command {
        Command::Check {
            source,
            limit,
            json,
        } => check::run(&open(source)?, *limit, *json, out),
        Command::Dump {
            source,
            records,
            json,
            ..
        } => dump::run(&open(source)?, *records, *json, out),
        Command::Delta { source, json } => delta::run(&open(source)?, *json, out),
        Command::Generate { dir } => generate::run(dir).map(|()| status::CLEAN),
    }
}

/// Tells why a command ended before it was done, if it did; the answer is the exit status.
fn ended(outcome: Result<u8>) -> u8 {
    outcome.unwrap_or_else(|failure| {
        if let Some(text) = failure.text() {
            tell(text);
        }
        failure.status()
    })
}

/// The same for the end of the output.
fn written(outcome: io::Result<()>) -> u8 {
    ended(outcome.map(|()| status::CLEAN).map_err(Failure::Output))
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A text that was asked for, or what is wrong.
            let printed = error.print().and_then(|()| io::stdout().flush());
            return ExitCode::from(if error.use_stderr() {
                status::USAGE
            } else {
                written(printed)
            });
        }
    };
    let mut out = BufWriter::new(io::stdout().lock());
    let outcome = run(&cli.command, &mut out);
    // What was written so far belongs before the message. Output that failed fails again, which
    // is not to be told twice.
    let flushed = match &outcome {
        Err(Failure::Output(_)) => Ok(()),
        _ => out.flush(),
    };
    ExitCode::from(ended(outcome) | written(flushed))
}
