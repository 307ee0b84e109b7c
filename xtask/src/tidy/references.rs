//! Which paths a file names: in `use`, in code, in attributes, and inside macros, whose text is scanned as tokens.

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, ImplItem, Item, Meta, UseTree};

/// One path that a file names.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) target: Target,
    pub(super) line: usize,
    /// Whether it stands in code that is compiled for tests only.
    pub(super) is_test: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// An item of this crate, from the crate's root on; empty is the root itself.
    Own(Vec<String>),
    /// A path that begins with another crate, or with something that is in scope.
    Other(Vec<String>),
    /// A call of a method of this name.
    Method(String),
}

/// The layered crate's name, by which its own files could name it.
const CRATE_NAME: &str = "ztunnel";

/// All paths of two names or more, and all that a `use` brings in.
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

/// Modules of the file itself; their names hide crates of the same name.
fn local_modules(syntax: &syn::File) -> Vec<String> {
    let name = |item: &Item| if let Item::Mod(item) = item { Some(item.ident.to_string()) } else { None };
    syntax.items.iter().filter_map(name).collect()
}

struct Collector {
    module: Vec<String>,
    is_test: bool,
    local: Vec<String>,
    found: Vec<Reference>,
}

impl Collector {
    fn add(&mut self, path: Vec<String>, is_absolute: bool, line: usize) {
        let target = self.resolve(path, is_absolute);
        self.found.push(Reference { target, line, is_test: self.is_test });
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

    fn add_use(&mut self, tree: &UseTree, before: &[String], is_absolute: bool) {
        let with = |name: String| {
            if name == "self" && !before.is_empty() { before.to_vec() } else { [before, &[name]].concat() }
        };
        match tree {
            UseTree::Path(path) => self.add_use(&path.tree, &[before, &[path.ident.to_string()]].concat(), is_absolute),
            UseTree::Name(name) => self.add(with(name.ident.to_string()), is_absolute, line(name)),
            UseTree::Rename(name) => self.add(with(name.ident.to_string()), is_absolute, line(name)),
            UseTree::Glob(glob) => self.add(before.to_vec(), is_absolute, line(glob)),
            UseTree::Group(group) => group.items.iter().for_each(|item| self.add_use(item, before, is_absolute)),
        }
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
        if path.len() > 1 && path != before {
            self.add(path, false, line);
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
        self.add_use(&item.tree, &[], item.leading_colon.is_some());
    }

    fn visit_item_extern_crate(&mut self, item: &'ast syn::ItemExternCrate) {
        self.add(vec![item.ident.to_string()], true, line(item));
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.segments.len() > 1 {
            let names = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            self.add(names, path.leading_colon.is_some(), line(path));
        }
        visit::visit_path(self, path);
    }

    /// `pub(in crate::net)` names an ancestor and uses nothing.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        let target = Target::Method(call.method.to_string());
        self.found.push(Reference { target, line: line(&call.method), is_test: self.is_test });
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
