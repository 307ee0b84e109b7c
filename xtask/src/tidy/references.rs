//! The paths that a file names: in `use`, in code, in attributes, and inside macros, whose text is scanned as tokens.

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, ImplItem, Item, Meta, UseTree};

/// One path that a file names.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) target: Target,
    pub(super) line: usize,
    /// The module that contains it.
    pub(super) module: Vec<String>,
    /// Whether it is in code that is compiled for tests only.
    pub(super) is_test: bool,
    /// The import, if it is in a `use`; `None` for code.
    pub(super) import: Option<Import>,
}

/// The name that a `use` brings into scope.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Import {
    /// The name in its module; `None` for `*`.
    pub(super) name: Option<String>,
    /// Whether it has a visibility: `pub use`, `pub(crate) use`.
    pub(super) is_reexport: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// An item of this crate, as a path from the crate's root; empty is the root itself.
    Own(Vec<String>),
    /// A path that begins with another crate, or with a name in scope.
    Other(Vec<String>),
    /// A single name.
    Name(String),
    /// A call of a method of this name.
    Method(String),
}

/// The name of the layered crate, by which its own files could refer to it.
const CRATE_NAME: &str = "ztunnel";

/// All paths that the file names, and all imports.
pub(super) fn of(syntax: &syn::File, module: &[String], is_test: bool) -> Vec<Reference> {
    let mut collector = Collector { module: module.to_vec(), is_test, local: local_modules(syntax), found: Vec::new() };
    collector.visit_file(syntax);
    collector.found
}

/// The modules that the file declares for tests only, as paths from the crate's root.
pub(super) fn test_modules(syntax: &syn::File, module: &[String]) -> Vec<Vec<String>> {
    let declared = syntax.items.iter().filter_map(|item| match item {
        Item::Mod(item) if item.content.is_none() && is_test_only(&item.attrs) => Some(item.ident.to_string()),
        _ => None,
    });
    declared.map(|name| [module, &[name]].concat()).collect()
}

/// The modules declared in the file; their names hide crates of the same name.
fn local_modules(syntax: &syn::File) -> Vec<String> {
    let name = |item: &Item| if let Item::Mod(item) = item { Some(item.ident.to_string()) } else { None };
    syntax.items.iter().filter_map(name).collect()
}

/// The form of a `use`.
#[derive(Clone, Copy)]
struct How {
    /// It begins with `::`.
    is_absolute: bool,
    /// It has a visibility.
    is_reexport: bool,
}

struct Collector {
    module: Vec<String>,
    is_test: bool,
    local: Vec<String>,
    found: Vec<Reference>,
}

impl Collector {
    fn add(&mut self, path: Vec<String>, is_absolute: bool, line: usize) {
        self.push(self.resolve(path, is_absolute), line, None);
    }

    fn push(&mut self, target: Target, line: usize, import: Option<Import>) {
        let module = self.module.clone();
        self.found.push(Reference { target, line, module, is_test: self.is_test, import });
    }

    fn resolve(&self, path: Vec<String>, is_absolute: bool) -> Target {
        let first = path.first().map_or("", String::as_str);
        let depth = path.iter().take_while(|name| *name == "super").count();
        match first {
            _ if is_absolute && first != CRATE_NAME => Target::Other(path),
            "crate" | CRATE_NAME => Target::Own(path.into_iter().skip(1).collect()),
            "self" => Target::Own(self.module.iter().cloned().chain(path.into_iter().skip(1)).collect()),
            "super" => {
                let above = self.module.len().saturating_sub(depth);
                Target::Own(self.module.iter().take(above).cloned().chain(path.into_iter().skip(depth)).collect())
            }
            local if self.local.iter().any(|name| name == local) => {
                Target::Own(self.module.iter().cloned().chain(path).collect())
            }
            _ => Target::Other(path),
        }
    }

    fn add_use(&mut self, tree: &UseTree, before: &[String], how: How) {
        let with = |name: String| {
            if name == "self" && !before.is_empty() { before.to_vec() } else { [before, &[name]].concat() }
        };
        match tree {
            UseTree::Path(path) => self.add_use(&path.tree, &[before, &[path.ident.to_string()]].concat(), how),
            UseTree::Name(name) => {
                let path = with(name.ident.to_string());
                let bound = path.last().cloned();
                self.add_import(path, bound, line(name), how);
            }
            UseTree::Rename(name) => {
                self.add_import(with(name.ident.to_string()), Some(name.rename.to_string()), line(name), how);
            }
            UseTree::Glob(glob) => self.add_import(before.to_vec(), None, line(glob), how),
            UseTree::Group(group) => group.items.iter().for_each(|item| self.add_use(item, before, how)),
        }
    }

    fn add_import(&mut self, path: Vec<String>, name: Option<String>, line: usize, how: How) {
        let import = Import { name, is_reexport: how.is_reexport };
        self.push(self.resolve(path, how.is_absolute), line, Some(import));
    }

    fn in_test_code(&mut self, is_test: bool, visit: impl FnOnce(&mut Self)) {
        let before = self.is_test;
        self.is_test |= is_test;
        visit(self);
        self.is_test = before;
    }

    /// Finds `a::b`, `::a::b` and `a::{b, c}` in the text of a macro.
    fn scan(&mut self, tokens: TokenStream, before: &[String]) {
        let mut path: Vec<String> = before.to_vec();
        let mut first_line = 0;
        let mut joined = !before.is_empty();
        let mut tokens = tokens.into_iter().peekable();
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Ident(ident) => {
                    if !joined {
                        self.finish(&mut path, before, first_line);
                        path.clear();
                    }
                    first_line = ident.span().start().line;
                    path.push(ident.to_string());
                    joined = false;
                }
                TokenTree::Punct(colon) if colon.as_char() == ':' && colon.spacing() == Spacing::Joint => {
                    tokens.next_if(|next| matches!(next, TokenTree::Punct(next) if next.as_char() == ':'));
                    joined = true;
                }
                TokenTree::Group(group) if joined && group.delimiter() == Delimiter::Brace => {
                    self.scan(group.stream(), &path);
                    path.clear();
                    joined = false;
                }
                TokenTree::Group(group) => {
                    self.finish(&mut path, before, first_line);
                    self.scan(group.stream(), &[]);
                    joined = false;
                }
                TokenTree::Punct(comma) if comma.as_char() == ',' => {
                    self.finish(&mut path, before, first_line);
                    path = before.to_vec();
                    joined = !before.is_empty();
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {
                    self.finish(&mut path, before, first_line);
                    joined = false;
                }
            }
        }
        self.finish(&mut path, before, first_line);
    }

    fn finish(&mut self, path: &mut Vec<String>, before: &[String], line: usize) {
        let path = std::mem::take(path);
        match path.as_slice() {
            [name] if before.is_empty() => self.push(Target::Name(name.clone()), line, None),
            [_, _, ..] if path != before => self.add(path, false, line),
            _ => {}
        }
    }
}

impl<'ast> Visit<'ast> for Collector {
    fn visit_item(&mut self, item: &'ast Item) {
        self.in_test_code(is_test_only(attributes(item)), |this| visit::visit_item(this, item));
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        let attributes = if let ImplItem::Fn(item) = item { item.attrs.as_slice() } else { &[] };
        self.in_test_code(is_test_only(attributes), |this| visit::visit_impl_item(this, item));
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let is_reexport = !matches!(item.vis, syn::Visibility::Inherited);
        self.add_use(&item.tree, &[], How { is_absolute: item.leading_colon.is_some(), is_reexport });
    }

    fn visit_item_extern_crate(&mut self, item: &'ast syn::ItemExternCrate) {
        self.add(vec![item.ident.to_string()], true, line(item));
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<_> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        match names.as_slice() {
            [name] => self.push(Target::Name(name.clone()), line(path), None),
            _ => self.add(names, path.leading_colon.is_some(), line(path)),
        }
        visit::visit_path(self, path);
    }

    /// `pub(in crate::net)` names an ancestor and uses nothing.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        self.push(Target::Method(call.method.to_string()), line(&call.method), None);
        visit::visit_expr_method_call(self, call);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.scan(call.tokens.clone(), &[]);
        visit::visit_macro(self, call);
    }

    fn visit_meta_list(&mut self, list: &'ast syn::MetaList) {
        self.scan(list.tokens.clone(), &[]);
        visit::visit_meta_list(self, list);
    }
}

fn line(node: &impl Spanned) -> usize {
    node.span().start().line
}

/// `#[cfg(test)]`, `#[cfg(all(test, …))]`, `#[test]`, `#[tokio::test]`.
fn is_test_only(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::Path(path) => path.segments.last().is_some_and(|name| name.ident == "test"),
        Meta::List(list) if list.path.is_ident("cfg") => requires_test(list.tokens.clone()),
        Meta::List(list) => list.path.segments.last().is_some_and(|name| name.ident == "test"),
        Meta::NameValue(_) => false,
    })
}

/// Whether a `cfg` condition is `test` or an `all` that contains it.
fn requires_test(condition: TokenStream) -> bool {
    let tokens: Vec<TokenTree> = condition.into_iter().collect();
    match tokens.as_slice() {
        [TokenTree::Ident(all), TokenTree::Group(group)] if all == "all" => {
            group.stream().into_iter().any(|token| matches!(token, TokenTree::Ident(name) if name == "test"))
        }
        [TokenTree::Ident(name)] => name == "test",
        _ => false,
    }
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

#[cfg(test)]
mod tests;
