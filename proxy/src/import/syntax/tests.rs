//! The grammar: what nginx reads, and what it rejects.

use proptest::prelude::*;

use super::*;

fn read(text: &str) -> Result<Block, SyntaxError> {
    parse(&"test.conf".into(), text)
}

fn names(block: &Block) -> Vec<String> {
    block.directives.iter().map(Directive::line).collect()
}

#[test]
fn words_quotes_and_escapes_are_read_as_nginx_reads_them() {
    let text = "a b;\n# c d;\ne \"f g\" 'h;i' j\\ k \"l\\\"m\" \\.(js|css)$ ${v}x;n{o;p q;}\n";
    let block = read(text).unwrap();
    assert_eq!(block.comments, [(Place { file: "test.conf".into(), line: 2 }, "c d;".to_owned())]);
    let e = &block.directives[1];
    assert_eq!(e.args, ["f g", "h;i", "j\\ k", "l\"m", "\\.(js|css)$", "${v}x"]);
    assert_eq!((e.place.line, block.directives[2].place.line), (3, 3));
    assert_eq!(names(block.directives[2].block.as_ref().unwrap()), ["o", "p q"]);
}

#[test]
fn a_directive_over_several_lines_is_where_it_begins() {
    let block = read("\n\nlog_format main 'a'\n  'b';\nnext;").unwrap();
    assert_eq!(block.directives[0].place.line, 3);
    assert_eq!(block.directives[1].place.line, 5);
}

#[test]
fn a_lua_block_is_one_directive() {
    let text = "content_by_lua_block {\n if x then -- }\n  t = { a = \"}\" } end\n}\nlisten 80;";
    assert_eq!(names(&read(text).unwrap()), ["content_by_lua_block", "listen 80"]);
}

#[test]
fn a_mistake_has_its_place_and_what_was_expected() {
    for (text, line, reason) in [
        ("a;\n}\n", 2, "closes nothing"),
        ("a {\nb;\n", 3, "} is missing"),
        ("a;\nb c\n", 2, "expected ; or {"),
        ("a {\nb }\n", 2, "expected ; or {"),
        (";", 1, "name of a directive"),
        ("a 'b\nc;", 1, "isn't closed"),
        ("a 'b'c;", 1, "after the closing quote"),
        ("x_by_lua_block {\n{ }", 1, "Lua block"),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.place.line == line && error.reason.contains(reason), "{text:?}: {error}");
    }
    let deep = "a {".repeat(100_000);
    assert!(read(&deep).unwrap_err().reason.contains("nested"));
}

fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z_./:*=~^$|()-]{1,8}",
        "[ -~]{1,8}",
        Just(String::new()),
        Just("${host}".to_owned()),
        Just("a\tb\nc\r".to_owned()),
        Just("\\.(js|css)$".to_owned()),
    ]
}

fn directive_of(block: impl Strategy<Value = Option<Block>>) -> impl Strategy<Value = Directive> {
    (word(), prop::collection::vec(word(), 0..4), block).prop_map(|(name, args, block)| Directive {
        id: 0,
        place: Place { file: "test.conf".into(), line: 0 },
        name,
        args,
        block,
    })
}

fn tree() -> impl Strategy<Value = Directive> {
    directive_of(Just(None)).boxed().prop_recursive(4, 24, 4, |inner| {
        let block = prop::collection::vec(inner, 0..4);
        let block = block.prop_map(|directives| Block { directives, comments: Vec::new() });
        directive_of(prop::option::of(block)).boxed()
    })
}

/// Without the places, which printing doesn't keep.
fn flat(directive: &Directive) -> Directive {
    let place = Place { file: "test.conf".into(), line: 0 };
    let inner = |block: &Block| Block {
        directives: block.directives.iter().map(flat).collect(),
        comments: block.comments.iter().map(|(_, text)| (place.clone(), text.clone())).collect(),
    };
    Directive { place: place.clone(), block: directive.block.as_ref().map(inner), ..directive.clone() }
}

proptest! {
    #[test]
    fn what_is_printed_is_read_again(directive in tree()) {
        prop_assume!(!directive.name.ends_with("_by_lua_block"));
        let text = directive.to_string();
        let block = read(&text).map_err(|error| TestCaseError::fail(format!("{text}: {error}")))?;
        prop_assert_eq!(block.directives.iter().map(flat).collect::<Vec<_>>(), vec![flat(&directive)], "{}", text);
    }

    #[test]
    fn no_text_panics(text in "[ -~\\n\\t{};#'\"\\\\é]{0,200}") {
        let _ = read(&text);
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read(&String::from_utf8_lossy(&bytes));
    }
}
