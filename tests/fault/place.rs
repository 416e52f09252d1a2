//! Where a scenario takes place: on the suite's own pair of servers, or on something that it builds for itself and that goes when
//! the scenario goes.

use std::path::Path;

use anyhow::Result;
use tests::sandbox::Servers;

use crate::stage::Setting;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Pair,
}

/// What was built.
pub enum Standing {
    Pair,
}

impl Standing {
    pub async fn at(place: Place, _setting: &Setting, _folder: &Path) -> Result<Self> {
        match place {
            Place::Pair => Ok(Self::Pair),
        }
    }

    /// The servers there.
    pub fn servers(&self, setting: &Setting) -> Servers {
        setting.pair.servers.clone()
    }

    /// Where the database is to lie, if not in the data directory.
    pub fn tablespace(&self) -> Option<&str> {
        None
    }
}
