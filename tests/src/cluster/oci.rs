//! Images in the layout of the Open Container Initiative, written as one tar. This needs no container engine and no
//! registry.
//!
//! The same input makes the same bytes: files are sorted by path, belong to root, and have no time. The layer is not
//! compressed, so that the digest does not depend on the version of a compressor.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

/// A file of an image.
#[derive(Debug, Clone)]
pub struct ImageFile {
    path: String,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    Bytes { bytes: Vec<u8>, mode: u32 },
    Link(String),
}

impl ImageFile {
    /// A program, at a path below the root.
    #[must_use]
    pub fn program(path: &str, bytes: Vec<u8>) -> Self {
        Self { path: path.to_owned(), content: Content::Bytes { bytes, mode: 0o755 } }
    }

    /// A file that every user can read.
    #[must_use]
    pub fn data(path: &str, bytes: Vec<u8>) -> Self {
        Self { path: path.to_owned(), content: Content::Bytes { bytes, mode: 0o644 } }
    }

    /// A symbolic link.
    #[must_use]
    pub fn link(path: &str, target: &str) -> Self {
        Self { path: path.to_owned(), content: Content::Link(target.to_owned()) }
    }
}

/// An image of one layer.
#[derive(Debug, Clone, Copy)]
pub struct Image<'a> {
    /// Registry, repository and tag.
    pub name: &'a str,
    /// The program that runs.
    pub entrypoint: &'a [&'a str],
    /// The user that runs it; empty: root.
    pub user: &'a str,
    /// Labels of the image.
    pub labels: &'a [(&'a str, &'a str)],
    /// The files of the image, besides `/tmp`.
    pub files: &'a [ImageFile],
}

impl Image<'_> {
    /// Writes the tar. Returns the digest of the manifest, which registries use as the name of the image.
    ///
    /// # Errors
    /// When two files have the same path, or `path` can't be written.
    pub fn write(&self, path: &Path) -> Result<String> {
        let (bytes, digest) = self.tar()?;
        let mut file = fs::File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
        file.write_all(&bytes).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(digest)
    }

    fn tar(&self) -> Result<(Vec<u8>, String)> {
        let mut blobs = BTreeMap::new();
        let layer = self.layer()?;
        let layer_digest = sha256(&layer);
        let layer = keep(&mut blobs, "application/vnd.oci.image.layer.v1.tar", layer);
        let labels: BTreeMap<&str, &str> = self.labels.iter().copied().collect();
        let config = json!({
            "architecture": architecture(), "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "User": self.user, "WorkingDir": "/", "Labels": labels},
            "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
        });
        let config = keep(&mut blobs, "application/vnd.oci.image.config.v1+json", serde_json::to_vec(&config)?);
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]});
        let mut manifest = keep(&mut blobs, kind, serde_json::to_vec(&manifest)?);
        let digest = manifest.get("digest").and_then(Value::as_str).unwrap_or_default().to_owned();
        let tag = self.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        if let Some(fields) = manifest.as_object_mut() {
            let names = json!({"io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": tag});
            fields.insert("annotations".to_owned(), names);
            fields.insert("platform".to_owned(), json!({"architecture": architecture(), "os": "linux"}));
        }
        let kind = "application/vnd.oci.image.index.v1+json";
        let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": [manifest]});
        let mut tar = Builder::new(Vec::new());
        append(&mut tar, "oci-layout", &serde_json::to_vec(&json!({"imageLayoutVersion": "1.0.0"}))?, 0o644)?;
        append(&mut tar, "index.json", &serde_json::to_vec(&index)?, 0o644)?;
        for (name, bytes) in &blobs {
            append(&mut tar, &format!("blobs/sha256/{name}"), bytes, 0o644)?;
        }
        Ok((tar.into_inner()?, digest))
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut files = BTreeMap::new();
        for file in self.files {
            let earlier = files.insert(file.path.as_str(), &file.content);
            ensure!(earlier.is_none(), "two files of the image {} have the path {}", self.name, file.path);
        }
        let mut tar = Builder::new(Vec::new());
        folder(&mut tar, "tmp/", 0o1777)?;
        let mut made: Vec<&str> = vec!["tmp/"];
        for (path, content) in files {
            for (end, _) in path.match_indices('/') {
                let parent = path.get(..=end).unwrap_or_default();
                if !made.contains(&parent) {
                    folder(&mut tar, parent, 0o755)?;
                    made.push(parent);
                }
            }
            match content {
                Content::Bytes { bytes, mode } => append(&mut tar, path, bytes, *mode)?,
                Content::Link(target) => {
                    let mut header = header(EntryType::Symlink, 0, 0o777);
                    tar.append_link(&mut header, path, target).with_context(|| format!("cannot add {path}"))?;
                }
            }
        }
        Ok(tar.into_inner()?)
    }
}

/// The name of this processor architecture in images.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The digest of a blob, as images name it: `sha256:` and hexadecimal digits.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(bytes))
}

fn hex(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Adds a blob. Returns its descriptor.
fn keep(blobs: &mut BTreeMap<String, Vec<u8>>, kind: &str, bytes: Vec<u8>) -> Value {
    let described = json!({"mediaType": kind, "digest": sha256(&bytes), "size": bytes.len()});
    blobs.insert(hex(&bytes), bytes);
    described
}

fn header(kind: EntryType, size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn append(tar: &mut Builder<Vec<u8>>, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let mut header = header(EntryType::Regular, u64::try_from(bytes.len())?, mode);
    tar.append_data(&mut header, path, bytes).with_context(|| format!("cannot add {path}"))
}

fn folder(tar: &mut Builder<Vec<u8>>, path: &str, mode: u32) -> Result<()> {
    let mut header = header(EntryType::Directory, 0, mode);
    tar.append_data(&mut header, path, &[][..]).with_context(|| format!("cannot add {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(files: &[ImageFile]) -> Result<(Vec<u8>, String)> {
        Image { name: "example.org/a:1", entrypoint: &["/bin/a"], user: "", labels: &[("k", "v")], files }.tar()
    }

    #[test]
    fn the_order_of_files_makes_no_difference_and_a_byte_does() -> Result<()> {
        let [a, b] = [ImageFile::program("bin/a", vec![1]), ImageFile::data("etc/b", vec![2])];
        let first = image(&[a.clone(), b.clone()])?;
        assert_eq!(first, image(&[b.clone(), a])?);
        assert_ne!(first.1, image(&[b, ImageFile::program("bin/a", vec![3])])?.1);
        Ok(())
    }

    #[test]
    fn a_path_occurs_once() {
        let file = ImageFile::data("etc/b", vec![2]);
        let error = image(&[file.clone(), file]).unwrap_err().to_string();
        assert!(error.contains("etc/b"), "{error}");
    }

    #[test]
    fn every_blob_has_the_digest_that_is_its_name() -> Result<()> {
        let (bytes, manifest) = image(&[ImageFile::program("bin/a", vec![1]), ImageFile::link("bin/b", "a")])?;
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut names = Vec::new();
        for entry in archive.entries()? {
            let mut entry = entry?;
            let name = entry.path()?.display().to_string();
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content)?;
            if let Some(name) = name.strip_prefix("blobs/sha256/") {
                assert_eq!(name, hex(&content));
                names.push(format!("sha256:{name}"));
            }
        }
        assert_eq!(names.len(), 3);
        assert!(names.contains(&manifest));
        Ok(())
    }
}
