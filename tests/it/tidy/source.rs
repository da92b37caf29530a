//! The files under src as syntax: without comments and without tests, every word with its line.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::visit::{self, Visit};
use syn::{ItemImpl, Type};

use super::references::{Reference, references};
use super::without_tests::{requires_test, without_tests};

/// A module by the names above it: `["master", "pool"]`, none for lib.rs and main.rs.
pub type Module = Vec<String>;

/// A file under src.
pub struct Source {
    /// From the top of the repository: `src/master/pool.rs`.
    pub path: String,
    pub text: String,
    pub module: Module,
    /// The file is compiled for tests only.
    pub is_test: bool,
    /// Every name and keyword outside tests.
    pub words: Vec<(usize, String)>,
    /// Every path outside tests, as far as it can be told where it leads.
    pub references: Vec<Reference>,
    /// The types that blocks of methods outside tests are for.
    pub impls: Vec<(usize, String)>,
}

/// A broken rule: the line, and what the rule says.
pub type Broken = (usize, String);

/// All the files, and which module each is.
pub struct Tree {
    pub sources: Vec<Source>,
    modules: BTreeMap<Module, usize>,
    /// Where the names are from that src/lib.rs offers at the top of the crate.
    face: BTreeMap<String, Vec<String>>,
}

impl Source {
    /// Whether the file is `path`.rs or below `path`/.
    pub fn is_in(&self, path: &str) -> bool {
        let rest = self.path.strip_prefix(path);
        rest.is_some_and(|rest| rest.starts_with('/') || rest == ".rs")
    }

    /// The lines with these words as a whole or as a part of one.
    pub fn words_with(&self, parts: &[&str], rule: &str) -> Vec<Broken> {
        let has = |word: &String| parts.iter().any(|part| word.contains(part));
        self.words_where(has, rule)
    }

    /// The lines with this word.
    pub fn words_like(&self, word: &str, rule: &str) -> Vec<Broken> {
        self.words_where(|other| other == word, rule)
    }

    fn words_where(&self, found: impl Fn(&String) -> bool, rule: &str) -> Vec<Broken> {
        let words = self.words.iter().filter(|(_, word)| found(word));
        words
            .map(|(line, word)| (*line, format!("`{word}`: {rule}")))
            .collect()
    }
}

impl Tree {
    /// All files under src, parsed once.
    pub fn read() -> &'static Self {
        static TREE: OnceLock<Tree> = OnceLock::new();
        TREE.get_or_init(|| {
            let paths = files("src", &["rs"]).into_iter();
            Self::new(paths.map(|path| (path.clone(), text(&path))))
        })
    }

    /// A tree of these files.
    pub fn of(files: &[(&str, &str)]) -> Self {
        let owned = |(path, text): &(&str, &str)| (path.to_string(), text.to_string());
        Self::new(files.iter().map(owned))
    }

    /// A tree of one file.
    pub fn single(path: &str, text: &str) -> Self {
        Self::of(&[(path, text)])
    }

    fn new(files: impl Iterator<Item = (String, String)>) -> Self {
        let files: Vec<(String, String)> = files.collect();
        let names = || files.iter().map(|(path, _)| module(path)).enumerate();
        let is_library = |index: usize| files[index].0 != "src/main.rs";
        let library = names().filter(|(index, _)| is_library(*index));
        let modules: BTreeMap<Module, usize> =
            library.map(|(index, module)| (module, index)).collect();
        let tests: Vec<Module> = files
            .iter()
            .flat_map(|(path, text)| test_modules(path, text))
            .collect();
        let parse = |(path, text): (String, String)| {
            let module = module(&path);
            let is_test = tests.iter().any(|test| module.starts_with(test));
            let code = match is_test {
                true => TokenStream::new(),
                false => without_tests(tokens(&path, &text)),
            };
            let syntax = syntax(&path, code.clone());
            let mut words = Vec::new();
            collect_words(code, &mut words);
            let references = references(&module, &syntax, |other| modules.contains_key(other));
            Source {
                path,
                text,
                module,
                is_test,
                words,
                references,
                impls: impls(&syntax),
            }
        };
        let sources: Vec<Source> = files.clone().into_iter().map(parse).collect();
        let library = sources.iter().find(|source| source.path == "src/lib.rs");
        let public = library.into_iter().flat_map(|library| &library.references);
        let public = public.filter(|reference| reference.public);
        let inside = public.filter_map(|one| Some((one.name().to_owned(), one.in_this_crate()?)));
        let face = inside.map(|(name, path)| (name, path.to_vec())).collect();
        Self {
            sources,
            modules,
            face,
        }
    }

    pub fn file(&self, path: &str) -> Option<&Source> {
        self.sources.iter().find(|source| source.path == path)
    }

    /// The names of a reference below the root of this crate; for a name on its face, those of its
    /// origin.
    pub fn origin(&self, reference: &Reference) -> Option<Vec<String>> {
        let path = reference.in_this_crate()?;
        let on_face = path.first().and_then(|first| self.face.get(first));
        Some(match on_face {
            Some(origin) => [&origin[..], &path[1..]].concat(),
            None => path.to_vec(),
        })
    }

    /// The file that a reference leads to: that of the longest beginning which is a module.
    pub fn target(&self, reference: &Reference) -> Option<&Source> {
        let path = self.origin(reference)?;
        let prefixes = (0..=path.len()).rev().map(|end| &path[..end]);
        let mut indices = prefixes.filter_map(|prefix| self.modules.get(prefix));
        Some(&self.sources[*indices.next()?])
    }
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The text of a file of the repository.
#[track_caller]
pub fn text(path: &str) -> String {
    let text = fs::read_to_string(root().join(path));
    text.unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The files below a folder of the repository that end so, by path.
pub fn files(folder: &str, extensions: &[&str]) -> Vec<String> {
    let mut folders = vec![root().join(folder)];
    let mut found: Vec<PathBuf> = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the repository is readable") {
            let path = entry.expect("the repository is readable").path();
            let extension = path.extension().and_then(|extension| extension.to_str());
            if path.is_dir() {
                folders.push(path);
            } else if extension.is_some_and(|extension| extensions.contains(&extension)) {
                found.push(path);
            }
        }
    }
    found.sort();
    let relative = |path: &PathBuf| path.strip_prefix(root()).expect("below it").to_owned();
    let paths = found.iter().map(relative);
    paths.map(|path| path.display().to_string()).collect()
}

#[track_caller]
pub fn tokens(path: &str, text: &str) -> TokenStream {
    let tokens = text.parse::<TokenStream>();
    tokens.unwrap_or_else(|error| panic!("{path}: it is not Rust: {error}"))
}

#[track_caller]
fn syntax(path: &str, tokens: TokenStream) -> syn::File {
    let syntax = syn::parse2(tokens);
    syntax.unwrap_or_else(|error| panic!("{path}: it is not Rust: {error}"))
}

fn module(path: &str) -> Module {
    let path = path.strip_prefix("src/").unwrap_or(path);
    let path = path.strip_suffix(".rs").unwrap_or(path);
    let mut names: Module = path.split('/').map(str::to_owned).collect();
    if names.len() > 1 && names.last().is_some_and(|name| name == "mod") {
        names.pop();
    }
    if names == ["lib"] || names == ["main"] {
        names.clear();
    }
    names
}

/// The modules that a file declares for tests only.
fn test_modules(path: &str, text: &str) -> Vec<Module> {
    let own = module(path);
    let modules = syntax(path, tokens(path, text))
        .items
        .into_iter()
        .filter_map(|item| match item {
            syn::Item::Mod(module) => Some(module),
            _ => None,
        });
    let of_tests = modules.filter(|module| {
        let attributes = module.attrs.iter().map(|attribute| &attribute.meta);
        let mut attributes = attributes.map(ToTokens::to_token_stream);
        attributes.any(requires_test)
    });
    let name = |module: syn::ItemMod| [&own[..], &[module.ident.to_string()]].concat();
    of_tests.map(name).collect()
}

/// The names of the types in `impl Type` and `impl Trait for Type`, without their paths.
fn impls(syntax: &syn::File) -> Vec<(usize, String)> {
    #[derive(Default)]
    struct Impls(Vec<(usize, String)>);

    impl<'ast> Visit<'ast> for Impls {
        fn visit_item_impl(&mut self, item: &'ast ItemImpl) {
            if let Type::Path(of) = &*item.self_ty
                && let Some(segment) = of.path.segments.last()
            {
                let line = segment.ident.span().start().line;
                self.0.push((line, segment.ident.to_string()));
            }
            visit::visit_item_impl(self, item);
        }
    }

    let mut impls = Impls::default();
    impls.visit_file(syntax);
    impls.0
}

fn collect_words(tokens: TokenStream, words: &mut Vec<(usize, String)>) {
    for token in tokens {
        match token {
            TokenTree::Group(group) => collect_words(group.stream(), words),
            TokenTree::Ident(word) => words.push((word.span().start().line, word.to_string())),
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
}

#[test]
fn comments_strings_and_tests_are_no_code() {
    let text = r##"
//! crate::master
use a; // crate::master
/* crate::master /* unsafe */ unsafe */ use b;
const S: &str = "unsafe \" unsafe"; const T: &[u8] = br#"unsafe " unsafe"#;
fn f<'a>(x: &'a str) -> char { '"' } fn g() -> char { '\'' } // "
fn for_r(r: u8) { let _ = ['{', '\\']; }
#[cfg(test)]
mod tests { fn t() { unsafe { "}" } } }
fn last() {}
"##;
    let tree = Tree::single("src/wire.rs", text);
    let source = &tree.sources[0];
    assert!(source.words_like("unsafe", "").is_empty());
    assert!(source.words_with(&["crate"], "").is_empty());
    assert_eq!(source.words_like("last", ""), [(10, "`last`: ".into())]);
    assert_eq!(source.words_with(&["for_"], "")[0].0, 7);
    assert_eq!(source.references.len(), 2, "{:?}", source.references);
}

#[test]
fn a_file_is_in_its_folder() {
    let is_in = |path| Tree::single(path, "").sources[0].is_in("src/fdpass");
    assert!(is_in("src/fdpass.rs"));
    assert!(is_in("src/fdpass/send.rs"));
    assert!(!is_in("src/fdpassed.rs"));
}

#[test]
fn a_file_that_tests_alone_declare_is_no_code() {
    let tree = Tree::of(&[
        (
            "src/a/mod.rs",
            "#[cfg(all(test, not(loom)))] mod trials; mod b;",
        ),
        ("src/a/trials.rs", "use crate::cli;"),
        ("src/a/b.rs", "#[cfg(not(test))] use crate::cli;"),
    ]);
    let is_test = |path| tree.file(path).expect("it is there").is_test;
    assert!(is_test("src/a/trials.rs"));
    assert!(!is_test("src/a/b.rs"));
    assert!(tree.file("src/a/trials.rs").unwrap().references.is_empty());
    assert_eq!(tree.file("src/a/b.rs").unwrap().references.len(), 1);
}

#[test]
fn the_names_on_the_face_of_the_crate_belong_to_their_modules() {
    let text = "mod error; mod service; use crate::cli;
        pub use error::{Error, Result}; pub use crate::service::Turn; pub use services::http;";
    let user = "use crate::{Error, Turn, Own, http::Request};";
    let tree = Tree::of(&[
        ("src/lib.rs", text),
        ("src/error.rs", ""),
        ("src/service.rs", user),
        ("src/services/http.rs", ""),
        ("src/services.rs", "mod http;"),
    ]);
    assert_eq!(tree.face["Result"], ["error", "Result"]);
    assert_eq!(tree.face.len(), 4);
    let service = tree.file("src/service.rs").expect("it is there");
    let targets = service.references.iter().map(|one| tree.target(one));
    let targets: Vec<_> = targets.map(|one| one.map_or("", |one| &one.path)).collect();
    let wanted = [
        "src/error.rs",
        "src/service.rs",
        "src/lib.rs",
        "src/services/http.rs",
    ];
    assert_eq!(targets, wanted);
}
