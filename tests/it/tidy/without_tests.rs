//! Takes out of a file what is compiled for tests only.

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// The tokens without what stands under `#[cfg(test)]`: items, fields, arms, statements.
pub fn without_tests(tokens: TokenStream) -> TokenStream {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut kept = Vec::new();
    let mut rest = &tokens[..];
    while let Some(first) = rest.first() {
        if attributes(rest).any(|attribute| requires_test(attribute.stream())) {
            rest = &rest[length(rest)..];
            continue;
        }
        kept.push(match first {
            TokenTree::Group(group) => {
                let mut inner = Group::new(group.delimiter(), without_tests(group.stream()));
                inner.set_span(group.span());
                TokenTree::Group(inner)
            }
            other => other.clone(),
        });
        rest = &rest[1..];
    }
    kept.into_iter().collect()
}

/// The attributes that the tokens begin with: what is between their brackets.
fn attributes(tokens: &[TokenTree]) -> impl Iterator<Item = &Group> {
    let pairs = tokens.chunks_exact(2).map_while(|pair| match pair {
        [TokenTree::Punct(hash), TokenTree::Group(group)] if hash.as_char() == '#' => Some(group),
        _ => None,
    });
    pairs.take_while(|group| group.delimiter() == Delimiter::Bracket)
}

/// Whether what is in the brackets of an attribute lets the item be there in tests only.
pub fn requires_test(attribute: TokenStream) -> bool {
    let tokens: Vec<TokenTree> = attribute.into_iter().collect();
    match &tokens[..] {
        [TokenTree::Ident(word), TokenTree::Group(condition)] if word == "cfg" => {
            holds_in_tests_only(condition.stream())
        }
        _ => false,
    }
}

fn holds_in_tests_only(condition: TokenStream) -> bool {
    let tokens: Vec<TokenTree> = condition.into_iter().collect();
    match &tokens[..] {
        [TokenTree::Ident(word)] => word == "test",
        [TokenTree::Ident(word), TokenTree::Group(inner)] => {
            let mut conditions = conditions(inner.stream()).into_iter();
            match word.to_string().as_str() {
                "all" => conditions.any(holds_in_tests_only),
                "any" => conditions.all(holds_in_tests_only),
                _ => false,
            }
        }
        _ => false,
    }
}

/// What stands between the commas.
fn conditions(tokens: TokenStream) -> Vec<TokenStream> {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let comma = |token: &TokenTree| is_punct(token, ',');
    let parts = tokens.split(comma).filter(|part| !part.is_empty());
    parts.map(|part| part.iter().cloned().collect()).collect()
}

fn is_punct(token: &TokenTree, character: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == character)
}

/// How many tokens the item, field, arm or statement has that the tokens begin with, its attributes
/// included.
fn length(tokens: &[TokenTree]) -> usize {
    let start = 2 * attributes(tokens).count();
    let word = |token: &TokenTree| match token {
        TokenTree::Ident(word) => word.to_string(),
        _ => String::new(),
    };
    let words: Vec<String> = tokens[start..].iter().take(6).map(word).collect();
    let has = |names: &[&str]| words.iter().any(|word| names.contains(&word.as_str()));
    let is_brace = |token: &TokenTree| matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace);
    let ends = |token: &TokenTree| {
        if has(&[
            "fn",
            "mod",
            "impl",
            "struct",
            "enum",
            "trait",
            "union",
            "macro_rules",
        ]) {
            is_brace(token) || is_punct(token, ';')
        } else if has(&["use", "const", "static", "type", "let"]) {
            is_punct(token, ';')
        } else {
            is_punct(token, ';') || is_punct(token, ',')
        }
    };
    let end = tokens[start..].iter().position(ends);
    end.map_or(tokens.len(), |end| start + end + 1)
}

#[test]
fn what_is_for_tests_goes_and_the_rest_stays() {
    let text = "
        #[cfg(test)] use a::{b, c}; use kept1;
        #[cfg(test)] #[derive(Debug)] pub(crate) struct S<A, B>(A, B); fn kept2() {}
        #[cfg(all(loom, test))] mod tests; mod kept3;
        #[cfg(any(loom, test))] mod kept4;
        #[cfg(not(test))] mod kept5;
        #[cfg(test)] const fn f<A, B>() -> [u8; 3] { g(); h() } mod kept6 {}
        #[cfg(test)] impl A for B { } impl kept7 {}
        struct T { #[cfg(test)] a: (u8, u8), kept8: u8, #[cfg(test)] z: u8 }
        fn kept9() { #[cfg(test)] let a = [1, 2]; #[cfg(test)] b(1, 2); kept10() }
        #[cfg(test)] const C: u8 = { 1 };
        #[derive(Debug)] #[cfg(test)] struct U; #[test] fn kept11() {}
    ";
    let tokens: TokenStream = text.parse().expect("it is Rust");
    let rest = without_tests(tokens).to_string();
    for number in 1..=11 {
        assert!(
            rest.contains(&format!("kept{number}")),
            "{number} in {rest}"
        );
    }
    let file: syn::File = syn::parse_str(&rest).expect("it is still Rust");
    assert_eq!(file.items.len(), 10, "{rest}");
    assert!(!rest.contains("let a") && !rest.contains("b (1"), "{rest}");
    assert!(!rest.contains("a :") && !rest.contains("z :"), "{rest}");
}
