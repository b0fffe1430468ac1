// SPDX-License-Identifier: GPL-2.0

//! Safe wrappers of the kernel's device-mapper and block interfaces.
//!
//! One file for each concept of the kernel:
//!
//! | file        | what it wraps                                                   |
//! |-------------|-----------------------------------------------------------------|
//! | `target.rs` | `struct target_type`: registration, the callbacks, the trait     |
//! | `setup.rs`  | `struct dm_target` as the constructor sees it                    |
//! | `handle.rs` | what may outlive a target: its events, its mapped device         |
//! | `device.rs` | `struct dm_dev`: a device beneath a target                       |
//! | `bio.rs`    | `struct bio`: owned bios, lists of them, per-bio data            |
//! | `io.rs`     | dm-io: reads and writes of the module's own                      |
//! | `buffer.rs` | the pages that dm-io reads into and writes from                  |
//! | `work.rs`   | a workqueue on which memory may be reclaimed                     |
//! | `param.rs`  | module parameters                                                |
//! | `log.rs`    | log lines in the manner of device-mapper                         |
//!
//! The `unsafe` of the module is here and in `sys/`, nowhere else. A caller that
//! has no `unsafe` of its own can't break anything with what is offered here: a bio
//! can't be lost or ended twice, a device can't be used after its table has gone,
//! memory can't be read while a device still writes to it.

mod bio;
mod buffer;
mod device;
mod handle;
mod io;
pub(crate) mod log;
mod param;
mod setup;
mod target;
mod work;

pub(crate) use bio::{Bio, BioList, Incoming, Op, PerBio, Queued};
pub(crate) use buffer::Buffer;
pub(crate) use device::Device;
pub(crate) use handle::Handle;
pub(crate) use io::{Client, Finished, IoDone, Request, Span, WriteFlags, MAX_BYTES};
pub(crate) use param::{cow_threshold, no_space_timeout, standard_names};
pub(crate) use setup::{Args, Setup};
pub(crate) use target::{EndIo, Hints, Mapped, Registration, StatusKind, Target};
pub(crate) use work::{wait_for_tasks, NoIo, WorkQueue};
