// SPDX-License-Identifier: GPL-2.0

//! What is played through: some bios and events at once, in all orders.

use crate::dm::{Bio, Device, Incoming, Op};
use crate::live::{Devices, Live};
use crate::registry::Origin;
use crate::route;
use crate::slot::Io;
use crate::table::Features;
use crate::units::{Sector, Sectors};
use crate::world::{World, OLD, OWN};
use kernel::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// One of those who act at the same time.
#[derive(Clone, Copy, Debug)]
pub enum Actor {
    /// A read of snapshot `snap`.
    Read {
        /// Which snapshot.
        snap: usize,
        /// The first sector.
        at: u64,
        /// How many.
        len: u64,
    },
    /// A write of the snapshot itself.
    OwnWrite {
        /// Which snapshot.
        snap: usize,
        /// The first sector.
        at: u64,
        /// How many.
        len: u64,
    },
    /// A write to ORIGIN.
    OriginWrite {
        /// The first sector.
        at: u64,
        /// How many.
        len: u64,
    },
    /// Snapshot `snap`, which was not there in the beginning, is taken.
    Take {
        /// Which snapshot.
        snap: usize,
    },
    /// Snapshot `snap` is removed, as soon as its own bios have ended.
    Remove {
        /// Which snapshot.
        snap: usize,
    },
    /// The table of snapshot `snap` is replaced, as soon as its own bios have ended.
    SetTable {
        /// Which snapshot.
        snap: usize,
        /// Where it ends from then on, in sectors.
        end: u64,
    },
}

impl Actor {
    fn is_snapshots(self) -> bool {
        matches!(self, Actor::Read { .. } | Actor::OwnWrite { .. })
    }
}

/// What the module does against a fault. A scenario that leaves it out must find the fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Measure {
    /// Reads of snapshots are tracked until they end.
    Tracking,
    /// Whoever waits is woken when a snapshot has become shorter.
    Waking,
}

/// A snapshot.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot {
    /// Whether it has records.
    pub is_persistent: bool,
    /// Its chunk size in sectors.
    pub chunk: u64,
    /// Whether its COW device fails all writes.
    pub is_broken: bool,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The snapshots.
    pub snapshots: Vec<Snapshot>,
    /// Those who act at the same time.
    pub actors: Vec<Actor>,
    /// How many threads the workqueue has.
    pub workers: usize,
    /// What is not done, although the module does it.
    pub left_out: Option<Measure>,
    /// How often a thread may be stopped where it could go on.
    pub preemptions: usize,
}

impl Scenario {
    /// Plays it through in all orders, and answers how many there were. Panics if a rule of
    /// `world.rs` was broken in any.
    pub fn run(&self) -> u64 {
        let count = Arc::new(AtomicU64::new(0));
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(self.preemptions);
        builder.max_branches = 10_000;
        let (scenario, counter) = (self.clone(), count.clone());
        builder.check(move || {
            counter.fetch_add(1, Ordering::Relaxed);
            scenario.once();
        });
        count.load(Ordering::Relaxed)
    }

    fn once(&self) {
        let own = self.actors.iter().filter(|actor| actor.is_snapshots());
        let world = World::new(self.left_out, self.actors.len(), own.count());
        let origin = Origin::new(&world);
        let lives: Vec<Arc<Live>> = (0..)
            .zip(&self.snapshots)
            .map(|(id, s)| Live::new(id, &origin, s.chunk, s.is_persistent, s.is_broken))
            .collect();
        for live in &lives {
            origin.join(live);
            let is_taken_later =
                |actor: &Actor| matches!(actor, Actor::Take { snap } if lives[*snap].id == live.id);
            if self.actors.iter().any(is_taken_later) {
                live.set_active(false);
            } else {
                world.watch(live);
            }
        }
        let mut threads = Vec::new();
        for (index, actor) in self.actors.iter().enumerate() {
            let (actor, world, origin) = (*actor, world.clone(), origin.clone());
            let lives = lives.clone();
            threads.push(loom::thread::spawn(move || {
                act(actor, index, &world, &origin, &lives);
                world.actor_ends(actor.is_snapshots());
            }));
        }
        for _ in 1..self.workers {
            let world = world.clone();
            threads.push(loom::thread::spawn(move || world.work()));
        }
        world.work();
        for thread in threads {
            thread.join().unwrap();
        }
        // Only records that nobody waited for are left in flight; now the timer goes off.
        for live in &lives {
            live.commit_now();
        }
        world.work();
        if let Some((_, slot)) = origin.lock_slot(Sector(0)) {
            assert!(slot.flight.is_empty(), "something is in flight for ever");
        }
        for live in &lives {
            origin.remove_shards(live.id);
        }
        self.check_dev(&world.end());
    }

    /// Whatever was written last to each sector of ORIGIN is on DEV.
    fn check_dev(&self, dev: &[u8]) {
        for (sector, value) in (0..).zip(dev) {
            let mut wrote = (0..)
                .zip(&self.actors)
                .filter_map(|(index, actor)| match actor {
                    Actor::OriginWrite { at, len } if (*at..at + len).contains(&sector) => {
                        Some(new(index))
                    }
                    _ => None,
                });
            let is_right = match wrote.clone().count() {
                0 => *value == OLD,
                _ => wrote.any(|w| w == *value),
            };
            assert!(
                is_right,
                "sector {sector} of DEV is '{}'",
                char::from(*value)
            );
        }
    }
}

/// What an actor writes to ORIGIN.
fn new(index: usize) -> u8 {
    b'A' + index as u8
}

fn act(actor: Actor, index: usize, world: &Arc<World>, origin: &Arc<Origin>, lives: &[Arc<Live>]) {
    let range = |at, len| Sectors::new(Sector(at), len);
    match actor {
        Actor::Read { snap, at, len } => of_snapshot(world, &lives[snap], Op::Read, range(at, len)),
        Actor::OwnWrite { snap, at, len } => {
            of_snapshot(world, &lives[snap], Op::Write, range(at, len));
        }
        Actor::OriginWrite { at, len } => {
            let bio = Bio::new(world, None, Op::Write, range(at, len), new(index));
            origin.write(bio).perform();
        }
        // What reaches DEV without being saved for it, is part of its image: the module waits for
        // that then.
        Actor::Take { snap } => lives[snap].set_active(true),
        Actor::Remove { snap } => {
            world.wait_for_snapshot_bios();
            lives[snap].leave();
        }
        // Before the resume that takes a table over, device-mapper has suspended the device.
        Actor::SetTable { snap, end } => {
            world.wait_for_snapshot_bios();
            lives[snap].set_table(end);
        }
    }
}

/// A bio of a snapshot, in as many parts as it is cut to.
fn of_snapshot(world: &Arc<World>, live: &Arc<Live>, op: Op, range: Sectors) {
    let devices = Devices {
        origin: Device::Dev,
        cow: Device::Cow,
    };
    let mut left = Some(range);
    while let Some(range) = left.take() {
        let bio: Bio<Io> = Bio::new(world, Some(live), op, range, OWN);
        let incoming = Incoming::new(bio, &mut left);
        route::map(live, &devices, &Features::NONE, incoming).perform();
    }
}
