//! Layers: a folder of the node program uses only itself and folders of lower layers.

use std::fmt::Write as _;

use super::Violation;
use super::references::{Reference, Target};
use super::tree::{LAYERED, Place, Source};

/// The folders of `ztunnel/src` by layer, lowest first. main.rs and lib.rs are above all layers.
pub(super) const LAYERS: [&[&str]; 11] = [
    &["model", "lifecycle"],
    &["store", "wire"],
    &["route", "policy", "istio"],
    &["net", "metrics", "explain", "analyze"],
    &["redirect", "identity"],
    &["tls"],
    &["hbone", "control", "dns"],
    &["flow"],
    &["pods", "plane"],
    &["config", "cni"],
    &["app"],
];

/// The layer of a folder.
pub(super) fn layer_of(folder: &str) -> Option<usize> {
    LAYERS.iter().position(|folders| folders.contains(&folder))
}

pub(super) fn table() -> String {
    let mut text = format!("Layers of {LAYERED}: a folder uses only folders of lower layers, and itself.\n");
    for (layer, folders) in LAYERS.iter().enumerate() {
        // Writing to a string can't fail.
        let _ = writeln!(text, "  L{layer:<3} {}", folders.join(", "));
    }
    text.push_str("  top  main.rs, lib.rs\n");
    text
}

pub(super) fn check(source: &Source, place: &Place, references: &[Reference]) -> Vec<Violation> {
    let Some(folder) = place.folder() else {
        return Vec::new();
    };
    let violation = |line, why| Violation { file: source.path.clone(), line, why };
    let Some(layer) = layer_of(folder) else {
        let why = format!("`{folder}` has no layer: give it one in xtask/src/tidy/layers.rs, or move it");
        return vec![violation(0, why)];
    };
    let why = |target: &Target| match target {
        Target::Own(path) => broken_rule(folder, layer, path),
        Target::Other(_) | Target::Name(_) | Target::Method(_) => None,
    };
    references.iter().filter_map(|found| Some(violation(found.line, why(&found.target)?))).collect()
}

/// Why `folder` may not name this item of its own crate.
fn broken_rule(folder: &str, layer: usize, path: &[String]) -> Option<String> {
    let Some(used) = path.first() else {
        return Some(format!(
            "{folder} names the crate's root as a whole, which hides the layers it uses: name a folder"
        ));
    };
    if used == folder {
        return None;
    }
    let whole = format!("crate::{}", path.join("::"));
    match layer_of(used) {
        Some(lower) if lower < layer => None,
        Some(other) => {
            let direction = if other == layer { "sideways" } else { "upwards" };
            Some(format!("{direction}: {folder} (L{layer}) uses `{whole}` (L{other}), but may use lower layers only"))
        }
        None => Some(format!("{folder} (L{layer}) uses `{whole}`, which is in no folder of the layer table")),
    }
}
