// SPDX-License-Identifier: GPL-2.0

//! The store's pure files.

#[path = "../../../../store/area.rs"]
pub(crate) mod area;
#[path = "../../../../store/format.rs"]
pub(crate) mod format;
