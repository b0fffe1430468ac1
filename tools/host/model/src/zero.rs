// SPDX-License-Identifier: GPL-2.0

//! Discards are not part of the model.

use crate::dm::{Bio, Queued};
use crate::live::{Devices, Live};
use crate::slot::Io;
use crate::units::Sector;
use kernel::{prelude::*, sync::Arc};

/// There is none.
pub(crate) enum Zeroing {}

impl Zeroing {
    pub(crate) fn new(_bytes: usize) -> Result<Self> {
        Err(ENOMEM)
    }

    pub(crate) fn is_enough(&self, _bytes: usize) -> bool {
        match *self {}
    }

    pub(crate) fn go(self, _: &Arc<Live>, _: &Devices, _: Sector, _: Bio<Io>) -> Queued {
        match self {}
    }
}
