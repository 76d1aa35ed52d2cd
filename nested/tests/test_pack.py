"""Tests of scripts/pack."""

import contextlib
import io
import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from .scripts import load

pack = load("pack")


def members(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Where each member's data begins, and the data, read as the format says."""
    found, at = {}, 0
    while True:
        assert archive[at : at + 6] == b"070701", f"no header at {at}"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        size, name_len = fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_len]
        assert name.endswith(b"\0"), name
        name = name[: name.index(0)].decode()
        at = -(-(at + 110 + name_len) // 4) * 4
        if name == "TRAILER!!!":
            assert not any(archive[at:])
            return found
        found[name] = (at, archive[at : at + size])
        at = -(-(at + size) // 4) * 4


class Pack(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.out = self.directory / "out.cpio"

    def image(self, name: str, data: bytes) -> Path:
        path = self.directory / name
        path.write_bytes(data)
        return path

    def run_pack(self, *arguments: object) -> tuple[int, str]:
        """Exit code and what was said."""
        with contextlib.redirect_stderr(io.StringIO()) as said:
            code = pack.main([str(argument) for argument in arguments])
        return code, said.getvalue().removeprefix("pack: ").rstrip("\n")

    def refused(self, *arguments: object) -> str:
        code, said = self.run_pack(*arguments)
        self.assertEqual(code, 1)
        self.assertEqual(list(self.directory.glob("*.part")), [])
        return said

    def test_every_image_is_there_and_aligned(self):
        # Ends of images at any place in a page, and so headers that fit before the next or do not.
        images = {f"i{size}": os.urandom(size) for size in (1, 512, 3840, 3841, 3988, 3990, 4090, 4096, 70000)}
        images["x" * 40] = b"last"
        files = [self.image(name, data) for name, data in images.items()]
        self.assertEqual(self.run_pack(self.out, *files), (0, ""))
        archive = self.out.read_bytes()
        found = members(archive)
        self.assertEqual({name: data for name, (_, data) in found.items()}, images)
        self.assertEqual(list(found), list(images))
        self.assertEqual([at % 4096 for at, _ in found.values()], [0] * len(images))
        self.assertEqual(len(archive) % 512, 0)

    def test_a_name_before_the_file(self):
        self.assertEqual(self.run_pack(self.out, f"gold={self.image('a b=c', b'1')}", self.image("b", b"2")), (0, ""))
        self.assertEqual({name: data for name, (_, data) in members(self.out.read_bytes()).items()}, {"gold": b"1", "b": b"2"})

    @unittest.skipUnless(shutil.which("cpio") or shutil.which("bsdtar"), "neither cpio nor bsdtar")
    def test_others_can_read_it(self):
        data = os.urandom(5000)
        self.assertEqual(self.run_pack(self.out, self.image("gold.img", data), self.image("b", b"2")), (0, ""))
        if shutil.which("cpio"):
            listed = subprocess.run(["cpio", "-t", "--quiet"], input=self.out.read_bytes(), capture_output=True, check=True)
            self.assertEqual((listed.stdout, listed.stderr), (b"gold.img\nb\n", b""))
            unpacked = subprocess.run(["cpio", "-i", "--quiet", "--to-stdout", "gold.img"], input=self.out.read_bytes(), capture_output=True, check=True)
            self.assertEqual(unpacked.stdout, data)
        if shutil.which("bsdtar"):
            listed = subprocess.run(["bsdtar", "-tf", self.out], capture_output=True, check=True)
            self.assertEqual(listed.stdout, b"gold.img\nb\n")

    def test_holes_stay_holes(self):
        image = self.directory / "sparse"
        with image.open("wb") as file:
            file.truncate(64 << 20)
            file.seek(32 << 20)
            file.write(b"middle")
        self.assertEqual(self.run_pack(self.out, image), (0, ""))
        self.assertEqual(members(self.out.read_bytes())["sparse"][1], image.read_bytes())
        self.assertLess(self.out.stat().st_blocks * 512, 1 << 20)

    def test_more_than_libxc_takes_is_made_with_a_warning(self):
        image = self.image("large", bytes(8192))
        with mock.patch.object(pack, "MAX_RAMDISK", 12800):
            self.assertEqual(self.run_pack(self.out, image), (0, ""))
        with mock.patch.object(pack, "MAX_RAMDISK", 12799):
            code, said = self.run_pack(self.out, image)
        self.assertEqual(code, 0)
        self.assertEqual(said, f"{self.out} has 12800 bytes, but libxc takes at most 1 GiB (12799) of ramdisk=: xl will refuse it")

    def test_an_older_archive_is_replaced_and_nothing_else(self):
        old, new = self.image("old", b"old"), self.image("new", b"new")
        self.assertEqual(self.run_pack(self.out, old), (0, ""))
        self.assertEqual(self.run_pack(self.out, new), (0, ""))
        self.assertEqual(list(members(self.out.read_bytes())), ["new"])
        self.assertEqual(self.refused(old, new), f"{old} exists and is no archive: is it an image? OUT comes first")
        self.assertEqual(old.read_bytes(), b"old")

    def test_what_is_refused(self):
        image = self.image("a", b"a")
        self.assertEqual(self.refused(self.out, "/nowhere/a"), "/nowhere/a: No such file or directory")
        self.assertEqual(self.refused(self.out, f"d={self.directory}"), f"{self.directory}: Is a directory")
        self.assertEqual(self.refused("/nowhere/out", image), "/nowhere/out.part: No such file or directory")
        self.assertEqual(self.refused(self.out, image, f"b={image}", f"a={image}"), f"a={image}: the name a is {image}'s already")
        self.assertEqual(self.refused(self.out, self.image("e", b"")), f"{self.directory}/e is empty")
        for name in ("", "_a", ".a", "a b", "a/b", "x" * 41, "ram", "null", "vbd", "nvme"):
            self.assertTrue(self.refused(self.out, f"{name}={image}").startswith(f"{name}={image}: {name!r} is no name for an image; expected "))
        large = self.directory / "large"
        with large.open("wb") as file:
            file.truncate(4 << 30)
        self.assertEqual(self.refused(self.out, large), f"{large} has 4294967296 bytes, but an archive's member at most 4294967295")
        self.assertFalse(self.out.exists())

    def test_usage(self):
        with contextlib.redirect_stderr(io.StringIO()) as said, self.assertRaises(SystemExit) as ended:
            pack.main(["out"])
        self.assertEqual(ended.exception.code, 2)
        self.assertIn("[NAME=]FILE", said.getvalue())


if __name__ == "__main__":
    unittest.main()
