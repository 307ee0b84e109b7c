//! The image of the daemon: an OCI layout in a tar, built without a container engine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use ztunnel_tests::cluster::oci::{self, Image, ImageFile};

use crate::build::{self, Profile};
use crate::workspace::Workspace;

mod bill;

/// The path of the bill of materials in the image.
const BILL: &str = "usr/share/sbom/ztunnel.cdx.json";

/// Options of the image.
pub(crate) struct Options<'a> {
    /// The daemon to use instead of a release build.
    pub(crate) daemon: Option<&'a Path>,
    /// Registry, repository and tag, if they are not the default.
    pub(crate) name: Option<&'a str>,
}

/// A file with which the daemon is linked at run time.
pub(crate) struct Library {
    /// Its absolute path.
    pub(crate) path: PathBuf,
    /// Its content.
    pub(crate) bytes: Vec<u8>,
}

/// Writes the image and its bill of materials to `target/dist`, and prints their paths and the digest.
pub(crate) fn run(workspace: &Workspace, options: &Options<'_>) -> Result<()> {
    let daemon = match options.daemon {
        Some(path) => path.to_owned(),
        None => build::daemon(workspace, Profile::ReleaseLto)?,
    };
    let folder = workspace.target.join("dist");
    fs::create_dir_all(&folder).with_context(|| format!("could not create {}", folder.display()))?;
    let begin = format!("ztunnel-{}-{}-linux", workspace.version, std::env::consts::ARCH);
    let (image, bill) = (folder.join(format!("{begin}.oci.tar")), folder.join(format!("{begin}.cdx.json")));
    let name = options.name.map_or_else(|| default_name(workspace), str::to_owned);
    let digest = write(workspace, &daemon, &name, &image, &bill)?;
    println!("{}\n{}\n{name}@{digest}", image.display(), bill.display());
    Ok(())
}

/// Writes the image of a daemon under its default name, for a cluster on this machine. Returns the path.
pub(crate) fn for_cluster(workspace: &Workspace, daemon: &Path) -> Result<PathBuf> {
    let folder = workspace.target.join("cluster");
    fs::create_dir_all(&folder).with_context(|| format!("could not create {}", folder.display()))?;
    let [image, bill] = ["ztunnel.oci.tar", "ztunnel.cdx.json"].map(|name| folder.join(name));
    write(workspace, daemon, &default_name(workspace), &image, &bill)?;
    Ok(image)
}

/// The default name. No container runtime asks the registry `localhost` for an image that it has.
pub(crate) fn default_name(workspace: &Workspace) -> String {
    format!("localhost/ztunnel:{}", workspace.version)
}

/// Writes the image of a daemon to `image` and its bill of materials to `bill`. Returns the digest of the image.
pub(crate) fn write(workspace: &Workspace, daemon: &Path, name: &str, image: &Path, bill: &Path) -> Result<String> {
    let bytes = fs::read(daemon).with_context(|| format!("could not read the daemon {}", daemon.display()))?;
    let libraries = libraries(daemon)?;
    let text = bill::text(workspace, &oci::sha256(&bytes), &libraries)?;
    fs::write(bill, &text).with_context(|| format!("could not write {}", bill.display()))?;
    let mut files = vec![
        ImageFile::program("usr/bin/ztunnel", bytes),
        ImageFile::data(BILL, text.into_bytes()),
        ImageFile::data("usr/share/doc/ztunnel/LICENSE", fs::read(workspace.root.join("LICENSE"))?),
    ];
    for Library { path, bytes } in libraries {
        let path = path.strip_prefix("/").unwrap_or(&path).display().to_string();
        files.push(ImageFile::program(&path, bytes));
    }
    let labels = [
        ("org.opencontainers.image.title", "ztunnel"),
        ("org.opencontainers.image.version", workspace.version.as_str()),
        ("org.opencontainers.image.licenses", "Apache-2.0"),
    ];
    Image { name, entrypoint: &["/usr/bin/ztunnel"], user: "", labels: &labels, files: &files }.write(image)
}

/// The shared libraries of a program, and the loader. The image has them at the same paths. A program without any is
/// static.
fn libraries(program: &Path) -> Result<Vec<Library>> {
    let output =
        Command::new("ldd").arg(program).output().context("could not start ldd, which comes with the C library")?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if ["not a dynamic executable", "statically linked"].iter().any(|phrase| text.contains(phrase)) {
        return Ok(Vec::new());
    }
    ensure!(output.status.success(), "ldd {} failed: {}", program.display(), text.trim());
    let paths = listed(&text)?;
    let read = |path: PathBuf| {
        let bytes = fs::read(&path).with_context(|| format!("could not read {}", path.display()))?;
        Ok(Library { path, bytes })
    };
    paths.into_iter().map(read).collect()
}

/// The paths in the output of ldd.
fn listed(text: &str) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.ends_with("not found") {
            bail!("a library of the daemon is missing: {line}");
        }
        let found = line.split_once("=> ").map_or(line, |(_, found)| found);
        let path = found.split(' ').next().unwrap_or_default();
        // The kernel's own library (vDSO) has no file.
        if path.starts_with('/') {
            paths.push(PathBuf::from(path));
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_from_ldd() {
        let text = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x2)\n\t/lib64/ld.so.2 (0x3)\n";
        assert_eq!(listed(text).unwrap(), ["/lib/x/libc.so.6", "/lib64/ld.so.2"].map(PathBuf::from));
        assert!(listed("\tliba.so => not found\n").is_err());
    }

    /// The image of `deploy/Dockerfile` has the same libraries at the same paths.
    #[test]
    fn the_dockerfile_copies_what_the_image_has() {
        let text = fs::read_to_string(Workspace::locate().unwrap().root.join("deploy/Dockerfile")).unwrap();
        let command = text.lines().find_map(|line| line.trim().strip_prefix("&& ldd ")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let root = format!("{}/", folder.path().display());
        let command =
            format!("ldd {}", command.replace("/image/usr/bin/ztunnel", "/bin/true").replace("/image/", &root));
        let status = Command::new("sh").args(["-ec", &command]).status().unwrap();
        assert!(status.success(), "{command}");
        let libraries = libraries(Path::new("/bin/true")).unwrap();
        assert!(!libraries.is_empty());
        for Library { path, bytes } in libraries {
            let copied = folder.path().join(path.strip_prefix("/").unwrap());
            assert!(fs::read(&copied).is_ok_and(|found| found == bytes), "{} is not copied", path.display());
        }
    }

    #[test]
    fn the_same_daemon_makes_the_same_image() {
        let workspace = Workspace::locate().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let daemon = folder.path().join("daemon");
        fs::copy("/bin/true", &daemon).unwrap();
        let made = |name: &str| {
            let [image, bill] = ["tar", "json"].map(|end| folder.path().join(format!("{name}.{end}")));
            let digest = write(&workspace, &daemon, "localhost/ztunnel:test", &image, &bill).unwrap();
            (digest, fs::read(image).unwrap(), fs::read_to_string(bill).unwrap())
        };
        let (first, second) = (made("first"), made("second"));
        assert!(first == second, "{} and {}", first.0, second.0);
        assert!(first.2.contains("pkg:cargo/rustls@"), "{}", first.2);
        fs::copy("/bin/false", &daemon).unwrap();
        assert_ne!(first.0, made("third").0);
    }
}
