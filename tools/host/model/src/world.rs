// SPDX-License-Identifier: GPL-2.0

//! What is around the module: the device DEV, a workqueue, and the rules.
//!
//! - A read of SNAP gives what SNAP had: never what was written to ORIGIN since.
//! - A write reaches DEV when each snapshot that guards it has a durable record of what is
//!   overwritten, or has it in memory if it is transient, or its header is marked (R1, R4). None
//!   guards what lies behind its end.
//! - Every bio ends once, and none has to wait for the timer of a commit.

use crate::copy::Prepared;
use crate::dm::Bio;
use crate::live::{Health, Live};
use crate::pending::{Saved, SnapId};
use crate::registry::Origin;
use crate::scenario::Measure;
use crate::slot::Io;
use crate::units::{Chunk, ChunkSize, Sectors};
use kernel::sync::Arc;
use loom::sync::{Condvar, Mutex};
use std::collections::{HashSet, VecDeque};

/// The size of DEV: two chunks of two sectors.
pub(crate) const DEV_SECTORS: u64 = 4;

/// What DEV held when the snapshots were taken.
pub(crate) const OLD: u8 = b'o';

/// What SNAP writes. Anything else is written to ORIGIN.
pub(crate) const OWN: u8 = b's';

/// Something for the workqueue.
pub(crate) enum Job {
    /// A device has something to do.
    Io(Bio<Io>),
    Copy(Arc<Origin>, Prepared),
    RetryOrigin(Arc<Origin>),
    RetrySnapshot(Arc<Live>),
    Commit(Arc<Live>),
    Invalidate(Arc<Live>),
}

/// What a work item is known by: it is not queued twice, and does not run beside itself.
type Name = (u8, u32);

impl Job {
    fn name(&self) -> Option<Name> {
        match self {
            Job::Io(_) | Job::Copy(..) => None,
            Job::RetryOrigin(_) => Some((0, 0)),
            Job::RetrySnapshot(live) => Some((1, live.id.0)),
            Job::Commit(live) => Some((2, live.id.0)),
            Job::Invalidate(live) => Some((3, live.id.0)),
        }
    }

    fn run(self) {
        match self {
            Job::Io(bio) => bio.perform(),
            Job::Copy(origin, copy) => copy.run(&origin),
            Job::RetryOrigin(origin) => origin.run_retry(),
            Job::RetrySnapshot(live) => live.run_retry(),
            Job::Commit(live) => live.run_commit(),
            Job::Invalidate(live) => live.invalidate(),
        }
    }
}

struct Queue {
    jobs: VecDeque<Job>,
    running: Vec<Option<Name>>,
    /// Threads that may still begin something, and those of them that begin bios of snapshots.
    actors: usize,
    snapshot_actors: usize,
    /// Bios that have not ended, of ORIGIN and of snapshots.
    bios: [usize; 2],
}

/// What is around the module.
pub(crate) struct World {
    /// What is not done, although the module does it.
    left_out: Option<Measure>,
    dev: Mutex<Vec<u8>>,
    rules: Mutex<Rules>,
    queue: Mutex<Queue>,
    changed: Condvar,
}

struct Rules {
    /// What is saved, by snapshot and sector.
    covered: HashSet<(u32, u64)>,
    /// The snapshots whose headers say that they are invalid.
    marked: HashSet<u32>,
    /// The snapshots that were there in the beginning.
    lives: Vec<Arc<Live>>,
}

impl World {
    pub(crate) fn new(
        left_out: Option<Measure>,
        actors: usize,
        snapshot_actors: usize,
    ) -> Arc<Self> {
        Arc::new(Self {
            left_out,
            dev: Mutex::new(vec![OLD; DEV_SECTORS as usize]),
            rules: Mutex::new(Rules {
                covered: HashSet::new(),
                marked: HashSet::new(),
                lives: Vec::new(),
            }),
            queue: Mutex::new(Queue {
                jobs: VecDeque::new(),
                running: Vec::new(),
                actors,
                snapshot_actors,
                bios: [0; 2],
            }),
            changed: Condvar::new(),
        })
    }

    /// Whether this is done, as the module does it.
    pub(crate) fn has(&self, measure: Measure) -> bool {
        self.left_out != Some(measure)
    }

    /// The rules hold for this snapshot too.
    pub(crate) fn watch(&self, live: &Arc<Live>) {
        self.rules.lock().unwrap().lives.push(live.clone());
    }

    /// Nothing is watched any more; breaks the circle of references.
    pub(crate) fn end(&self) -> Vec<u8> {
        self.rules.lock().unwrap().lives.clear();
        self.dev.lock().unwrap().clone()
    }

    pub(crate) fn read_dev(&self, range: Sectors) -> Vec<u8> {
        self.dev.lock().unwrap()[range.start as usize..range.end as usize].to_vec()
    }

    pub(crate) fn write_dev(&self, range: Sectors, value: u8) {
        let mut dev = self.dev.lock().unwrap();
        let rules = self.rules.lock().unwrap();
        for live in &rules.lives {
            if live.guards() == Health::Invalid {
                let is_marked = rules.marked.contains(&live.id.0);
                let has_left = live.health() != Health::Invalid;
                assert!(
                    has_left || is_marked,
                    "the snapshot is not marked as invalid"
                );
                continue;
            }
            for sector in range.start..range.end.min(live.end()) {
                assert!(
                    rules.covered.contains(&(live.id.0, sector)),
                    "a write reached DEV before the old data was saved"
                );
            }
        }
        dev[range.start as usize..range.end as usize].fill(value);
    }

    /// A read of a snapshot has given this.
    pub(crate) fn shown(&self, data: &[u8]) {
        for value in data {
            assert!(
                [OLD, OWN].contains(value),
                "a read of the snapshot was given new data: '{}'",
                char::from(*value)
            );
        }
    }

    /// This has been saved, durably if the snapshot is persistent.
    pub(crate) fn cover(&self, id: SnapId, size: ChunkSize, saved: &[Saved]) {
        let mut rules = self.rules.lock().unwrap();
        for run in saved {
            let first = size.first_sector(run.old).0;
            let end = size.first_sector(Chunk(run.old.0 + run.len)).0;
            rules.covered.extend((first..end).map(|s| (id.0, s)));
        }
    }

    pub(crate) fn mark_header(&self, id: SnapId) {
        self.rules.lock().unwrap().marked.insert(id.0);
    }

    pub(crate) fn queue(&self, job: Job) {
        let mut queue = self.queue.lock().unwrap();
        let name = job.name();
        if name.is_none() || queue.jobs.iter().all(|other| other.name() != name) {
            queue.jobs.push_back(job);
            self.changed.notify_all();
        }
    }

    pub(crate) fn bio_begins(&self, is_snapshots: bool) {
        self.queue.lock().unwrap().bios[usize::from(is_snapshots)] += 1;
    }

    pub(crate) fn bio_ends(&self, is_snapshots: bool) {
        self.queue.lock().unwrap().bios[usize::from(is_snapshots)] -= 1;
        self.changed.notify_all();
    }

    /// A thread has done what it had to do.
    pub(crate) fn actor_ends(&self, is_snapshots: bool) {
        let mut queue = self.queue.lock().unwrap();
        queue.actors -= 1;
        queue.snapshot_actors -= usize::from(is_snapshots);
        drop(queue);
        self.changed.notify_all();
    }

    /// As device-mapper does before it removes a device: waits until all bios of snapshots have
    /// ended, and there will be no others.
    pub(crate) fn wait_for_snapshot_bios(&self) {
        let mut queue = self.queue.lock().unwrap();
        while queue.bios[1] + queue.snapshot_actors != 0 {
            queue = self.changed.wait(queue).unwrap();
        }
    }

    /// A thread of the workqueue: does what there is to do, until nothing can come any more.
    pub(crate) fn work(&self) {
        let mut queue = self.queue.lock().unwrap();
        loop {
            let running = &queue.running;
            let free = |job: &Job| job.name().is_none() || !running.contains(&job.name());
            if let Some(index) = queue.jobs.iter().position(free) {
                let job = queue.jobs.remove(index).unwrap();
                let name = job.name();
                queue.running.push(name);
                drop(queue);
                job.run();
                queue = self.queue.lock().unwrap();
                let index = queue.running.iter().position(|n| *n == name).unwrap();
                queue.running.remove(index);
                self.changed.notify_all();
                continue;
            }
            if queue.actors == 0 && queue.running.is_empty() && queue.jobs.is_empty() {
                let [origin, snapshot] = queue.bios;
                assert_eq!((origin, snapshot), (0, 0), "bios wait for ever");
                return;
            }
            queue = self.changed.wait(queue).unwrap();
        }
    }
}
