//! A small disk: a tmpfs with a tablespace, and a ballast file that fills it to the last byte. Needs root. It is always unmounted.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use sea_orm::{ConnectionTrait, Database};
use tests::sandbox::Servers;

/// Twice what a scenario's database needs.
const SIZE: &str = "128m";
const BLOCK: usize = 64 * 1024;

pub struct Disk {
    pub tablespace: String,
    mounted: PathBuf,
    servers: Servers,
}

/// Why no small disk can be mounted here, if so.
pub fn lacks() -> Option<String> {
    let folder = std::env::temp_dir().join(format!("kyhan-mount-{}", std::process::id()));
    let tried = std::fs::create_dir_all(&folder).is_ok()
        && run("mount", &["-t", "tmpfs", "-o", "size=1m", "tmpfs", &text(&folder)]).is_ok();
    if tried {
        let _ = run("umount", &[&text(&folder)]);
    }
    let _ = std::fs::remove_dir(&folder);
    (!tried).then(|| "a disk can be filled honestly only where one can be mounted (as root)".to_owned())
}

impl Disk {
    pub async fn mount(servers: &Servers) -> Result<Self> {
        let tablespace = format!("kyhan_small_{}", std::process::id());
        let mounted = PathBuf::from("/var/tmp").join(&tablespace);
        std::fs::create_dir_all(&mounted)?;
        run("mount", &["-t", "tmpfs", "-o", &format!("size={SIZE}"), "tmpfs", &text(&mounted)])?;
        let disk = Self { tablespace, mounted, servers: servers.clone() };
        // PostgreSQL requires that its user owns the folder.
        let data = disk.mounted.join("data");
        std::fs::create_dir(&data)?;
        run("chown", &["postgres", &text(&data)])?;
        let admin = Database::connect(&servers.database_url).await?;
        let sql = format!("CREATE TABLESPACE {} LOCATION '{}'", disk.tablespace, data.display());
        admin.execute_unprepared(&sql).await.context("a tablespace on the small disk")?;
        admin.close().await?;
        Ok(disk)
    }

    /// Fills the disk.
    pub fn fill(&self) -> Result<()> {
        let mut ballast = File::create(self.ballast())?;
        // In smaller and smaller pieces, to the last page.
        for size in [BLOCK, 4096, 1] {
            while ballast.write_all(&vec![1; size]).is_ok() {}
        }
        Ok(())
    }

    pub fn empty(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.ballast())?)
    }

    /// Drops the tablespace, after its databases.
    pub async fn drop_tablespace(&self) -> Result<()> {
        let admin = Database::connect(&self.servers.database_url).await?;
        let dropped = admin.execute_unprepared(&format!("DROP TABLESPACE {}", self.tablespace)).await;
        admin.close().await?;
        dropped.context("dropping the tablespace")?;
        Ok(())
    }

    fn ballast(&self) -> PathBuf {
        self.mounted.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = run("umount", &["-l", &text(&self.mounted)]) {
            eprintln!("fault: {error:#}");
        }
        let _ = std::fs::remove_dir(&self.mounted);
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Runs a command to its end.
pub fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let done = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
    ensure!(done.status.success(), "{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&done.stderr).trim());
    Ok(())
}
