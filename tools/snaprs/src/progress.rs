// SPDX-License-Identifier: GPL-2.0

//! A sign of life while much is read.

#![deny(unsafe_code)]

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::{Duration, Instant};

/// What takes less time than this is not worth a line.
const PATIENCE: Duration = Duration::from_millis(700);

/// How often the line is drawn anew.
const REDRAW: Duration = Duration::from_millis(100);

/// A line on standard error that says how far things are; only if that is a terminal.
pub(crate) struct Progress {
    bar: ProgressBar,
    /// What is being done; nothing is shown if it has no name.
    what: Option<&'static str>,
    areas: u64,
    /// Not before this time is there anything to draw.
    next: Instant,
}

impl Progress {
    /// `areas` says how many areas there can be: where the records end is known only when
    /// the end is reached.
    pub(crate) fn new(what: Option<&'static str>, areas: u64) -> Self {
        Self {
            bar: ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()),
            what,
            areas,
            next: Instant::now() + PATIENCE,
        }
    }

    /// So far, that many areas and records have been read.
    pub(crate) fn at(&mut self, area: u64, records: u64) {
        let Some(what) = self.what.filter(|_| Instant::now() >= self.next) else {
            return;
        };
        self.next = Instant::now() + REDRAW;
        if self.bar.is_hidden() {
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} [{elapsed}]") {
                self.bar.set_style(style);
            }
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        let areas = self.areas;
        self.bar.set_message(format!(
            "{what}: area {area} of at most {areas}, {records} records"
        ));
        self.bar.tick();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
