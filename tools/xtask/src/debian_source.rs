//! Sources of Debian's packages, for headers that no package has: taken from where apt has all else from, by an apt whose state is in the
//! build's folder, so that the machine's is left alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command::{self, output, target_dir};

const LIMIT: Duration = Duration::from_secs(5 * 60);

/// One source package.
pub(crate) struct Source {
    /// As `apt-get source` takes it: `fio=3.33-3`.
    pub(crate) package: &'static str,
    /// The archive that comes.
    pub(crate) archive: &'static str,
    /// The folder in it.
    pub(crate) folder: &'static str,
    /// Of the folder below the target's where it is kept.
    pub(crate) place: &'static str,
    /// The variable that names a folder to take instead.
    pub(crate) instead: &'static str,
}

impl Source {
    /// The folder with the sources, fetched unless they are there.
    pub(crate) fn fetch(&self) -> Result<PathBuf, String> {
        let work = target_dir().join(self.place);
        let sources = work.join(self.folder);
        if sources.is_dir() {
            return Ok(sources);
        }
        let conf = self.apt(&work).map_err(|why| format!("{}: {why}", work.display()))??;
        let apt = |arguments: &[&str]| {
            let mut command = Command::new("apt-get");
            command.arg("-qq").args(arguments).env("APT_CONFIG", &conf).current_dir(&work);
            command::run(command, LIMIT)
        };
        apt(&["update"])?;
        apt(&["source", "--download-only", "--tar-only", self.package])?;
        // Whole, or not there.
        let unpacked = work.join("unpacked");
        let _ = fs::remove_dir_all(&unpacked);
        fs::create_dir_all(&unpacked).map_err(|why| format!("{}: {why}", unpacked.display()))?;
        let mut tar = Command::new("tar");
        tar.arg("-xf").arg(self.archive).arg("-C").arg(&unpacked).current_dir(&work);
        command::run(tar, LIMIT)?;
        fs::rename(unpacked.join(self.folder), &sources).map_err(|why| format!("{}: {why}", sources.display()))?;
        let _ = fs::remove_dir(&unpacked);
        Ok(sources)
    }

    /// Writes the files of an apt of its own, and returns its configuration.
    fn apt(&self, work: &Path) -> std::io::Result<Result<PathBuf, String>> {
        for folder in ["apt/parts", "apt/lists/partial", "apt/archives/partial"] {
            fs::create_dir_all(work.join(folder))?;
        }
        let mirror = match mirror() {
            Ok(mirror) => mirror,
            Err(why) => return Ok(Err(format!("{why}, or set {} to the sources of {}", self.instead, self.package))),
        };
        let listed = format!(
            "Types: deb-src\nURIs: {mirror}\nSuites: bookworm\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        );
        fs::write(work.join("apt/parts/debian.sources"), listed)?;
        fs::write(work.join("apt/status"), "")?;
        let conf = work.join("apt/conf");
        fs::write(&conf, configuration(&work.join("apt")))?;
        Ok(Ok(conf))
    }
}

/// Where this machine's apt has Debian 12 from.
fn mirror() -> Result<String, String> {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(REPO_URI)", "Codename: bookworm", "Origin: Debian"]);
    let listed = output(command)?;
    listed
        .lines()
        .next()
        .map(str::to_owned)
        .ok_or_else(|| "apt has no Debian 12 (bookworm) source; run apt-get update".to_owned())
}

fn configuration(apt: &Path) -> String {
    let apt = apt.display();
    format!(
        "Dir::Etc::sourcelist \"/dev/null\"; Dir::Etc::sourceparts \"{apt}/parts\"; Dir::Etc::preferencesparts \"/dev/null\";\n\
         Dir::State::lists \"{apt}/lists\"; Dir::State::status \"{apt}/status\"; Dir::Cache \"{apt}\";\n\
         Dir::Cache::archives \"{apt}/archives\"; APT::Sandbox::User \"\"; Debug::NoLocking \"1\"; APT::Architecture \"amd64\";\n"
    )
}
