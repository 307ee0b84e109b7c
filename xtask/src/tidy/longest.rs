//! The longest files and functions: a question to the reader, not a limit.

use std::cmp::Reverse;
use std::fmt::Write as _;

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::tree::Tree;

const SHOWN: usize = 10;

/// The two lists, as text.
pub(super) fn report(tree: &Tree) -> String {
    let mut files: Vec<(usize, String)> = Vec::new();
    let mut functions: Vec<(usize, String)> = Vec::new();
    for source in &tree.sources {
        let file = source.path.display();
        files.push((source.text.lines().count(), file.to_string()));
        let mut finder = Functions(Vec::new());
        finder.visit_file(&source.syntax);
        let named = |(lines, first, name)| (lines, format!("{file}:{first} {name}"));
        functions.extend(finder.0.into_iter().map(named));
    }
    let mut text = list("Longest files (lines)", files);
    text.push_str(&list("Longest functions (lines)", functions));
    text
}

fn list(title: &str, mut entries: Vec<(usize, String)>) -> String {
    entries.sort_by_key(|(lines, _)| Reverse(*lines));
    let mut text = format!("{title}\n");
    for (lines, name) in entries.iter().take(SHOWN) {
        // Writing to a string can't fail.
        let _ = writeln!(text, "  {lines:>5}  {name}");
    }
    text
}

/// Lines, first line and name of each function.
struct Functions(Vec<(usize, usize, String)>);

impl Functions {
    fn add(&mut self, signature: &syn::Signature, whole: &impl Spanned) {
        let first = signature.span().start().line;
        let last = whole.span().end().line;
        self.0.push((last.saturating_sub(first) + 1, first, signature.ident.to_string()));
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.add(&item.sig, item);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.add(&item.sig, item);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        self.add(&item.sig, item);
        visit::visit_trait_item_fn(self, item);
    }
}
