// SPDX-License-Identifier: GPL-2.0

//! Man pages and completions, from the definition of the command line.

#![deny(unsafe_code)]

use crate::{
    cli::Cli,
    failure::{Failure, Result},
};
use clap::{Command, CommandFactory};
use clap_complete::{generate, Shell};
use clap_mangen::{
    roff::{roman, Roff},
    Man,
};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// When the text of the pages was last changed.
const DATE: &str = "2026-11-27";

/// Writes all of them under `dir`, in the folders where systems look for them.
pub(crate) fn run(dir: &Path) -> Result {
    let mut command = Cli::command();
    command.build();
    man_pages(&command, &dir.join("share/man/man8"))?;
    for (shell, file) in [
        (Shell::Bash, "share/bash-completion/completions/snaprs"),
        (Shell::Zsh, "share/zsh/site-functions/_snaprs"),
        (Shell::Fish, "share/fish/vendor_completions.d/snaprs.fish"),
    ] {
        let mut text = Vec::new();
        generate(shell, &mut command, "snaprs", &mut text);
        write(dir.join(file), &text)?;
    }
    Ok(())
}

fn write(path: PathBuf, text: &[u8]) -> Result {
    let made = path.parent().map_or(Ok(()), fs::create_dir_all);
    made.and_then(|()| fs::write(&path, text))
        .map_err(|e| Failure::because(path.display(), e))
}

/// A page for the command, and one for each of its subcommands.
fn man_pages(command: &Command, dir: &Path) -> Result {
    let shown = command
        .get_subcommands()
        .filter(|sub| !sub.is_hide_set())
        .collect::<Vec<_>>();
    let name = command
        .get_display_name()
        .unwrap_or(command.get_name())
        .to_string();
    let pages: Vec<_> = shown
        .iter()
        .map(|sub| format!("{}-{}", name, sub.get_name()))
        .collect();
    let mut text = Vec::new();
    let man = Man::new(command.clone())
        .title(name.to_uppercase())
        .section("8")
        .date(DATE)
        .source(concat!("snapshot-rs ", env!("CARGO_PKG_VERSION")))
        .manual("System Administration");
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    if let Some(about) = command.get_long_about() {
        // The first paragraph is the one line behind the name.
        let about = about.to_string();
        let mut roff = Roff::new();
        roff.control("SH", ["DESCRIPTION"]);
        for (n, paragraph) in about.split("\n\n").skip(1).enumerate() {
            if n != 0 {
                roff.control("PP", []);
            }
            roff.text([roman(paragraph)]);
        }
        roff.to_writer(&mut text)?;
    }
    man.render_options_section(&mut text)?;
    if !pages.is_empty() {
        man.render_subcommands_section(&mut text)?;
    }
    if let Some(status) = command.get_after_long_help() {
        let mut roff = Roff::new();
        roff.control("SH", ["EXIT STATUS"]);
        // The first line is the heading.
        for line in status.to_string().lines().skip(1) {
            let (number, meaning) = line.trim().split_once(' ').unwrap_or_default();
            roff.control("TP", []);
            roff.text([roman(number)]).text([roman(meaning.trim())]);
        }
        roff.to_writer(&mut text)?;
    }
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    let others = ["dmsetup(8)".to_string(), "fsck(8)".to_string()];
    let own = pages.iter().map(|page| format!("{page}(8)"));
    let parent = name
        .split_once('-')
        .map(|(parent, _)| format!("{parent}(8)"));
    let all: Vec<_> = parent.into_iter().chain(own).chain(others).collect();
    roff.text([roman(all.join(", "))]);
    roff.to_writer(&mut text)?;
    write(dir.join(format!("{name}.8")), &text)?;
    for sub in shown {
        man_pages(sub, dir)?;
    }
    Ok(())
}
