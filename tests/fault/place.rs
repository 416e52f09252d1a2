//! Where a scenario takes place: on the suite's own pair of servers, or on something that it builds for itself and that goes when
//! the scenario goes.

use anyhow::Result;
use tests::sandbox::Servers;

use crate::{disk::Disk, stage::Setting};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Pair,
    SmallDisk,
}

/// What was built.
pub enum Standing {
    Pair,
    SmallDisk(Disk),
}

impl Standing {
    pub async fn at(place: Place, setting: &Setting) -> Result<Self> {
        Ok(match place {
            Place::Pair => Self::Pair,
            Place::SmallDisk => Self::SmallDisk(Disk::mount(&setting.pair.servers).await?),
        })
    }

    /// The servers there.
    pub fn servers(&self, setting: &Setting) -> Servers {
        setting.pair.servers.clone()
    }

    /// Where the database is to lie, if not in the data directory.
    pub fn tablespace(&self) -> Option<&str> {
        self.disk().map(|disk| disk.tablespace.as_str())
    }

    pub fn disk(&self) -> Option<&Disk> {
        if let Self::SmallDisk(disk) = self { Some(disk) } else { None }
    }

    /// Takes down what was built, once no database lies there any more.
    pub async fn clear(self) -> Result<()> {
        match self {
            Self::Pair => Ok(()),
            Self::SmallDisk(disk) => disk.drop_tablespace().await,
        }
    }
}
