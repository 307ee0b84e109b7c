use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::{Base, Error, LeftOut, items, lenient_tree, read, read_lenient, tree, values};
use crate::control::field::FieldPath;

/// The text as a tree, converted to JSON.
fn json_of(text: &str) -> Result<Json, Error> {
    read(text)
}

#[test]
fn yaml_and_json_say_the_same() {
    let table = [
        ("", json!(null)),
        ("# nothing\n---\n", json!(null)),
        (
            "a: 1\nb: [x, 'y', \"z\"]\nc: {d: ~, e: }\n",
            json!({"a": 1, "b": ["x", "y", "z"], "c": {"d": null, "e": null}}),
        ),
        (
            "{\"a\": 1, \"b\": [\"x\", true, null, -1.5e3, \"\\u0041\\ud83d\\ude00\\n\\/\"]}",
            json!({"a": 1, "b": ["x", true, null, -1500, "A\u{1f600}\n/"]}),
        ),
        ("{a: 1, \"b\": 'x', }", json!({"a": 1, "b": "x"})),
        ("[1, {\"a\": []}]", json!([1, {"a": []}])),
        (
            "a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}\nf: {<<: [*x, {g: 3}], b: 4}",
            json!({"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}, "f": {"b": 4, "g": 3}}),
        ),
        (
            "a: 0400\nb: 0o17\nc: yes\nd: 'yes'\ne: !!str 7\nf: |\n  text\ng: 0x1F\n",
            json!({"a": 256, "b": 15, "c": true, "d": "yes", "e": "7", "f": "text\n", "g": 31}),
        ),
        ("80: a\ntrue: b\n", json!({"80": "a", "true": "b"})),
        ("\u{feff}a: b\r\nc: d\r\n", json!({"a": "b", "c": "d"})),
        ("\u{feff}{\"a\": \"\u{fc}\"}", json!({"a": "\u{fc}"})),
        ("{\"metadata\": {\"managedFields\": [{\"x\": \"}]\"}], \"name\": \"a\"}}", json!({"metadata": {"name": "a"}})),
    ];
    for (text, expected) in table {
        assert_eq!(json_of(text), Ok(expected), "{text}");
    }
}

#[test]
fn what_is_wrong_is_told_with_its_place_and_in_plain_words() {
    let table = [
        ("a: [", "1:", "the bracket [ is never closed"),
        ("a: {b: 1\nc: 2\n", "", ""),
        ("a: 'x\n", "", "the lines of a text in quotation marks"),
        ("'x", "", "a quotation mark is never closed"),
        ("a:\n\tb: 1\n", "2:", "a tab is not allowed here"),
        ("a: b: c\n", "1:", "a colon is not allowed here"),
        ("a: 1\n  b: 2\n", "2:", ""),
        ("a: *x\n", "1:4", "an alias (*) names an anchor"),
        ("a: @x\n", "1:4", "a value cannot begin with '@'"),
        ("a: 1\nb: 2\na: 3\n", "3:1", "a: the key is there twice, in line 1 and in line 3"),
        ("a:\n- {b: 1, \"b\": 2}\n", "2:10", "a[0].b: the key is there twice"),
        ("{\"a\": [{\"b\": 1, \"b\": 2}]}", "1:17", "a[0].b: the key is there twice"),
        ("{\"a\": 1,}", "", ""),
        ("{\"a\" 1, \"b\": [}", "1:6", "':' is missing here"),
        ("{\"a\": tru, \"b\": [}", "1:7", "this is not a JSON value"),
        ("{\"a\": \"\n\"", "1:8", "a line end or control character"),
        ("{\"a\": 1} x", "1:10", "something follows the closing bracket"),
        ("{{ .Values.x }}: 1", "1:2", "a key is a list or a map"),
        ("a: 1\n---\nb: 2\n", "2:1", "a second document begins here"),
    ];
    for (text, place, message) in table {
        let Err(error) = json_of(text) else {
            assert!(message.is_empty(), "{text}");
            continue;
        };
        let (line, column) = error.place.unwrap();
        let shown = match &error.field {
            Some(field) => format!("{field}: {}", error.message),
            None => error.message.clone(),
        };
        assert!(
            format!("{line}:{column}").starts_with(place) && shown.starts_with(message),
            "{text}\n{line}:{column} {shown}"
        );
    }
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Typed {
    text: Option<String>,
    number: Option<u16>,
    flag: Option<bool>,
    list: Option<Vec<Inner>>,
    word: Option<Word>,
    time: Option<f64>,
}

#[derive(Debug, Deserialize, PartialEq)]
struct Inner {
    name: String,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "UPPERCASE")]
enum Word {
    Allow,
    Deny,
    Audit,
}

#[test]
fn types_take_values_as_kubectl_does() {
    let full = "text: 1.0\nnumber: 0400\nflag: on\nlist: [{name: yes, more: 1}]\nword: DENY\ntime: 1.5\n";
    let typed: Typed = read(full).unwrap();
    let expected = Typed {
        text: Some("1.0".into()),
        number: Some(256),
        flag: Some(true),
        list: Some(vec![Inner { name: "yes".into() }]),
        word: Some(Word::Deny),
        time: Some(1.5),
    };
    assert_eq!(typed, expected);
    let table = [
        ("text: ~\nnumber: x\n", "2:9 number: \"x\" is given where a whole number from 0 to 65535 belongs"),
        ("number: 65536", "1:9 number: \"65536\" is given where a whole number from 0 to 65535 belongs"),
        ("number: '80'", "1:9 number: the text \"80\" is given where a number belongs: remove the quotation marks"),
        (
            "flag: 'true'",
            "1:7 flag: the text \"true\" is given where true or false belongs: remove the quotation marks",
        ),
        ("flag: maybe", "1:7 flag: \"maybe\" is given where true or false belongs"),
        ("text: []", "1:7 text: a list is given where text belongs"),
        ("list: {}", "1:7 list: a map is given where a list belongs"),
        ("list: [{name: a}, {}]", "1:19 list[1].name: is missing: write it"),
        ("list: [null]", "1:8 list[0]: nothing is given where a map belongs"),
        ("list: [{name: }]", "1:9 list[0].name: nothing is given where text belongs"),
        ("word: deny", "1:7 word: unknown value \"deny\": write ALLOW, DENY or AUDIT"),
        ("words: DENY", "1:1 words: unknown field: write text, number, flag, list, word or time"),
        ("time: soon", "1:7 time: \"soon\" is given where a number belongs"),
        ("7", "1:1 \"7\" is given where a map belongs"),
    ];
    for (text, expected) in table {
        let error = read::<Typed>(text).unwrap_err();
        let (line, column) = error.place.unwrap();
        let field = error.field.map(|field| format!("{field}: ")).unwrap_or_default();
        assert_eq!(format!("{line}:{column} {field}{}", error.message), expected, "{text}");
    }
}

#[test]
fn bombs_and_depth_are_bounded() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        bomb += &format!("a{level}: &a{level} [{}]\n", vec![format!("*a{}", level - 1); 9].join(", "));
    }
    assert!(read::<Json>(&bomb).unwrap_err().message.contains("has more than 1000000 values"));
    for (open, close) in [("[", "]"), ("{\"a\": ", "}"), ("{a: ", "}"), ("- ", "")] {
        let text = format!("{}1{}", open.repeat(100_000), close.repeat(100_000));
        assert!(tree(&text, Base::default()).unwrap_err().message.contains("nested deeper than 255 levels"), "{open}");
        let text = format!("{}1{}", open.repeat(250), close.repeat(250));
        assert!(tree(&text, Base::default()).is_ok(), "{open}");
    }
}

#[test]
fn fields_are_found_whole_or_in_part() {
    const TEXT: &str = "# a comment\nspec:\n  rules:\n  - from: [{}, {source: }]\n    to:\n  - null\nmetadata: {annotations: {a/b: c, 80: d}}\n";
    let root = tree(TEXT, Base::default()).unwrap().unwrap();
    let rules = || FieldPath::of("spec.rules");
    let annotations = || FieldPath::of("metadata.annotations");
    let table = [
        (FieldPath::of("spec"), Some((3, 3))),
        (rules(), Some((4, 5))),
        (rules().index(0).key("from"), Some((4, 11))),
        (rules().index(0).key("from").index(0), Some((4, 12))),
        (rules().index(0).key("from").index(0).key("source").key("principals"), Some((4, 12))),
        (rules().index(0).key("from").index(1).key("source"), Some((4, 17))),
        (rules().index(0).key("from").index(2), Some((4, 11))),
        (rules().index(0).key("to"), Some((5, 5))),
        (rules().index(1), Some((6, 5))),
        (rules().key("key"), Some((4, 5))),
        (annotations().key("a/b"), Some((7, 31))),
        (annotations().key("80"), Some((7, 38))),
        (FieldPath::of("status"), None),
    ];
    for (field, place) in table {
        assert_eq!(root.locate(&field), place, "{field}");
    }
    let base = Base { lines: 10, columns: 4 };
    let json = tree("{\"a\":\n \"\u{fc}\", \"b\": 1}", base).unwrap().unwrap();
    assert_eq!(
        (json.place, json.locate(&FieldPath::of("a")), json.locate(&FieldPath::of("b"))),
        ((11, 5), Some((12, 2)), Some((12, 12)))
    );
}

#[test]
fn texts_of_several_values_are_cut() {
    let cut = |text: &str| {
        let slices = values(text, Base::default());
        slices
            .iter()
            .map(|slice| format!("{}+{} {}", slice.base.lines, slice.base.columns, slice.text.trim()))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        cut("{\"a\": 1}{\"b\": 2} [3]\n\n{\n\"c\": \"}\"\n}\n"),
        ["0+0 {\"a\": 1}", "0+8 {\"b\": 2}", "0+17 [3]", "2+0 {\n\"c\": \"}\"\n}"]
    );
    assert_eq!(cut("{\"a\": [}\n{\"b\": 2}\n"), ["0+0 {\"a\": [}", "1+0 {\"b\": 2}"]);
    assert_eq!(
        cut("{\"a\": \"\n}\n{\"b\": 2}\nx\n{\"c\": 3}"),
        ["0+0 {\"a\": \"\n}", "2+0 {\"b\": 2}", "3+0 x", "4+0 {\"c\": 3}"]
    );
    assert_eq!(cut("  # comment\n---\n"), Vec::<String>::new());

    let slice = values("{\"kind\": \"List\", \"items\": [{\"a\": 1}, 2,\n {\"b\": []}], \"x\": 1}", Base::default());
    let (head, parts) = items(slice[0]).unwrap();
    assert_eq!(head.get("kind").and_then(|kind| kind.text()), Some("List"));
    let parts: Vec<_> = parts.iter().map(|part| (part.base.lines, part.base.columns, part.text)).collect();
    assert_eq!(parts, [(0, 27, "{\"a\": 1}"), (0, 37, "2"), (1, 1, "{\"b\": []}")]);
    assert!(items(values("{\"items\": {}}", Base::default())[0]).is_none());
    assert!(items(values("{\"items\": [1}", Base::default())[0]).is_none());
}

/// The fields that are left out of a text: their paths and values.
fn left_out(text: &str) -> Option<Vec<String>> {
    let (_, left_out) = lenient_tree(text, Base::default())?;
    let shown = |LeftOut { error, value }: &LeftOut<'_>| {
        format!("{} {}", error.field.as_ref().unwrap(), value.text().unwrap_or("-"))
    };
    Some(left_out.iter().map(shown).collect())
}

#[test]
fn of_keys_that_are_there_twice_the_last_one_counts() {
    for text in ["a: 1\na: 2\n", "{\"a\": 1, \"a\": 2}", "{a: 1, a: 2}"] {
        let (node, _) = lenient_tree(text, Base::default()).unwrap();
        assert_eq!(node.get("a").and_then(|node| node.text()), Some("2"), "{text}");
        assert_eq!(left_out(text).unwrap(), ["a 1"]);
        assert_eq!(read_lenient::<Json>(text), Ok(json!({"a": 2})));
    }
    for text in [
        "a: [{b: 1}, {b: 1, b: 2, c: 3, b: 4, c: 5}]",
        "{\"a\": [0, {\"b\": 1, \"b\": 2, \"c\": 3, \"b\": 4, \"c\": 5}]}",
    ] {
        assert_eq!(left_out(text).unwrap(), ["a[1].b 1", "a[1].b 2", "a[1].c 3"]);
    }
    assert_eq!(left_out("a: {<<: 7, b: 1}\nc: {<<: [{d: 1}, 8], d: 2}").unwrap(), ["a[\"<<\"] 7", "c[\"<<\"] 8"]);
    assert_eq!(left_out("a: &x {b: 1}\nc: {d: 1, d: *x}").unwrap(), ["c.d 1"]);
    // The paths of an alias are not known, and neither is the content of a text with broken syntax.
    for unclear in ["a: [", "a: &x {b: 1, b: 2}\nc: *x\n", "a: &x [{b: 1, b: 2}]\nc: {<<: *x}\n"] {
        assert_eq!(left_out(unclear), None, "{unclear}");
    }
    let many: String = (0..2_000).map(|_| "a: 1\n").collect();
    assert_eq!(left_out(&many), None);
    assert_eq!(read_lenient::<Json>(&many), read::<Json>(&many));
}
