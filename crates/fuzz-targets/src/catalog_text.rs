//! Text of the toolstack: a disk's `target=`, the command line, control requests.

use catalog::{
    Access, Ask, Command, ControlRequest, Defined, Definition, DiskType, Error, GrantUse, Ground,
    Handover, ImageFormat, Name, Overlay, Served, Settings, Target, Upstream, definitions,
};

pub fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    check_target(&text);
    check_settings(&text);
    check_definitions(&text);
    check_request(&text);
}

/// An option's text, nothing if it was not given.
fn option<T>(key: &str, value: Option<T>) -> String
where
    T: ToString,
{
    value.map(|value| format!(",{key}={}", value.to_string())).unwrap_or_default()
}

/// A disk as the grammar's simplest text of it.
fn print_disk(disk: &DiskType<'_>) -> String {
    match disk {
        DiskType::Ram { size_bytes, cap_bytes, block_bytes } => {
            format!("ram,size={size_bytes},cap={cap_bytes},block={block_bytes}")
        }
        DiskType::Null { size_bytes, block_bytes } => {
            format!("null,size={size_bytes},block={block_bytes}")
        }
        DiskType::Overlay(Overlay { image, cap_bytes }) => {
            format!("{image},cow{}", option("cap", *cap_bytes))
        }
        DiskType::Vbd(Upstream { device, slice, cow }) => {
            let size = option("size", slice.size_bytes);
            let cap = option("cap", cow.and_then(|cow| cow.cap_bytes));
            let cow = if cow.is_some() { ",cow" } else { "" };
            format!("vbd/{device},offset={}{size}{cow}{cap}", slice.offset_bytes)
        }
    }
}

fn print_target(target: &Target<'_>) -> String {
    let disk = match &target.served {
        Served::Private(disk) => print_disk(disk),
        Served::Named { name, overlay: None } => name.to_string(),
        Served::Named { name, overlay: Some(Overlay { image, cap_bytes }) } => {
            format!("{image},cow={name}{}", option("cap", *cap_bytes))
        }
    };
    let access = match target.access {
        Access::ReadOnly => ",ro",
        Access::ReadWrite => "",
    };
    let handover = match target.handover {
        Handover::Waits => ",handover",
        Handover::Refused => "",
    };
    let grants = match target.grants {
        GrantUse::Persistent => "",
        GrantUse::Copy => ",grants=copy",
    };
    format!("{disk}{access}{grants}{handover}")
}

fn print_definition(Definition { name, defined }: &Definition<'_>) -> String {
    match defined {
        Defined::Disk(disk) => format!("disk={name},{}", print_disk(disk)),
        Defined::Image { module, file, format } => {
            let format = format.map(|format| match format {
                ImageFormat::Raw => "raw",
                ImageFormat::Vhd => "vhd",
                ImageFormat::Qcow2 => "qcow2",
            });
            let (file, format) = (option("file", *file), option("format", format));
            format!("disk={name},module={module}{file}{format}")
        }
    }
}

fn print_ask(ask: &Ask<'_>) -> String {
    match ask {
        Ask::Part(part) => format!("part {part}"),
        Ask::Run(Command::List) => "list".to_string(),
        Ask::Run(Command::Stats) => "stats".to_string(),
        Ask::Run(Command::Create { name, disk }) => format!("create {name} {}", print_disk(disk)),
        Ask::Run(Command::Remove(name)) => format!("remove {name}"),
        Ask::Run(Command::Resize { name, size_bytes }) => format!("resize {name} {size_bytes}"),
        Ask::Run(Command::Snapshot { name, to }) => format!("snapshot {name} {to}"),
        Ask::Run(Command::Clone { name, to }) => format!("clone {name} {to}"),
        Ask::Run(Command::DiscardAll(name)) => format!("discard-all {name}"),
    }
}

fn check_name(name: Name<'_>) {
    assert!((1..=Name::MAX_LEN).contains(&name.as_str().len()), "{name}");
    assert!(!["ram", "null", "vbd", "nvme"].contains(&name.as_str()), "{name}");
    assert!(!name.as_str().contains(|c: char| !c.is_ascii_graphic() || ",=/:`".contains(c)));
    assert_eq!(Name::parse(name.as_str()), Ok(name));
}

fn check_disk(disk: &DiskType<'_>) {
    match *disk {
        DiskType::Ram { size_bytes, cap_bytes, block_bytes } => {
            check_capacity(size_bytes, block_bytes);
            check_capacity(cap_bytes, 512);
        }
        DiskType::Null { size_bytes, block_bytes } => check_capacity(size_bytes, block_bytes),
        DiskType::Overlay(overlay) => check_overlay(overlay),
        DiskType::Vbd(Upstream { device, slice, cow }) => {
            if let Ground::Vbd(device) = device {
                assert!(device.number() <= u32::MAX >> 1);
            }
            assert!(slice.offset_bytes.is_multiple_of(512));
            check_capacity(slice.size_bytes.unwrap_or(512), 512);
            check_capacity(cow.and_then(|cow| cow.cap_bytes).unwrap_or(512), 512);
        }
    }
}

fn check_overlay(Overlay { image, cap_bytes }: Overlay<'_>) {
    check_name(image);
    check_capacity(cap_bytes.unwrap_or(512), 512);
}

fn check_capacity(size_bytes: u64, block_bytes: u32) {
    assert!([512, 4096].contains(&block_bytes));
    assert!(size_bytes > 0 && size_bytes.is_multiple_of(block_bytes.into()));
}

fn check_target(text: &str) {
    let parsed = Target::parse(text);
    // Blanks around a word do not count.
    let spaced: Vec<&str> = text.split(',').map(str::trim_ascii).collect();
    let spaced = format!(" {} ", spaced.join(" ,\t"));
    match parsed {
        Ok(target) => {
            let printed = print_target(&target);
            assert_eq!(Target::parse(&printed), Ok(target), "{printed}");
            assert_eq!(Target::parse(&spaced), Ok(target));
            match target.served {
                Served::Private(disk) => {
                    check_disk(&disk);
                    assert_eq!(target.handover, Handover::Refused);
                }
                Served::Named { name, overlay } => {
                    check_name(name);
                    overlay.into_iter().for_each(check_overlay);
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

fn check_definitions(text: &str) {
    for definition in definitions(text) {
        match definition {
            Ok(definition) => {
                check_name(definition.name);
                if let Defined::Disk(disk) = &definition.defined {
                    check_disk(disk);
                }
                let printed = print_definition(&definition);
                let again: Vec<_> = definitions(&printed).collect();
                assert_eq!(again, [Ok(definition)], "{printed}");
                Settings::parse(&printed, |error| panic!("{error} in {printed}"));
            }
            Err(error) => check_error(text, &error),
        }
    }
}

fn check_request(text: &str) {
    match ControlRequest::parse(text) {
        Ok(request) => match request.ask {
            Ok(ask) => {
                let printed = format!("{} {}", request.id, print_ask(&ask));
                assert_eq!(ControlRequest::parse(&printed), Ok(request), "{printed}");
            }
            Err(error) => check_error(text, &error),
        },
        Err(error) => check_error(text, &error),
    }
}

fn check_settings(text: &str) {
    let mut refused = Vec::new();
    let settings = Settings::parse(text, |error| {
        check_error(text, &error);
        refused.push(error.word);
    });
    assert!(settings.settle.as_millis() <= 10_000);
    assert!(settings.drain.as_secs() <= 3600);
    assert!(settings.max_indirect_segments <= 4096);
    assert!(settings.max_ring_order <= 5);
    assert!((1..=16).contains(&settings.max_queues));
    assert!(settings.nr_upstream_pages.is_none_or(|nr| (32..=4096).contains(&nr)));

    // A refused word changes nothing: without them all is as before.
    let words = text.split_ascii_whitespace();
    let good: Vec<&str> = words.filter(|word| !refused.contains(word)).collect();
    let said = Settings::parse(&good.join(" "), |error| panic!("{error} the second time only"));
    assert_eq!(said, settings);

    let printed = format!(
        "settle-ms={} drain-s={} indirect={} ring-order={} queues={} persistent={}",
        settings.settle.as_millis(),
        settings.drain.as_secs(),
        settings.max_indirect_segments,
        settings.max_ring_order,
        settings.max_queues,
        settings.max_persistent
    );
    let pages = settings.nr_upstream_pages.map(|nr| format!(" vbd-pages={nr}"));
    let printed = printed + &pages.unwrap_or_default();
    let again = Settings::parse(&printed, |error| panic!("{error} in what was printed"));
    assert_eq!(again, settings, "printed and parsed again");
}

/// An error's word is one of the text, and the sentence names it.
fn check_error(text: &str, error: &Error<'_>) {
    let (start, word) = (text.as_ptr().addr(), error.word.as_ptr().addr());
    assert!(word >= start && word + error.word.len() <= start + text.len(), "{error}");
    assert!(error.to_string().starts_with(&format!("`{}`: ", error.word)));
}
