// SPDX-License-Identifier: GPL-2.0

//! The command as a whole, on images that the tests make byte by byte: nothing here uses the
//! sources that the command reads the format with.

#![deny(unsafe_code)]

mod command;
mod damage;
mod image;
mod model;
