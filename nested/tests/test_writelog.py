"""Tests of nested/writelog: logs made here, one that QEMU made, and file systems in them."""

import hashlib
import io
import os
import struct
import subprocess
import tempfile
import unittest
from pathlib import Path

from ..writelog import durability, ext4
from ..writelog.durability import Kept, NotDurable
from ..writelog.log import BadLog, Entry, Flag, WriteLog
from ..writelog.promises import PROMISE_BYTES, Promise, promise, promises
from ..writelog.replay import Replay

MIB = 1 << 20


class Log:
    """A log as Linux and QEMU write it."""

    def __init__(self, sector_size: int = 512):
        self.sector_size = sector_size
        self.nr_entries = 0
        self._entries = b""

    def add(self, at_bytes: int = 0, data: bytes = b"", flags: int = 0, len_bytes: int | None = None, words: bytes = b"") -> "Log":
        size = self.sector_size
        len_bytes = len(data) if len_bytes is None else len_bytes
        header = struct.pack("<QQQQ", at_bytes // size, len_bytes // size, flags, len(words)) + words
        self._entries += header.ljust(size, b"\0") + data
        self.nr_entries += 1
        return self

    def flush(self) -> "Log":
        return self.add(flags=1)

    def promise(self, at_bytes: int, name: str, md5: str) -> "Log":
        return self.add(at_bytes, promise("s", name, md5).encode().ljust(PROMISE_BYTES, b"\0"))

    def bytes(self, magic: int = 0x6A736677736872, version: int = 1) -> bytes:
        superblock = struct.pack("<QQQI", magic, version, self.nr_entries, self.sector_size)
        return superblock.ljust(self.sector_size, b"\0") + self._entries

    def parsed(self) -> WriteLog:
        return WriteLog(io.BytesIO(self.bytes()))


class Parsing(unittest.TestCase):
    def test_every_sort_of_entry(self):
        log = Log().add(1024, b"a" * 512).flush().add(512, b"b" * 1024, flags=2)
        log.add(4096, flags=4, len_bytes=8192).add(flags=8, words=b"here").add(0, b"c" * 512, flags=16)
        parsed = log.parsed()
        self.assertEqual(
            list(parsed),
            [
                Entry(1024, 512, Flag(0), 1024),
                Entry(0, 0, Flag.FLUSH, 2048),
                Entry(512, 1024, Flag.FUA, 2560),
                Entry(4096, 8192, Flag.DISCARD, 4096),
                Entry(0, 0, Flag.MARK, 4608),
                Entry(0, 512, Flag.METADATA, 5120),
            ],
        )
        self.assertEqual([entry.writes for entry in parsed], [True, False, True, False, False, True])
        self.assertEqual([parsed.data(entry)[:1] for entry in parsed], [b"a", b"", b"b", b"", b"", b"c"])

    def test_sectors_of_4096_bytes(self):
        parsed = Log(4096).add(8192, b"a" * 4096).flush().parsed()
        self.assertEqual(list(parsed), [Entry(8192, 4096, Flag(0), 8192), Entry(0, 0, Flag.FLUSH, 16384)])

    def test_what_the_superblock_does_not_count_is_not_there_yet(self):
        log = Log().flush()
        bytes_of_one = log.bytes()
        grown = bytes_of_one + log.add(0, b"a" * 512).bytes()[1024:]
        self.assertEqual(len(list(WriteLog(io.BytesIO(grown)))), 1)

    def refused(self, data: bytes) -> str:
        with self.assertRaises(BadLog) as raised:
            list(WriteLog(io.BytesIO(data)))
        return str(raised.exception)

    def test_what_is_no_log(self):
        self.assertEqual(self.refused(b""), "it ends in its superblock: 0 of 28 bytes at 0")
        self.assertEqual(self.refused(Log().bytes(magic=0)), "it has no superblock: nothing was flushed yet")
        self.assertEqual(self.refused(Log().bytes(magic=7)), "its magic is 0x7, not 0x6a736677736872")
        self.assertEqual(self.refused(Log().bytes(version=2)), "its version is 2, not 1")
        self.assertEqual(self.refused(Log(1024).bytes()), "its sectors have 1024 bytes")
        self.assertEqual(self.refused(Log().add(flags=32).bytes()), "entry 0 has flags 0x20")

    def test_a_log_that_is_cut_short(self):
        whole = Log().flush().add(0, b"a" * 512)
        self.assertEqual(self.refused(whole.bytes()[:1030]), "it ends in its entry 1: 6 of 32 bytes at 1024")
        cut = WriteLog(io.BytesIO(whole.bytes()[:-1]))
        with self.assertRaisesRegex(BadLog, "^it ends in its data: 511 of 512 bytes at 1536$"):
            cut.data(list(cut)[1])


class Replaying(unittest.TestCase):
    def test_step_by_step(self):
        log = Log().add(0, b"a" * 1024).flush().add(512, b"b" * 512).add(0, flags=4, len_bytes=512).add(flags=8, words=b"here")
        image = io.BytesIO(b"-" * 2048)
        replay = Replay(log.parsed(), image)
        after = {0: b"--", 2: b"aa", 3: b"ab", 4: b"\0b", 5: b"\0b"}
        for number, beginning in after.items():
            replay.up_to(number)
            # The same again changes nothing.
            replay.up_to(number)
            self.assertEqual(image.getvalue(), beginning[:1] * 512 + beginning[1:] * 512 + b"-" * 1024)


class Promises(unittest.TestCase):
    ONE, TWO = hashlib.md5(b"one").hexdigest(), hashlib.md5(b"two").hexdigest()

    def found(self, log: Log) -> list[Promise]:
        return list(promises(log.parsed(), "s", at_bytes=8192))

    def test_after_a_flush(self):
        log = Log().add(0, b"a" * 512).flush().promise(8192, "f", self.ONE)
        self.assertEqual(self.found(log), [Promise("f", self.ONE, number=2, durable=2)])

    def test_without_a_flush_nothing_is_durable(self):
        log = Log().add(0, b"a" * 512).promise(8192, "f", self.ONE).flush()
        self.assertEqual(self.found(log), [Promise("f", self.ONE, number=1, durable=0)])

    def test_a_write_behind_the_flush_is_not_durable(self):
        log = Log().flush().add(0, b"a" * 512).promise(8192, "f", self.ONE)
        self.assertEqual(self.found(log), [Promise("f", self.ONE, number=2, durable=1)])

    def test_a_flush_with_data_comes_before_its_data(self):
        log = Log().add(0, b"a" * 512).add(0, b"b" * 512, flags=1).promise(8192, "f", self.ONE)
        self.assertEqual(self.found(log), [Promise("f", self.ONE, number=2, durable=1)])

    def test_a_page_of_them_says_each_once(self):
        one, two = (promise("s", name, md5).encode().ljust(512, b"\0") for name, md5 in (("f", self.ONE), ("g", self.TWO)))
        log = Log().flush().add(8192, one + bytes(3584)).flush().add(8192, one + two + bytes(3072))
        self.assertEqual(self.found(log), [Promise("f", self.ONE, 1, 1), Promise("g", self.TWO, 3, 3)])

    def test_another_series_is_not_asked_for(self):
        log = Log().flush().add(8192, promise("other", "f", self.ONE).encode().ljust(512, b"\0")).promise(8704, "f", self.TWO)
        self.assertEqual(self.found(log), [Promise("f", self.TWO, 2, 1)])

    def test_elsewhere_it_is_data(self):
        self.assertEqual(self.found(Log().flush().promise(4096, "f", self.ONE)), [])

    def test_a_write_that_begins_before_their_place(self):
        log = Log().flush().add(7680, bytes(512) + promise("s", "f", self.ONE).encode().ljust(512, b"\0"))
        self.assertEqual(self.found(log), [Promise("f", self.ONE, 1, 1)])


class OfQemu(unittest.TestCase):
    def test_what_qemu_writes(self):
        with tempfile.TemporaryDirectory() as name:
            image, log = Path(name) / "image", Path(name) / "log"
            image.write_bytes(bytes(MIB))
            log.write_bytes(b"")
            nodes = f"driver=blklogwrites,file.driver=file,file.filename={image},log.driver=file,log.filename={log}"
            # QEMU shows no FUA here: where the file knows none, it is a flush that is not logged.
            does = ["write -P 1 4096 8192", "flush", "write -z 4096 4096", "discard 65536 4096", "flush", "write -P 2 512 512"]
            commands = [word for each in does for word in ("-c", each)]
            subprocess.run(["qemu-io", *commands, "--image-opts", nodes], check=True, capture_output=True)
            with log.open("rb") as file:
                parsed = WriteLog(file)
                entries = list(parsed)
                # It flushes once more as it ends.
                self.assertEqual(
                    [(entry.at_bytes, entry.len_bytes, entry.flags) for entry in entries],
                    [
                        (4096, 8192, Flag(0)),
                        (0, 0, Flag.FLUSH),
                        (4096, 4096, Flag(0)),
                        (65536, 4096, Flag.DISCARD),
                        (0, 0, Flag.FLUSH),
                        (512, 512, Flag(0)),
                        (0, 0, Flag.FLUSH),
                    ],
                )
                replayed = io.BytesIO(bytes(MIB))
                Replay(parsed, replayed).up_to(len(entries))
            self.assertEqual(replayed.getvalue(), image.read_bytes())


class FileSystem(unittest.TestCase):
    """A device of 4 MiB with an ext4 file system on its first 3, and promises behind it."""

    AT = 3 * MIB

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.before = self.folder / "before"
        self.before.write_bytes(b"")
        os.truncate(self.before, 4 * MIB)
        files = self.folder / "files"
        files.mkdir()
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", str(files), str(self.before), f"{self.AT >> 10}k"], check=True, capture_output=True)
        self.md5 = {}
        self.states = [self.before.read_bytes()]
        for name in ("one", "two"):
            self.states.append(self.with_file(name))

    def with_file(self, name: str) -> bytes:
        """The device with one more file on it."""
        image, source = self.folder / "image", self.folder / name
        image.write_bytes(self.states[-1])
        source.write_bytes(name.encode() * 5000)
        self.md5[name] = hashlib.md5(source.read_bytes()).hexdigest()
        subprocess.run(["debugfs", "-w", "-R", f"write {source} {name}", str(image)], check=True, capture_output=True)
        return image.read_bytes()

    def writes(self, log: Log, number: int) -> Log:
        """All that differs between two states, as writes of a page."""
        old, new = self.states[number - 1 : number + 1]
        for at in range(0, self.AT, 4096):
            if old[at : at + 4096] != new[at : at + 4096]:
                log.add(at, new[at : at + 4096])
        return log

    def check(self, log: Log) -> Kept:
        path = self.folder / "log"
        path.write_bytes(log.bytes())
        return durability.check(path, self.before, "s", self.AT)

    def good(self) -> Log:
        log = self.writes(Log(), 1).flush().promise(self.AT, "one", self.md5["one"])
        return self.writes(log, 2).flush().promise(self.AT + 512, "two", self.md5["two"])

    def test_promises_that_were_kept(self):
        log = self.good()
        self.assertEqual(self.check(log), Kept(nr_promises=2, nr_entries=log.nr_entries))

    def test_no_flush(self):
        log = self.writes(Log(), 1).promise(self.AT, "one", self.md5["one"])
        with self.assertRaisesRegex(NotDurable, r"^promise 1 \(entry \d+, of which 0 are durable\): one: .*File not found"):
            self.check(log)

    def test_a_flush_too_late(self):
        log = self.writes(Log(), 1).flush().promise(self.AT, "one", self.md5["one"])
        late = self.writes(log, 2).promise(self.AT + 512, "two", self.md5["two"]).flush()
        with self.assertRaisesRegex(NotDurable, r"^promise 2 .*: two: .*File not found"):
            self.check(late)

    def test_a_write_behind_the_flush(self):
        old, new = self.states[:2]
        differ = [at for at in range(0, self.AT, 4096) if old[at : at + 4096] != new[at : at + 4096]]
        log = Log()
        for at in differ[:-1]:
            log.add(at, new[at : at + 4096])
        log.flush().add(differ[-1], new[differ[-1] : differ[-1] + 4096])
        with self.assertRaises(NotDurable):
            self.check(log.promise(self.AT, "one", self.md5["one"]))

    def test_a_file_that_is_another(self):
        log = self.writes(Log(), 1).flush().promise(self.AT, "one", "0" * 32)
        with self.assertRaisesRegex(NotDurable, f"one has the checksum {self.md5['one']}, not {'0' * 32}$"):
            self.check(log)

    def test_a_file_system_that_is_broken(self):
        image = self.folder / "broken"
        image.write_bytes(self.states[1][:4096] + bytes(4096) + self.states[1][8192:])
        with self.assertRaisesRegex(ext4.Broken, "^e2fsck -f -n"):
            ext4.check(image)


if __name__ == "__main__":
    unittest.main()
