//! The bill of materials of the image in CycloneDX: the crates that are compiled into the daemon and its BPF programs,
//! and the shared libraries.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use ztunnel_tests::cluster::oci;

use super::Library;
use crate::process;
use crate::workspace::Workspace;

/// The crates of the workspace whose dependencies are in the image.
const ROOTS: [&str; 2] = ["ztunnel", "ztunnel-ebpf"];

/// The used fields of a package of `cargo metadata`.
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    is_ours: bool,
}

/// The document. It contains neither a time nor a serial number, so that the same image has the same document.
pub(super) fn text(workspace: &Workspace, daemon: &str, libraries: &[Library]) -> Result<String> {
    let metadata = metadata(workspace)?;
    let packages = packages(&metadata)?;
    let needed = needed(&metadata, &packages)?;
    let sums = checksums(&fs::read_to_string(workspace.root.join("Cargo.lock")).context("could not read Cargo.lock")?)?;
    let mut components = Vec::new();
    for package in needed.iter().filter_map(|id| packages.get(id)).filter(|package| !package.is_ours) {
        let Package { name, version, license, .. } = package;
        let mut component = json!({
            "type": "library", "bom-ref": format!("pkg:cargo/{name}@{version}"), "purl": format!("pkg:cargo/{name}@{version}"),
            "name": name, "version": version,
        });
        if let Some(fields) = component.as_object_mut() {
            if let Some(license) = license {
                fields.insert("licenses".to_owned(), json!([{"expression": license.replace('/', " OR ")}]));
            }
            if let Some(sum) = sums.get(&(name.clone(), version.clone())) {
                fields.insert("hashes".to_owned(), json!([{"alg": "SHA-256", "content": sum}]));
            }
        }
        components.push(component);
    }
    components.sort_by_cached_key(|component| component.get("bom-ref").map(Value::to_string));
    components.extend(libraries.iter().map(library));
    let document = json!({
        "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
        "metadata": {"component": {
            "type": "application", "bom-ref": "ztunnel", "name": "ztunnel", "version": workspace.version,
            "licenses": [{"expression": "Apache-2.0"}], "hashes": [{"alg": "SHA-256", "content": hex(daemon)}],
        }},
        "components": components,
    });
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

fn metadata(workspace: &Workspace) -> Result<Value> {
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut command = process::cargo();
    command.args(["metadata", "--format-version=1", "--locked", "--filter-platform", &platform]);
    command.arg("--manifest-path").arg(workspace.root.join("Cargo.toml"));
    let text = process::stdout_of(&mut command)
        .with_context(|| format!("`{}` failed: is Cargo.lock up to date?", process::shown(&command)))?;
    serde_json::from_str(&text).context("cargo metadata is not JSON")
}

fn packages(metadata: &Value) -> Result<BTreeMap<String, Package>> {
    let list = metadata.get("packages").and_then(Value::as_array).context("cargo metadata names no packages")?;
    let mut packages = BTreeMap::new();
    for entry in list {
        let field = |name: &str| entry.get(name).and_then(Value::as_str).map(str::to_owned);
        let (id, name, version) = (field("id"), field("name"), field("version"));
        let (Some(id), Some(name), Some(version)) = (id, name, version) else { continue };
        let is_ours = entry.get("source").is_none_or(Value::is_null);
        packages.insert(id, Package { name, version, license: field("license"), is_ours });
    }
    Ok(packages)
}

/// The packages that the roots need at run time. Packages for tests and for building only are left out.
fn needed(metadata: &Value, packages: &BTreeMap<String, Package>) -> Result<BTreeSet<String>> {
    let nodes =
        metadata.pointer("/resolve/nodes").and_then(Value::as_array).context("cargo metadata resolves nothing")?;
    let id = |node: &Value| node.get("id").and_then(Value::as_str).map(str::to_owned);
    let by_id: BTreeMap<String, &Value> = nodes.iter().filter_map(|node| Some((id(node)?, node))).collect();
    let is_root = |package: &Package| package.is_ours && ROOTS.contains(&package.name.as_str());
    let mut open: Vec<String> =
        packages.iter().filter(|(_, package)| is_root(package)).map(|(id, _)| id.clone()).collect();
    let mut needed = BTreeSet::new();
    while let Some(id) = open.pop() {
        let dependencies = by_id.get(&id).and_then(|node| node.get("deps")?.as_array()).into_iter().flatten();
        if needed.insert(id) {
            open.extend(
                dependencies
                    .filter(|dependency| is_normal(dependency))
                    .filter_map(|dependency| dependency.get("pkg").and_then(Value::as_str).map(str::to_owned)),
            );
        }
    }
    Ok(needed)
}

fn is_normal(dependency: &Value) -> bool {
    let kinds = dependency.get("dep_kinds").and_then(Value::as_array).into_iter().flatten();
    kinds.into_iter().any(|kind| kind.get("kind").is_none_or(Value::is_null))
}

/// The checksums of Cargo.lock by name and version.
fn checksums(lock: &str) -> Result<BTreeMap<(String, String), String>> {
    let lock: toml::Table = toml::from_str(lock).context("Cargo.lock is not TOML")?;
    let packages = lock.get("package").and_then(toml::Value::as_array).into_iter().flatten();
    let field = |package: &toml::Value, name: &str| package.get(name).and_then(toml::Value::as_str).map(str::to_owned);
    Ok(packages
        .filter_map(|package| {
            Some(((field(package, "name")?, field(package, "version")?), field(package, "checksum")?))
        })
        .collect())
}

/// A shared library, with its Debian package if dpkg knows it.
fn library(library: &Library) -> Value {
    let path = library.path.display().to_string();
    let name = library.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut component = json!({
        "type": "library", "bom-ref": format!("file:{path}"), "name": name,
        "hashes": [{"alg": "SHA-256", "content": hex(&oci::sha256(&library.bytes))}],
        "properties": [{"name": "path", "value": path}],
    });
    if let (Some((package, version)), Some(fields)) = (debian(&library.path), component.as_object_mut()) {
        fields.insert("purl".to_owned(), json!(format!("pkg:deb/debian/{package}@{version}")));
        fields.insert("version".to_owned(), json!(version));
    }
    component
}

/// The package of a file, and its version. If `/lib` is a link, a package may name the file by either of its two paths.
fn debian(path: &Path) -> Option<(String, String)> {
    let usr = Path::new("/usr").join(path.strip_prefix("/").ok()?);
    let real = path.canonicalize().ok()?;
    let owner = [path, &usr, &real].into_iter().find_map(|path| {
        let line = process::stdout_of(Command::new("dpkg-query").arg("--search").arg(path))?;
        Some(line.split_once(": ")?.0.to_owned())
    })?;
    let version = process::stdout_of(Command::new("dpkg-query").args(["--show", "--showformat=${Version}", &owner]))?;
    Some((owner.split(':').next()?.to_owned(), version))
}

/// A digest without the name of its algorithm.
fn hex(digest: &str) -> &str {
    digest.trim_start_matches("sha256:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_tests_and_builds_need_is_not_in_the_image() {
        let metadata = metadata(&Workspace::locate().unwrap()).unwrap();
        let packages = packages(&metadata).unwrap();
        let needed = needed(&metadata, &packages).unwrap();
        let names: BTreeSet<&str> = needed.iter().map(|id| packages[id].name.as_str()).collect();
        assert!(names.contains("rustls") && names.contains("aya") && names.contains("aya-ebpf"), "{names:?}");
        assert!(!names.contains("proptest") && !names.contains("criterion") && !names.contains("cc"), "{names:?}");
    }
}
