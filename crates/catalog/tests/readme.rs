//! The README's tables of what can be asked for, held against the parser.

#![allow(clippy::unwrap_used, reason = "a test may")]

use catalog::{Target, definitions};

/// What the first column of the table with this head says, as somebody would write it: without any
/// of what stands in brackets, with each of it, and with all.
fn texts(head: &str) -> Vec<Vec<String>> {
    let readme = include_str!("../../../README.md");
    let (_, table) = readme.split_once(&format!("| {head} | What it is |\n|---|---|\n")).unwrap();
    let rows = table.lines().map_while(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0));
    rows.map(|row| {
        let row = row.replace("SIZE", "8M").replace("IMAGE", "gold").replace("NAME", "fork");
        let (bare, options) = row.split_once('[').unwrap_or((&row, ""));
        let options = options.split(['[', ']']).filter(|option| !option.is_empty());
        let mut texts = vec![bare.to_string()];
        texts.extend(options.clone().map(|option| format!("{bare}{option}")));
        texts.push(options.fold(bare.to_string(), |text, option| text + option));
        texts
    })
    .collect()
}

#[test]
fn every_target_of_the_readme_is_one() {
    let rows = texts("`target=`");
    assert_eq!(rows.len(), 9);
    assert_eq!(rows[0][1], "ram,size=8M,cap=8M");
    for text in rows.iter().flatten() {
        assert!(Target::parse(text).is_ok(), "{text}");
    }
}

#[test]
fn every_definition_of_the_readme_is_one() {
    let rows = texts("`disk=` on the command line");
    assert_eq!(rows.len(), 8);
    for text in rows.iter().flatten() {
        let all: Vec<_> = definitions(text).collect();
        assert!(matches!(all[..], [Ok(_)]), "{text}: {all:?}");
    }
}
