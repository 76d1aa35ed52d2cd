//! The tables of `docs/protocol.md`, `docs/security.md` and `docs/reliability.md`, held against the code.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    let file = root().join(path);
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

type Row = Vec<String>;

/// The tables of a document, as cells: each one's heading and its rows.
fn tables(document: &str) -> Vec<(Row, Vec<Row>)> {
    let text = read(document);
    let mut tables: Vec<(Row, Vec<Row>)> = Vec::new();
    let mut within = false;
    for line in text.lines() {
        let cells = line.strip_prefix("| ").and_then(|line| line.strip_suffix(" |"));
        let row =
            cells.map(|cells| cells.split(" | ").map(|cell| cell.trim().to_owned()).collect());
        match (row, within) {
            (Some(row), true) => tables.last_mut().unwrap().1.push(row),
            (Some(heading), false) => tables.push((heading, Vec::new())),
            // The rule below a heading.
            (None, true) if line.starts_with("|---") => continue,
            (None, _) => {}
        }
        within = line.starts_with('|');
    }
    tables
}

/// The rows of all tables of a document.
fn rows(document: &str) -> Vec<Row> {
    tables(document).into_iter().flat_map(|(_, rows)| rows).collect()
}

/// Whether a test of that name stands in a file: Rust's, or a scenario of the nested lab.
fn has_test(path: &str, source: &str, name: &str) -> bool {
    let (signature, attribute) = match path.rsplit_once('.') {
        Some((_, "py")) => (format!("\ndef {name}(lab: Lab):"), "@scenario("),
        _ => (format!("\nfn {name}() {{"), "#[test]"),
    };
    let before = source.find(&signature).and_then(|at| source[..at].lines().last());
    before.is_some_and(|line| line.starts_with(attribute))
}

/// Checks that a cell is a list of ``[file](path) `test` `` and that each is a test of its file.
fn assert_proofs(row: &[String]) {
    let cell = row.last().unwrap();
    for proof in cell.split(", ") {
        let parsed = (|| {
            let (path, name) = proof.split_once("](../")?.1.split_once(") `")?;
            Some((path, name.strip_suffix('`')?))
        })();
        let (path, name) = parsed.unwrap_or_else(|| panic!("`{}`: no test in {proof:?}", row[0]));
        assert!(has_test(path, &read(path), name), "`{}`: {path} has no test {name}", row[0]);
    }
}

/// What stands in the first cells in code quotes.
fn names(rows: &[Row]) -> BTreeSet<String> {
    let name = |row: &Row| {
        Some(row[0].strip_prefix('`')?.strip_suffix('`')?.to_owned()).filter(|n| !n.contains('`'))
    };
    rows.iter().filter_map(name).collect()
}

/// What stands between `before` and `after` in each line that has both.
fn quoted(source: &str, before: &str, after: &str) -> BTreeSet<String> {
    let find = |line: &str| Some(line.split_once(before)?.1.split_once(after)?.0.to_owned());
    source.lines().filter_map(find).collect()
}

#[test]
fn the_protocols_tables_have_every_key_and_operation_with_a_proof() {
    let rows = rows("docs/protocol.md");
    for row in &rows {
        assert_eq!(row.len(), 6, "{row:?}");
        assert!(row.iter().all(|cell| !cell.is_empty()), "{row:?}");
        assert_proofs(row);
    }
    let source = read("crates/blkif/src/keys.rs");
    let mut expected = quoted(&source, ": &str = \"", "\";");
    assert!(expected.len() > 25, "{expected:?}");
    // The numbered ones are types.
    for (name, line) in [("ring-ref%u", "pub struct RingRef("), ("queue-%u", "pub struct Queue(")] {
        assert!(source.contains(line));
        expected.insert(name.into());
    }
    assert_eq!(source.matches("pub struct").count(), 3, "those two, and the bits of `info`");
    let codes = quoted(&read("crates/blkif/src/request.rs"), "doc(alias = \"BLKIF_OP_", "\"");
    assert_eq!(codes.len(), 6, "{codes:?}");
    expected.extend(codes.iter().map(|code| format!("BLKIF_OP_{code}")));
    expected.insert("BLKIF_DISCARD_SECURE".into());
    assert_eq!(names(&rows), expected);
}

#[test]
fn the_security_record_has_its_tests() {
    let rows = rows("docs/security.md");
    for row in &rows {
        assert_eq!(row.len(), 3, "{row:?}");
        assert_proofs(row);
    }
    // Every test of the record is in the table, and every entry has a test with its number.
    let text = read("docs/security.md");
    let tests = quoted(&read("crates/sim/tests/security.rs"), "fn ", "() {");
    let unnamed: Vec<_> = tests
        .iter()
        .filter(|name| !name.contains(' ') && name.as_str() != "new")
        .filter(|name| !text.contains(&format!("`{name}`")))
        .collect();
    assert_eq!(unnamed, Vec::<&String>::new(), "tests that the table does not name");
    for entry in ["155", "216", "2013_2140", "71", "371", "300", "332", "349", "350", "361", "362"]
        .into_iter()
        .chain(["365", "376", "391", "396", "403"])
    {
        let named = |name: &&String| name.split('_').any(|part| part == entry);
        let named = tests.iter().any(|name| named(&name) || name.contains(entry));
        assert!(named, "no test is named after {entry}");
    }
}

#[test]
fn what_is_promised_has_its_tests() {
    let mut nr_proven = 0;
    for (heading, rows) in tables("docs/reliability.md") {
        for row in rows.iter().filter(|_| heading.last().unwrap() == "Tests") {
            assert_eq!(row.len(), heading.len(), "{row:?}");
            assert_proofs(row);
            nr_proven += 1;
        }
    }
    assert!(nr_proven > 20, "{nr_proven}");
}
