//! Text of the toolstack: a disk's `target=` and the command line.

use catalog::{Error, Settings, Target};

pub fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    check_target(&text);
    check_settings(&text);
}

/// A target as the grammar's simplest text of it.
fn print(target: &Target) -> String {
    match target {
        Target::Ram { size_bytes, block_bytes } => {
            format!("ram,size={size_bytes},block={block_bytes}")
        }
    }
}

fn check_target(text: &str) {
    let parsed = Target::parse(text);
    // Blanks around a word do not count.
    let spaced: Vec<&str> = text.split(',').map(str::trim).collect();
    let spaced = format!(" {} ", spaced.join(" ,\t"));
    match parsed {
        Ok(target) => {
            assert_eq!(Target::parse(&print(&target)), Ok(target), "printed and parsed again");
            assert_eq!(Target::parse(&spaced), Ok(target));
            match target {
                Target::Ram { size_bytes, block_bytes } => {
                    assert!([512, 4096].contains(&block_bytes));
                    assert!(size_bytes > 0 && size_bytes.is_multiple_of(block_bytes.into()));
                }
            }
        }
        Err(error) => {
            check_error(text, &error);
            assert!(!error.word.contains(','), "{error}");
            assert_eq!(Target::parse(&spaced), Err(error));
        }
    }
}

fn check_settings(text: &str) {
    let mut refused = Vec::new();
    let settings = Settings::parse(text, |error| {
        check_error(text, &error);
        refused.push(error.word);
    });
    assert!(settings.settle.as_millis() <= 10_000);
    assert!(settings.max_indirect_segments <= 4096);
    assert!(settings.max_ring_order <= 5);
    assert!((1..=16).contains(&settings.max_queues));

    // A refused word changes nothing: without them all is as before.
    let words = text.split_ascii_whitespace();
    let good: Vec<&str> = words.filter(|word| !refused.contains(word)).collect();
    let said = Settings::parse(&good.join(" "), |error| panic!("{error} the second time only"));
    assert_eq!(said, settings);

    let printed = format!(
        "settle-ms={} indirect={} ring-order={} queues={} persistent={}",
        settings.settle.as_millis(),
        settings.max_indirect_segments,
        settings.max_ring_order,
        settings.max_queues,
        settings.max_persistent
    );
    let again = Settings::parse(&printed, |error| panic!("{error} in what was printed"));
    assert_eq!(again, settings, "printed and parsed again");
}

/// An error's word is one of the text, and the sentence names it.
fn check_error(text: &str, error: &Error<'_>) {
    let (start, word) = (text.as_ptr().addr(), error.word.as_ptr().addr());
    assert!(word >= start && word + error.word.len() <= start + text.len(), "{error}");
    assert!(error.to_string().starts_with(&format!("`{}`: ", error.word)));
}
