//! Finds the file of the layered crate that defines the item of a path, through re-exports and aliases.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use syn::Item;

use super::references::{Reference, Target};
use super::tree::Tree;

/// A path that leads through more re-exports is a circle of re-exports.
const MOST_STEPS: usize = 16;

/// The modules of the layered crate.
pub(super) struct Definitions<'a> {
    modules: HashMap<Vec<String>, Module<'a>>,
}

struct Module<'a> {
    file: &'a Path,
    /// Its items, without modules and imports.
    items: HashSet<String>,
    /// The names that its `use` items bind, with the paths from the crate's root.
    imports: HashMap<String, Vec<String>>,
    /// The paths that it imports with `*`.
    globs: Vec<Vec<String>>,
}

impl<'a> Definitions<'a> {
    /// Reads the items of all files, and their imports from their references.
    pub(super) fn of(tree: &'a Tree, references: &HashMap<&Path, Vec<Reference>>) -> Self {
        let mut modules = HashMap::new();
        for source in &tree.sources {
            if let Some(place) = &source.place {
                add_module(&mut modules, &source.path, place.module.clone(), &source.syntax.items);
            }
        }
        let mut definitions = Self { modules };
        for reference in references.values().flatten() {
            definitions.add_import(reference);
        }
        definitions
    }

    fn add_import(&mut self, reference: &Reference) {
        let (Some(import), Target::Own(path)) = (&reference.import, &reference.target) else { return };
        let Some(module) = self.modules.get_mut(&reference.module) else { return };
        match &import.name {
            Some(name) => drop(module.imports.insert(name.clone(), path.clone())),
            None => module.globs.push(path.clone()),
        }
    }

    /// The file that defines the item of a path from the crate's root; `None` for modules, and for items of other
    /// crates.
    pub(super) fn file_of(&self, path: &[String]) -> Option<&'a Path> {
        self.find(path, MOST_STEPS)
    }

    /// The same for a path that begins with a name in the scope of a module.
    pub(super) fn file_in_scope(&self, module: &[String], path: &[String]) -> Option<&'a Path> {
        let (first, rest) = path.split_first()?;
        let import = self.modules.get(module)?.imports.get(first)?;
        self.file_of(&[import.as_slice(), rest].concat())
    }

    fn find(&self, path: &[String], steps: usize) -> Option<&'a Path> {
        let steps = steps.checked_sub(1)?;
        let mut here: Vec<String> = Vec::new();
        for (index, name) in path.iter().enumerate() {
            let child = [here.as_slice(), std::slice::from_ref(name)].concat();
            if self.modules.contains_key(&child) {
                here = child;
                continue;
            }
            let module = self.modules.get(&here)?;
            if module.items.contains(name) {
                return Some(module.file);
            }
            let rest = path.get(index + 1..).unwrap_or_default();
            if let Some(import) = module.imports.get(name) {
                return self.find(&[import.as_slice(), rest].concat(), steps);
            }
            let through =
                |glob: &Vec<String>| self.find(&[glob, path.get(index..).unwrap_or_default()].concat(), steps);
            return module.globs.iter().find_map(through);
        }
        None
    }
}

fn add_module<'a>(modules: &mut HashMap<Vec<String>, Module<'a>>, file: &'a Path, path: Vec<String>, content: &[Item]) {
    let mut items = HashSet::new();
    for item in content {
        match item {
            Item::Mod(inner) => {
                if let Some((_, content)) = &inner.content {
                    let path = [path.as_slice(), &[inner.ident.to_string()]].concat();
                    add_module(modules, file, path, content);
                }
            }
            item => items.extend(name_of(item)),
        }
    }
    modules.insert(path, Module { file, items, imports: HashMap::new(), globs: Vec::new() });
}

fn name_of(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::TraitAlias(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(name.to_string())
}
