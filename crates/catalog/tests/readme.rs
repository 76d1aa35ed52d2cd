//! The README's table of targets, held against the parser.

#![allow(clippy::unwrap_used, reason = "a test may")]

use catalog::Target;

#[test]
fn every_target_of_the_readme_is_one() {
    let readme = include_str!("../../../README.md");
    let (_, table) = readme.split_once("| `target=` | What it is |\n|---|---|\n").unwrap();
    let targets: Vec<&str> = table
        .lines()
        .map_while(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0))
        .collect();
    assert_eq!(targets, ["ram,size=SIZE", "ram,size=SIZE,block=4096"]);
    for target in targets {
        for size in ["4096", "8K", "8M", "8G", "8T"] {
            let text = target.replace("SIZE", size);
            assert!(Target::parse(&text).is_ok(), "{text}");
        }
    }
}
