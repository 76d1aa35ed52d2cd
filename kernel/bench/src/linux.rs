//! As much of a Linux program as it takes: the entry, output, the end, and memory.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::fmt::{self, Write};
use core::panic::PanicInfo;

use xen_abi::{Gfn, PAGE_SIZE};

use crate::{copy, heap};

global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "and rsp, -16",
    "call {main}",
    "ud2",
    main = sym main,
);

/// Frames that the bench has in place of the domain's memory and the guest's.
pub(crate) const NR_FRAMES: u64 = FRAMES_BYTES as u64 / PAGE_SIZE as u64;

const FRAMES_BYTES: usize = 64 << 20;

const HEAP_BYTES: usize = 4 << 20;

#[repr(C, align(4096))]
struct Memory<const LEN_BYTES: usize>(UnsafeCell<[u8; LEN_BYTES]>);

impl<const LEN_BYTES: usize> Memory<LEN_BYTES> {
    const fn zeroed() -> Self {
        Self(UnsafeCell::new([0; LEN_BYTES]))
    }
}

// SAFETY: there is one thread, and the bytes are only ever reached by their address.
unsafe impl<const LEN_BYTES: usize> Sync for Memory<LEN_BYTES> {}

static FRAMES: Memory<FRAMES_BYTES> = Memory::zeroed();
static HEAP: Memory<HEAP_BYTES> = Memory::zeroed();

/// The first of the [`NR_FRAMES`] frames. Their addresses are their numbers' as in the image.
pub(crate) fn first_frame() -> Gfn {
    Gfn((FRAMES.0.get().expose_provenance() / PAGE_SIZE) as u64)
}

extern "C" fn main() -> ! {
    // SAFETY: called once; nothing else uses this memory.
    unsafe { heap::init(HEAP.0.get().cast(), HEAP_BYTES) };
    // As it is where CPUID says nothing of fast string instructions: this CPU must not matter.
    copy::Routine::Sse.choose();
    crate::cases::run();
    exit(0)
}

struct Stdout;

impl Write for Stdout {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        const WRITE: u64 = 1;
        // SAFETY: reads the text and no more. Linux leaves all other registers.
        unsafe {
            asm!(
                "syscall",
                inout("rax") WRITE => _,
                in("rdi") 1u64,
                in("rsi") text.as_ptr(),
                in("rdx") text.len(),
                out("rcx") _,
                out("r11") _,
                options(nostack, readonly),
            );
        }
        Ok(())
    }
}

/// Prints a line.
pub(crate) fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(Stdout, "{line}");
}

fn exit(code: u64) -> ! {
    const EXIT_GROUP: u64 = 231;
    // SAFETY: ends the process.
    unsafe { asm!("syscall", in("rax") EXIT_GROUP, in("rdi") code, options(noreturn, nostack)) }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    say(format_args!("{info}"));
    exit(1)
}
