"""Tests of the host half that need no emulator."""

import io
import lzma
import os
import struct
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from ..host import cpio, elf
from ..host.faults import emulator_fault

XENS_STATE = """\
(XEN) d6v0 Triple fault - invoking HVM shutdown action 1
(XEN) *** Dumping Dom6 vcpu#0 state: ***
(XEN) ----[ Xen-4.17.7  x86_64  debug=n  Not tainted ]----
(XEN) CPU:    0
(XEN) RIP:    e008:[<ffff82d0402044a5>]
(XEN) RFLAGS: 0000000000000246   CONTEXT: hvm guest (d6v0)
"""
EVENT_VECTOR = """\
[    1.000000]  asm_sysvec_xen_hvm_callback+0x16/0x20
[    1.000000] RIP: 0010:default_idle+0x10/0x20
[    1.000000] Code: 00 00
[    1.000000] RSP: 0018:ffffc90000003e48 EFLAGS: {flags}
"""


class EmulatorFault(unittest.TestCase):
    def test_a_guest_with_xens_own_state(self):
        self.assertEqual(emulator_fault(XENS_STATE), "a guest's triple fault with Xen's own state")

    def test_a_triple_fault_of_a_guests_own_is_ours(self):
        own = XENS_STATE.replace("e008:[<ffff82d0402044a5>]", "0010:[<ffffffff81a43c83>]")
        self.assertIsNone(emulator_fault(own))

    def test_event_vector_with_interrupts_off(self):
        log = EVENT_VECTOR.format(flags="00000046")
        self.assertEqual(emulator_fault(log), "a Linux guest took its event vector with interrupts off")

    def test_event_vector_with_interrupts_on_is_ours(self):
        self.assertIsNone(emulator_fault(EVENT_VECTOR.format(flags="00000246")))


class Cpio(unittest.TestCase):
    def test_an_archive_in_bytes(self):
        out = io.BytesIO()
        archive = cpio.Archive(out)
        archive.file("a/b", b"hello", 0o755)
        archive.close()
        directory = b"070701" + b"00000001" + b"000041ED" + b"00000000" * 2 + b"00000001" + b"00000000" * 6 + b"00000002" + b"00000000" + b"a\0"
        self.assertEqual(out.getvalue()[:112], directory)
        self.assertEqual(out.getvalue()[112:118], b"070701")
        self.assertEqual(out.getvalue()[112 + 110 : 112 + 114], b"a/b\0")
        self.assertEqual(out.getvalue()[228:236], b"hello\0\0\0")
        self.assertEqual(len(out.getvalue()) % cpio.ALIGN, 0)

    def test_an_empty_directory_exists(self):
        out = io.BytesIO()
        archive = cpio.Archive(out)
        archive.directory("proc")
        archive.close()
        self.assertIn(b"proc\0", out.getvalue())


    def test_a_folder_has_the_same_members_as_files(self):
        with tempfile.TemporaryDirectory() as directory:
            folder = cpio.Folder(Path(directory))
            folder.console()
            folder.file("bin/busybox", b"busybox", 0o755)
            folder.link("bin/poweroff", "busybox")
            folder.file("bin/poweroff", b"ours", 0o755)
            folder.directory("proc")
            folder.close()
            found = {str(path.relative_to(directory)) for path in Path(directory).rglob("*")}
            self.assertEqual(found, {"bin", "bin/busybox", "bin/poweroff", "proc"})
            # What replaces a link leaves alone what that named.
            self.assertEqual((Path(directory) / "bin/busybox").read_bytes(), b"busybox")
            self.assertEqual((Path(directory) / "bin/poweroff").stat().st_mode & 0o777, 0o755)


class Elf(unittest.TestCase):
    def test_module_depends(self):
        self.assertEqual(elf.module_depends(b"x\0depends=jbd2,mbcache\0y"), ["jbd2", "mbcache"])
        self.assertEqual(elf.module_depends(b"x\0depends=\0y"), [])

    def test_needed_of_a_script_is_nothing(self):
        with tempfile.TemporaryDirectory() as directory:
            script = Path(directory) / "script"
            script.write_text("#!/bin/sh\n")
            self.assertEqual(elf.needed(script), [])

    def test_needed_of_a_program(self):
        self.assertIn("libc.so.6", elf.needed(Path("/bin/ls")))

    def test_vmlinux_refuses_what_is_no_kernel(self):
        with self.assertRaisesRegex(ValueError, "not a bzImage"):
            elf.vmlinux(struct.pack("1024x"))

    def test_vmlinux_unpacks_xz_and_zstd(self):
        kernel = b"\x7fELF" + bytes(5000)
        zstd = subprocess.run(["zstd", "-c"], input=kernel, stdout=subprocess.PIPE, check=True).stdout
        for packed in (lzma.compress(kernel), zstd):
            self.assertEqual(elf.vmlinux(self.bzimage(packed)), kernel)

    def test_vmlinux_refuses_another_compression(self):
        with self.assertRaisesRegex(ValueError, "compressed with neither xz nor zstd"):
            elf.vmlinux(self.bzimage(b"\x1f\x8b" + bytes(100)))

    def bzimage(self, packed: bytes) -> bytes:
        """One setup sector, and a payload that ends in four bytes of its size, 16 bytes into the rest."""
        header = bytearray(1024)
        header[0x1F1] = 1
        struct.pack_into("<4s", header, 0x202, b"HdrS")
        struct.pack_into("<II", header, 0x248, 16, len(packed) + 4)
        return bytes(header) + bytes(16) + packed + bytes(4) + b"what follows it"

    def test_a_module_out_of_its_file(self):
        self.assertEqual(elf.unpacked_module(b"\x7fELF module"), b"\x7fELF module")
        self.assertEqual(elf.unpacked_module(lzma.compress(b"\x7fELF module")), b"\x7fELF module")


class Suites(unittest.TestCase):
    def nested(self, suite: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "nested", "--list", "--only", "lab.*"]
        return subprocess.run(command, env=os.environ | {"XEN_SUITE": suite}, capture_output=True, text=True, check=False)

    def test_the_environment_names_one(self):
        self.assertEqual(self.nested("trixie").returncode, 0)

    def test_one_that_there_is_not(self):
        refused = self.nested("slink")
        self.assertEqual(refused.returncode, 2)
        self.assertIn("no suite is called 'slink' (--suite or XEN_SUITE): there are bookworm, trixie", refused.stderr)


if __name__ == "__main__":
    unittest.main()
