//! Where the paths of a file lead: those that it imports, and those that stand in its code.

use std::collections::BTreeMap;

use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{ItemMod, ItemUse, Path, UseTree, Visibility};

use super::source::Module;

/// A path, from the root of a crate. This crate's own begin with `crate`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    pub line: usize,
    pub path: Vec<String>,
    /// A `use`; else it stands in the code.
    pub import: bool,
    /// A `pub use`.
    pub public: bool,
}

impl Reference {
    /// The names below the root of this crate, if the path is one of this crate.
    pub fn in_this_crate(&self) -> Option<&[String]> {
        match self.path.split_first() {
            Some((first, rest)) if first == "crate" => Some(rest),
            _ => None,
        }
    }

    /// Whether the path is this one, or one below it: `std::fs` or `std::fs::File`.
    pub fn begins_with(&self, beginning: &str) -> bool {
        let mut names = self.path.iter();
        beginning
            .split("::")
            .all(|name| names.next().is_some_and(|other| other == name))
    }

    pub fn name(&self) -> &str {
        self.path.last().map_or("", String::as_str)
    }

    pub fn shown(&self) -> String {
        self.path.join("::")
    }
}

/// A path as it is written, in the module where it is written.
struct Written {
    module: Module,
    line: usize,
    path: Vec<String>,
    import: bool,
    public: bool,
}

/// What a name means in a module that has imported it.
type Scopes = BTreeMap<(Module, String), Vec<String>>;

/// The paths of a file.
pub fn references(
    module: &Module,
    syntax: &syn::File,
    is_module: impl Fn(&[String]) -> bool,
) -> Vec<Reference> {
    let mut collector = Collector {
        module: module.clone(),
        written: Vec::new(),
        scopes: Scopes::new(),
    };
    collector.visit_file(syntax);
    let Collector {
        written, scopes, ..
    } = collector;
    let resolve = |written: Written| Reference {
        line: written.line,
        path: resolve(&written.module, &written.path, &scopes, &is_module, 0),
        import: written.import,
        public: written.public,
    };
    written.into_iter().map(resolve).collect()
}

fn resolve(
    module: &[String],
    path: &[String],
    scopes: &Scopes,
    is_module: &impl Fn(&[String]) -> bool,
    depth: usize,
) -> Vec<String> {
    let own = |module: &[String], rest: &[String]| [&["crate".to_owned()], module, rest].concat();
    let Some((first, rest)) = path.split_first() else {
        return own(module, &[]);
    };
    match first.as_str() {
        "crate" | "batond" => own(&[], rest),
        "self" => own(module, rest),
        "super" => {
            let levels = path.iter().take_while(|name| *name == "super").count();
            let above = module.len().saturating_sub(levels);
            own(&module[..above], &path[levels..])
        }
        // The path began with a colon: what follows is the name of a crate.
        "" => rest.to_vec(),
        name => {
            let imported = scopes.get(&(module.to_vec(), name.to_owned()));
            let child = [module, std::slice::from_ref(first)].concat();
            match imported {
                // `use a::b;` may stand beside `use b::c;`, and `use log;` means itself.
                Some(target) if depth < 4 && target.first() != Some(first) => {
                    let whole = [target, rest].concat();
                    resolve(module, &whole, scopes, is_module, depth + 1)
                }
                _ if is_module(&child) => own(&child, rest),
                _ => path.to_vec(),
            }
        }
    }
}

struct Collector {
    module: Module,
    written: Vec<Written>,
    scopes: Scopes,
}

impl Collector {
    fn add(&mut self, line: usize, path: Vec<String>) {
        self.written.push(Written {
            module: self.module.clone(),
            line,
            path,
            import: false,
            public: false,
        });
    }

    /// The paths that a use tree stands for: `a::{b, c::d}` is `a::b` and `a::c::d`.
    fn import(&mut self, prefix: &[String], tree: &UseTree, public: bool) {
        let (name, known_as) = match tree {
            UseTree::Path(path) => {
                let prefix = [prefix, &[path.ident.to_string()]].concat();
                return self.import(&prefix, &path.tree, public);
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.import(prefix, tree, public);
                }
                return;
            }
            UseTree::Glob(_) => (None, None),
            UseTree::Name(name) => (Some(&name.ident), Some(&name.ident)),
            UseTree::Rename(rename) => (Some(&rename.ident), Some(&rename.rename)),
        };
        let mut path = prefix.to_vec();
        path.extend(name.filter(|name| *name != "self").map(ToString::to_string));
        let known_as = match known_as {
            Some(name) if name == "self" => path.last().cloned(),
            other => other.map(ToString::to_string),
        };
        if let Some(name) = known_as {
            let key = (self.module.clone(), name);
            self.scopes.insert(key, path.clone());
        }
        self.written.push(Written {
            module: self.module.clone(),
            line: tree.span().start().line,
            path,
            import: true,
            public,
        });
    }

    /// The paths in the arguments of a macro, which are only words to the parser.
    fn scan(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut line = 0;
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(word) => {
                    if colons != 2 {
                        self.finish(line, &mut path);
                    }
                    line = word.span().start().line;
                    path.push(word.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Group(group) => {
                    self.finish(line, &mut path);
                    self.scan(group.stream());
                    colons = 0;
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {
                    self.finish(line, &mut path);
                    colons = 0;
                }
            }
        }
        self.finish(line, &mut path);
    }

    /// A word alone is any name, and says nothing.
    fn finish(&mut self, line: usize, path: &mut Vec<String>) {
        let path = std::mem::take(path);
        if path.len() > 1 {
            self.add(line, path);
        }
    }
}

impl<'ast> Visit<'ast> for Collector {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let start = item.leading_colon.map(|_| String::new());
        let prefix: Vec<String> = start.into_iter().collect();
        let public = matches!(item.vis, Visibility::Public(_));
        self.import(&prefix, &item.tree, public);
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_path(&mut self, path: &'ast Path) {
        let names = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string());
        let start = path.leading_colon.map(|_| String::new());
        let names: Vec<String> = start.into_iter().chain(names).collect();
        if names.len() > 1 {
            self.add(path.span().start().line, names);
        }
        visit::visit_path(self, path);
    }

    fn visit_token_stream(&mut self, tokens: &'ast TokenStream) {
        self.scan(tokens.clone());
    }

    /// `pub(in crate::a)` says who may see, and imports nothing.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}
}

#[cfg(test)]
mod rules {
    use super::super::source::Tree;

    fn paths(text: &str) -> Vec<String> {
        let tree = Tree::of(&[
            ("src/lib.rs", "mod master;"),
            ("src/master/mod.rs", "mod pool;"),
            ("src/master/pool/mod.rs", text),
            ("src/master/pool/lending.rs", ""),
        ]);
        let pool = tree.file("src/master/pool/mod.rs").expect("it is there");
        pool.references.iter().map(|one| one.shown()).collect()
    }

    #[test]
    fn each_way_to_write_an_import_leads_to_the_same() {
        let wanted = ["crate::master::time::Time"];
        assert_eq!(paths("use crate::master::time::Time;"), wanted);
        assert_eq!(paths("use super::time::Time;"), wanted);
        assert_eq!(paths("use super::super::master::time::Time as T;"), wanted);
        assert_eq!(paths("use super::{time::{Time}};"), wanted);
        assert_eq!(paths("fn f() -> super::time::Time {}"), wanted);
        assert_eq!(
            paths("fn f() { let x: Vec<super::time::Time> = a; }"),
            wanted
        );
        assert_eq!(paths("fn f() { g!(a, super::time::Time, b); }"), wanted);
        assert_eq!(paths("mod m { use super::super::time::Time; }"), wanted);
        assert_eq!(
            paths("macro_rules! m { () => { $crate::master::time::Time } }"),
            wanted
        );
    }

    #[test]
    fn an_imported_name_leads_on() {
        let found = paths("use super::time as t; use t::Time; fn f(x: t::Span) {}");
        let wanted = [
            "crate::master::time",
            "crate::master::time::Time",
            "crate::master::time::Span",
        ];
        assert_eq!(found, wanted);
        assert_eq!(
            paths("use a::{self, b}; fn f() { b::c() }"),
            ["a", "a::b", "a::b::c"]
        );
        assert_eq!(
            paths("use log; fn f() { log::info() }"),
            ["log", "log::info"]
        );
    }

    #[test]
    fn a_child_is_found_by_its_name_alone_and_a_crate_is_no_child() {
        assert_eq!(
            paths("use lending::Lent;"),
            ["crate::master::pool::lending::Lent"]
        );
        assert_eq!(
            paths("use self::lending::*;"),
            ["crate::master::pool::lending"]
        );
        assert_eq!(paths("use ::lending::Lent;"), ["lending::Lent"]);
        assert_eq!(paths("use std::fs;"), ["std::fs"]);
    }

    #[test]
    fn a_visibility_and_a_declaration_import_nothing() {
        assert!(
            paths("mod lending; pub(in crate::master) struct S { pub(super) a: u8 }").is_empty()
        );
    }

    #[test]
    fn a_reference_leads_to_the_file_of_its_longest_module() {
        let tree = Tree::of(&[
            (
                "src/lib.rs",
                "use crate::master::pool::lending::Lent; use crate::master::pool::Pool;",
            ),
            ("src/master/pool/mod.rs", ""),
            (
                "src/master/pool/lending.rs",
                "use std::fs; use crate::Server;",
            ),
        ]);
        let targets = |path| -> Vec<_> {
            let source = tree.file(path).expect("it is there");
            let targets = source.references.iter().map(|one| tree.target(one));
            targets
                .map(|target| target.map(|target| target.path.as_str()))
                .collect()
        };
        let found = targets("src/lib.rs");
        assert_eq!(
            found,
            [
                Some("src/master/pool/lending.rs"),
                Some("src/master/pool/mod.rs")
            ]
        );
        assert_eq!(
            targets("src/master/pool/lending.rs"),
            [None, Some("src/lib.rs")]
        );
    }
}
