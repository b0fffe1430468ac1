// SPDX-License-Identifier: GPL-2.0

//! Records on their way to the COW device: the steps of `commit.rs`.

use crate::dm::{Bio, Queued};
use crate::live::{Health, Live};
use crate::slot::Io;
use crate::world::Job;
use kernel::sync::Arc;

/// How soon a record has to be durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Urgency {
    Later,
    Soon,
    Now,
}

impl Live {
    /// A record was added. What may be put off is left to the timer, which goes off when nothing
    /// else happens any more: nobody must wait for it.
    pub(crate) fn record_added(self: &Arc<Self>, urgency: Urgency) {
        if self.guards() == Health::Invalid || urgency != Urgency::Later {
            self.commit_now();
        }
    }

    pub(crate) fn commit_now(self: &Arc<Self>) {
        if self.is_persistent {
            self.is_due
                .store(true, loom::sync::atomic::Ordering::SeqCst);
            self.queue_commit();
        }
    }

    pub(crate) fn queue_commit(self: &Arc<Self>) {
        self.world.queue(Job::Commit(self.clone()));
    }

    pub(crate) fn has_volatile(&self) -> bool {
        !self.records.lock().unwrap().is_empty()
    }

    /// The work: never beside itself.
    pub(crate) fn run_commit(self: &Arc<Self>) {
        let health = self.health();
        if health == Health::Invalid {
            for saved in self.take_records() {
                self.end_exception(saved.slot, saved.item);
            }
            return;
        }
        let is_due = self.is_due.load(loom::sync::atomic::Ordering::SeqCst);
        if !is_due || health == Health::Failing {
            return;
        }
        self.is_due
            .store(false, loom::sync::atomic::Ordering::SeqCst);
        let records = self.take_records();
        // The flush, and the write with FUA.
        self.world.cover(self.id, self.chunk_size, &records);
        for saved in records {
            self.end_exception(saved.slot, saved.item);
        }
    }

    fn take_records(&self) -> Vec<crate::pending::Saved> {
        std::mem::take(&mut *self.records.lock().unwrap())
    }

    /// There are no flushes in the model.
    pub(crate) fn hold_flush(&self, _bio: Bio<Io>) -> Queued {
        unreachable!()
    }

    /// And no FUA.
    pub(crate) fn hold_durable(&self, _bio: Bio<Io>) -> Queued {
        unreachable!()
    }
}
