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
use failure::{status, Failure, Result};
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
    let status = match command {
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
    }?;
    out.flush()?;
    Ok(status)
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A text that was asked for, or what is wrong.
            let is_wrong = error.use_stderr();
            let _ = error.print();
            return ExitCode::from(if is_wrong {
                status::USAGE
            } else {
                status::CLEAN
            });
        }
    };
    let mut out = BufWriter::new(io::stdout().lock());
    match run(&cli.command, &mut out) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            // What was written so far belongs before the message.
            let _ = out.flush();
            if let Some(text) = failure.text() {
                eprintln!("snaprs: {text}");
            }
            ExitCode::from(failure.status())
        }
    }
}
