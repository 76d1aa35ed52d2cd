//! The PV console's rings (`struct xencons_interface`, `io/console.h`).

use core::fmt::{self, Write};

use xen_abi::SharedMemory;

const IN_BYTES: usize = 1024;
const OUT: usize = IN_BYTES;
const OUT_BYTES: u32 = 2048;
const IN_CONS: usize = 3072;
const IN_PROD: usize = 3076;
const OUT_CONS: usize = 3080;
const OUT_PROD: usize = 3084;

/// Room for the note about what was lost.
const NOTE_BYTES: u32 = 48;

/// Our end of the console's page. Never waits: what finds no room is lost and counted.
#[derive(Debug)]
pub(crate) struct ConsoleRing<M> {
    page: M,
    /// Our own `out_prod`: the page's copy is never read back.
    out_prod: u32,
    lost_bytes: u64,
}

impl<M: SharedMemory> ConsoleRing<M> {
    /// Goes on where the page's indices stand.
    pub(crate) fn new(page: M) -> Self {
        let out_prod = page.load_u32(OUT_PROD);
        Self { page, out_prod, lost_bytes: 0 }
    }

    /// Writes a line, as much of it as there is room for. Ends it as a terminal wants it, and
    /// writes whatever is not printable ASCII as `?`: a line may quote what a guest wrote.
    pub(crate) fn line(&mut self, line: fmt::Arguments<'_>) {
        let used = self.out_prod.wrapping_sub(self.page.load_u32(OUT_CONS));
        // An index that cannot be is no room.
        let room = OUT_BYTES.saturating_sub(used);
        let mut writer = Writer { ring: self, room };
        if writer.ring.lost_bytes > 0 && writer.room > NOTE_BYTES {
            let lost_bytes = core::mem::take(&mut writer.ring.lost_bytes);
            let _ = write!(writer, "\n[{lost_bytes} bytes lost]\n");
        } else if writer.ring.lost_bytes > 0 {
            writer.room = 0;
        }
        // The writer never fails; a `Display` that does ends its line there.
        let _ = writeln!(writer, "{line}");
        let out_prod = self.out_prod;
        self.page.store_u32(OUT_PROD, out_prod);
    }

    /// Throws away what was typed.
    pub(crate) fn drain_input(&mut self) {
        self.page.store_u32(IN_CONS, self.page.load_u32(IN_PROD));
    }

    /// Whether all output was taken.
    pub(crate) fn is_drained(&self) -> bool {
        self.page.load_u32(OUT_CONS) == self.out_prod
    }
}

struct Writer<'a, M> {
    ring: &'a mut ConsoleRing<M>,
    room: u32,
}

impl<M: SharedMemory> Writer<'_, M> {
    fn put(&mut self, byte: u8) {
        if self.room == 0 {
            self.ring.lost_bytes += 1;
            return;
        }
        self.room -= 1;
        let offset = (self.ring.out_prod % OUT_BYTES) as usize;
        self.ring.page.write(OUT + offset, &[byte]);
        self.ring.out_prod = self.ring.out_prod.wrapping_add(1);
    }
}

impl<M: SharedMemory> Write for Writer<'_, M> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            match byte {
                b'\n' => {
                    self.put(b'\r');
                    self.put(b'\n');
                }
                b' '..=b'~' => self.put(byte),
                _ => self.put(b'?'),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::string::String;
    use std::vec::Vec;

    use super::{ConsoleRing, IN_CONS, IN_PROD, OUT, OUT_BYTES, OUT_CONS, OUT_PROD};
    use xen_abi::SharedMemory;

    struct Page(RefCell<Vec<u8>>);

    impl SharedMemory for Page {
        fn len_bytes(&self) -> usize {
            self.0.borrow().len()
        }

        fn load_u32(&self, offset: usize) -> u32 {
            let mut bytes = [0; 4];
            self.read(offset, &mut bytes);
            u32::from_le_bytes(bytes)
        }

        fn store_u32(&self, offset: usize, value: u32) {
            self.write(offset, &value.to_le_bytes());
        }

        fn read(&self, offset: usize, into: &mut [u8]) {
            into.copy_from_slice(&self.0.borrow()[offset..offset + into.len()]);
        }

        fn write(&self, offset: usize, from: &[u8]) {
            self.0.borrow_mut()[offset..offset + from.len()].copy_from_slice(from);
        }
    }

    fn page() -> Page {
        Page(RefCell::new(vec![0; 4096]))
    }

    /// Takes all output, as the console daemon does.
    fn take(page: &Page) -> String {
        let mut text = Vec::new();
        let (cons, prod) = (page.load_u32(OUT_CONS), page.load_u32(OUT_PROD));
        for at in 0..prod.wrapping_sub(cons) {
            let mut byte = [0];
            let offset = cons.wrapping_add(at) % OUT_BYTES;
            page.read(OUT + offset as usize, &mut byte);
            text.push(byte[0]);
        }
        page.store_u32(OUT_CONS, prod);
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn lines_end_as_a_terminal_wants_them_and_hold_no_escapes() {
        let page = page();
        let mut ring = ConsoleRing::new(&page);
        ring.line(format_args!("vbd {}: \x1b[2J é\tx", 7));
        assert!(!ring.is_drained());
        assert_eq!(take(&page), "vbd 7: ?[2J ???x\r\n");
        assert!(ring.is_drained());
    }

    #[test]
    fn the_ring_wraps_and_so_do_its_indices() {
        let page = page();
        page.store_u32(OUT_CONS, u32::MAX - 2);
        page.store_u32(OUT_PROD, u32::MAX - 2);
        let mut ring = ConsoleRing::new(&page);
        for number in 0..1000 {
            ring.line(format_args!("line {number}"));
            assert_eq!(take(&page), format!("line {number}\r\n"));
        }
    }

    #[test]
    fn what_finds_no_room_is_counted_and_told_when_there_is_room() {
        let page = page();
        let mut ring = ConsoleRing::new(&page);
        let long = "x".repeat(2000);
        ring.line(format_args!("{long}"));
        ring.line(format_args!("{long}"));
        ring.line(format_args!("more"));
        let text = take(&page);
        assert_eq!(text.len(), 2048);
        ring.line(format_args!("again"));
        // 2 × 2002 + 6 bytes were written, 2048 found room.
        assert_eq!(take(&page), "\r\n[1962 bytes lost]\r\nagain\r\n");
        ring.line(format_args!("fine"));
        assert_eq!(take(&page), "fine\r\n");
    }

    #[test]
    fn a_ring_that_nobody_reads_holds_the_first_lines_and_takes_all_others_at_no_cost() {
        let page = page();
        let mut ring = ConsoleRing::new(&page);
        let lines: Vec<String> = (0..100_000).map(|n| format!("vbd 7/51712: line {n}")).collect();
        let mut nr_bytes = 0;
        for line in &lines {
            ring.line(format_args!("{line}"));
            nr_bytes += line.len() + 2;
            assert!(page.load_u32(OUT_PROD) <= OUT_BYTES, "past what was read");
        }
        assert_eq!(ring.lost_bytes, nr_bytes as u64 - u64::from(OUT_BYTES));
        let lost = ring.lost_bytes;
        let text = take(&page);
        assert_eq!(text, (lines.join("\r\n") + "\r\n")[..OUT_BYTES as usize]);
        ring.line(format_args!("read again"));
        assert_eq!(take(&page), format!("\r\n[{lost} bytes lost]\r\nread again\r\n"));
        assert_eq!(ring.lost_bytes, 0);
    }

    #[test]
    fn of_a_ring_that_is_read_now_and_then_every_byte_is_seen_or_said_to_be_lost() {
        let page = page();
        let mut ring = ConsoleRing::new(&page);
        let (mut nr_written, mut text) = (0, String::new());
        for n in 0..5_000 {
            let line = format!("line {n} of some length");
            ring.line(format_args!("{line}"));
            nr_written += line.len() + 2;
            if n % 150 == 0 {
                text += &take(&page);
            }
        }
        text += &take(&page);
        ring.line(format_args!(""));
        text += &take(&page);
        nr_written += 2;
        let (mut nr_lost, mut nr_notes) = (0, 0);
        for note in text.split("\r\n[").skip(1) {
            let (count, _) = note.split_once(" bytes lost]\r\n").unwrap();
            nr_lost += count.parse::<usize>().unwrap();
            nr_notes += "\r\n[ bytes lost]\r\n".len() + count.len();
        }
        assert!(nr_lost > 50_000, "{nr_lost}");
        assert_eq!(text.len() - nr_notes + nr_lost, nr_written);
    }

    #[test]
    fn an_index_that_cannot_be_is_a_full_ring() {
        let page = page();
        let mut ring = ConsoleRing::new(&page);
        page.store_u32(OUT_CONS, 1);
        ring.line(format_args!("lost"));
        assert_eq!(page.load_u32(OUT_PROD), 0);
        page.store_u32(OUT_CONS, 0);
        ring.line(format_args!("seen"));
        assert_eq!(take(&page), "\r\n[6 bytes lost]\r\nseen\r\n");
    }

    #[test]
    fn input_is_thrown_away() {
        let page = page();
        page.store_u32(IN_PROD, 77);
        ConsoleRing::new(&page).drain_input();
        assert_eq!(page.load_u32(IN_CONS), 77);
    }
}
