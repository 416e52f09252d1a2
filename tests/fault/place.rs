//! The servers of a scenario: the suite's private pair, or servers that the scenario builds and that end with it.

use std::path::Path;

use anyhow::Result;
use tests::sandbox::Servers;
use tokio::sync::{Mutex, MutexGuard};

use crate::{cluster::Cluster, disk::Disk, harness::Setting};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerLayout {
    Pair,
    SmallDisk,
    Cluster,
}

/// The servers that were built.
pub enum BuiltServers {
    Pair,
    SmallDisk(Disk),
    Cluster(Box<Mutex<Cluster>>, Servers),
}

impl BuiltServers {
    pub async fn at(place: ServerLayout, setting: &Setting, folder: &Path) -> Result<Self> {
        Ok(match place {
            ServerLayout::Pair => Self::Pair,
            ServerLayout::SmallDisk => Self::SmallDisk(Disk::mount(&setting.pair.servers).await?),
            ServerLayout::Cluster => {
                let cluster = Cluster::start(folder, setting.namespaces).await?;
                let servers = cluster.servers(&setting.pair.servers);
                Self::Cluster(Box::new(Mutex::new(cluster)), servers)
            }
        })
    }

    /// The URLs of the servers.
    pub fn servers(&self, setting: &Setting) -> Servers {
        if let Self::Cluster(_, servers) = self { servers.clone() } else { setting.pair.servers.clone() }
    }

    /// The tablespace of the database, if it is not the default one.
    pub fn tablespace(&self) -> Option<&str> {
        self.disk().map(|disk| disk.tablespace.as_str())
    }

    pub fn disk(&self) -> Option<&Disk> {
        if let Self::SmallDisk(disk) = self { Some(disk) } else { None }
    }

    pub async fn cluster(&self) -> Option<MutexGuard<'_, Cluster>> {
        if let Self::Cluster(cluster, _) = self { Some(cluster.lock().await) } else { None }
    }

    /// Removes what was built, after its databases.
    pub async fn clear(self) -> Result<()> {
        match self {
            Self::Pair | Self::Cluster(..) => Ok(()),
            Self::SmallDisk(disk) => disk.drop_tablespace().await,
        }
    }
}
