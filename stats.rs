// SPDX-License-Identifier: GPL-2.0

//! What is counted, for `dmsetup message … stats`.
//!
//! Only what takes an I/O of the module's own, or a wait, is counted: bios that go straight
//! through cost nothing here.

#![deny(unsafe_code)]

use kernel::{
    fmt,
    prelude::*,
    sync::atomic::{Atomic, Relaxed},
    time::{Instant, Monotonic},
};

/// A moment from which something is measured.
#[derive(Clone, Copy)]
pub(crate) struct Moment(Instant<Monotonic>);

impl Moment {
    /// This one.
    pub(crate) fn now() -> Self {
        Self(Instant::now())
    }

    /// The microseconds since then.
    fn micros(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(0) / 1000
    }

    /// The milliseconds since then.
    pub(crate) fn millis(self) -> u64 {
        self.micros() / 1000
    }
}

/// Of what happens very often, one in so many is timed: to read a clock takes time too.
const TIMED: u64 = 16;

/// A number that only grows, until it is set back.
pub(crate) struct Counter(Atomic<u64>);

impl Counter {
    const fn new() -> Self {
        Self(Atomic::new(0))
    }

    /// So many more. Context: any.
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// One more; answers the moment if this is one of those that are timed. Context: any.
    pub(crate) fn add_timed(&self) -> Option<Moment> {
        let before = self.0.fetch_add(1, Relaxed);
        (before % TIMED == 0).then(Moment::now)
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    fn reset(&self) {
        self.0.store(0, Relaxed);
    }
}

/// How many times something took how long. Bucket 0 is for less than a microsecond, bucket n for
/// less than 2^n; the last is for all that took longer.
pub(crate) struct Histogram {
    buckets: [Counter; 26],
}

impl Histogram {
    const fn new() -> Self {
        Self {
            buckets: [const { Counter::new() }; 26],
        }
    }

    /// Something has taken from `since` till now. Context: any.
    pub(crate) fn add(&self, since: Moment) {
        let micros = since.micros();
        let bits = u64::BITS.saturating_sub(micros.leading_zeros()) as usize;
        let last = self.buckets.len().saturating_sub(1);
        if let Some(bucket) = self.buckets.get(bits.min(last)) {
            bucket.add(1);
        }
    }

    fn reset(&self) {
        self.buckets.iter().for_each(Counter::reset);
    }

    /// The buckets that are not empty, each as `<upper limit in microseconds:times`.
    fn write(&self, name: &str, out: &mut dyn fmt::Write) -> fmt::Result {
        out.write_str(name)?;
        for (bits, bucket) in self.buckets.iter().enumerate() {
            let times = bucket.get();
            if times != 0 {
                let limit = 1u64 << bits;
                out.write_fmt(fmt!(" <{limit}:{times}"))?;
            }
        }
        out.write_str("\n")
    }
}

/// Writes the counters, a line each.
fn write_counters(counters: &[(&str, &Counter)], out: &mut dyn fmt::Write) -> fmt::Result {
    for (name, counter) in counters {
        out.write_fmt(fmt!("{name} {}\n", counter.get()))?;
    }
    Ok(())
}

/// What is counted for a snapshot.
pub(crate) struct SnapStats {
    /// Runs of chunks whose old data was copied to the COW device.
    pub(crate) copies: Counter,
    /// The chunks of those.
    pub(crate) copied_chunks: Counter,
    /// Copies whose read of the origin served other snapshots too.
    pub(crate) shared_reads: Counter,
    /// Runs of chunks that the snapshot's own writes gave a place to, without a copy.
    pub(crate) own_runs: Counter,
    /// The chunks of those.
    pub(crate) own_chunks: Counter,
    /// Commits of metadata that have begun.
    pub(crate) commits: Counter,
    /// The records in them.
    pub(crate) records: Counter,
    /// The bytes that they wrote.
    pub(crate) metadata_bytes: Counter,
    /// Chunks that were merged into the origin.
    pub(crate) merged_chunks: Counter,
    /// Batches in which that was done.
    pub(crate) merge_batches: Counter,
    /// Bios of the snapshot that had to wait in a slot, also for a copy of their own.
    pub(crate) conflicts: Counter,
    /// How long copies took, from the read to the last write: one in 16 is timed.
    pub(crate) copy_time: Histogram,
    /// How long commits took: one in 16 is timed.
    pub(crate) commit_time: Histogram,
    /// How long bios of the snapshot waited.
    pub(crate) wait_time: Histogram,
}

impl SnapStats {
    /// Nothing yet.
    pub(crate) const fn new() -> Self {
        Self {
            copies: Counter::new(),
            copied_chunks: Counter::new(),
            shared_reads: Counter::new(),
            own_runs: Counter::new(),
            own_chunks: Counter::new(),
            commits: Counter::new(),
            records: Counter::new(),
            metadata_bytes: Counter::new(),
            merged_chunks: Counter::new(),
            merge_batches: Counter::new(),
            conflicts: Counter::new(),
            copy_time: Histogram::new(),
            commit_time: Histogram::new(),
            wait_time: Histogram::new(),
        }
    }

    fn counters(&self) -> [(&str, &Counter); 11] {
        [
            ("copies", &self.copies),
            ("copied_chunks", &self.copied_chunks),
            ("shared_reads", &self.shared_reads),
            ("own_runs", &self.own_runs),
            ("own_chunks", &self.own_chunks),
            ("commits", &self.commits),
            ("records", &self.records),
            ("metadata_bytes", &self.metadata_bytes),
            ("merged_chunks", &self.merged_chunks),
            ("merge_batches", &self.merge_batches),
            ("conflicts", &self.conflicts),
        ]
    }

    fn histograms(&self) -> [(&str, &Histogram); 3] {
        [
            ("copy_us", &self.copy_time),
            ("commit_us", &self.commit_time),
            ("wait_us", &self.wait_time),
        ]
    }

    /// All of it as text, a line each.
    pub(crate) fn write(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        write_counters(&self.counters(), out)?;
        let mut all = self.histograms().into_iter();
        all.try_for_each(|(name, histogram)| histogram.write(name, out))
    }

    /// Begins anew.
    pub(crate) fn reset(&self) {
        self.counters().iter().for_each(|(_, c)| c.reset());
        self.histograms().iter().for_each(|(_, h)| h.reset());
    }
}

/// What is counted for an origin.
pub(crate) struct OriginStats {
    /// Reads of old data.
    pub(crate) reads: Counter,
    /// The sectors that they read.
    pub(crate) read_sectors: Counter,
    /// Those of them that served more than one snapshot.
    pub(crate) shared_reads: Counter,
    /// Writes that had to wait though all was saved, for instance for a read of a snapshot.
    pub(crate) conflicts: Counter,
    /// Writes that waited because too many chunks were being copied.
    pub(crate) throttled: Counter,
    /// How long those two waited.
    pub(crate) wait_time: Histogram,
}

impl OriginStats {
    /// Nothing yet.
    pub(crate) const fn new() -> Self {
        Self {
            reads: Counter::new(),
            read_sectors: Counter::new(),
            shared_reads: Counter::new(),
            conflicts: Counter::new(),
            throttled: Counter::new(),
            wait_time: Histogram::new(),
        }
    }

    fn counters(&self) -> [(&str, &Counter); 5] {
        [
            ("reads", &self.reads),
            ("read_sectors", &self.read_sectors),
            ("shared_reads", &self.shared_reads),
            ("conflicts", &self.conflicts),
            ("throttled", &self.throttled),
        ]
    }

    /// All of it as text, a line each.
    pub(crate) fn write(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        write_counters(&self.counters(), out)?;
        self.wait_time.write("wait_us", out)
    }

    /// Begins anew.
    pub(crate) fn reset(&self) {
        self.counters().iter().for_each(|(_, c)| c.reset());
        self.wait_time.reset();
    }
}
