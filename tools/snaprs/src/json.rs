// SPDX-License-Identifier: GPL-2.0

//! A JSON object that is written piece by piece, as its lists may be longer than memory.

#![deny(unsafe_code)]

use crate::failure::Result;
use serde::Serialize;
use std::io::Write;

/// An object that is being written, a member or an element of a list on each line.
pub(crate) struct Object<'a, W: Write> {
    out: &'a mut W,
    is_empty: bool,
}

/// A list that is being written.
pub(crate) struct List<'a, W: Write> {
    out: &'a mut W,
    is_empty: bool,
}

impl<'a, W: Write> Object<'a, W> {
    /// Begins an object.
    pub(crate) fn begin(out: &'a mut W) -> Result<Self> {
        write!(out, "{{")?;
        Ok(Self {
            out,
            is_empty: true,
        })
    }

    fn key(&mut self, name: &str) -> Result {
        let comma = if self.is_empty { "" } else { "," };
        self.is_empty = false;
        write!(self.out, "{comma}\n  \"{name}\": ")?;
        Ok(())
    }

    /// Writes a member.
    pub(crate) fn member(&mut self, name: &str, value: &impl Serialize) -> Result {
        self.key(name)?;
        serde_json::to_writer(&mut *self.out, value)?;
        Ok(())
    }

    /// Writes a member that is a list, of what `fill` puts into it.
    pub(crate) fn list(
        &mut self,
        name: &str,
        fill: impl FnOnce(&mut List<'_, W>) -> Result,
    ) -> Result {
        self.key(name)?;
        write!(self.out, "[")?;
        let mut list = List {
            out: self.out,
            is_empty: true,
        };
        fill(&mut list)?;
        let end = if list.is_empty { "" } else { "\n  " };
        write!(self.out, "{end}]")?;
        Ok(())
    }

    /// Ends the object.
    pub(crate) fn end(self) -> Result {
        writeln!(self.out, "\n}}")?;
        Ok(())
    }
}

impl<W: Write> List<'_, W> {
    /// Writes an element.
    pub(crate) fn push(&mut self, value: &impl Serialize) -> Result {
        let comma = if self.is_empty { "" } else { "," };
        self.is_empty = false;
        write!(self.out, "{comma}\n    ")?;
        serde_json::to_writer(&mut *self.out, value)?;
        Ok(())
    }
}
