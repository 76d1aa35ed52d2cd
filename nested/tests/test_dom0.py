"""Tests of the dom0 half that need no Xen."""

import base64
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from ..dom0 import disks, mapper, names, pci
from ..dom0.console import Console
from ..dom0.domain import Command, devid, hvm_config
from ..dom0.scenario import known
from ..dom0.xen import Mismatch, Stuck


class Consoles(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        patched = mock.patch.object(names, "CONSOLE_LOGS", Path(directory.name))
        patched.start()
        self.addCleanup(patched.stop)
        self.log = Path(directory.name) / "guest-g.log"

    def say(self, text: str) -> None:
        with self.log.open("a") as log:
            log.write(text)

    def test_an_earlier_life_is_not_read(self):
        self.say("guest: ready\n")
        with self.assertRaises(Stuck):
            Console("g").wait("ready", limit=0)

    def test_a_line_that_is_not_ended_is_no_line(self):
        console = Console("g")
        self.say("guest: re")
        self.assertEqual(console.mark(), 0)
        self.say("ady\r\n")
        console.wait("^guest: ready$", limit=0)

    def answer(self, status: int) -> Command:
        guest = mock.Mock(console=Console("g"))
        guest.name = "g"
        encoded = base64.b64encode(b"one\ntwo\n").decode()
        self.say(f"7: {encoded[:4]}\nkernel: 7= 9\n7: {encoded[4:]}\n7= {status}\n")
        return Command(guest, "echo", 7, 0)

    def test_an_answer_between_other_lines(self):
        self.assertEqual(self.answer(0).wait(limit=0), "one\ntwo\n")

    def test_a_wrong_status(self):
        with self.assertRaisesRegex(Mismatch, "status 3, not 0; it said: one"):
            self.answer(3).wait(limit=0)


class Disks(unittest.TestCase):
    def test_a_granary_disk(self):
        self.assertEqual(str(disks.ram("xvdb", "1M")), "vdev=xvdb,format=raw,access=rw,backend=granary,target=ram,size=1M")

    def test_devid(self):
        self.assertEqual([devid("xvda"), devid("xvdb"), devid("xvdp"), devid("xvdq")], [51712, 51728, 51952, 268439552])


class Configurations(unittest.TestCase):
    IMAGES = Path(__file__).resolve().parents[2] / "images"

    def test_each_is_what_xl_reads(self):
        """xl's files of settings are Python's assignments, as long as they are simple ones."""
        for config in sorted(self.IMAGES.glob("*.cfg")):
            settings: dict[str, object] = {}
            exec(config.read_text(), settings)
            self.assertIn(settings["type"], ("pvh", "hvm"), config)

    def test_a_controller_by_either_way(self):
        with (
            mock.patch.object(names, "GRANARY_NVME_CONFIG", self.IMAGES / "granary-nvme.cfg"),
            mock.patch.object(pci, "nvme", lambda: pci.Device("0000:00:05.0")),
        ):
            for key, other in (("kernel", "firmware_override"), ("firmware_override", "kernel")):
                settings: dict[str, object] = {}
                exec(hvm_config(key).read_text(), settings)
                self.assertEqual((settings[key], settings["pci"]), ("/lab/granary-hvm", ["0000:00:05.0"]))
                self.assertNotIn(other, settings)
                self.assertEqual(settings["hvm_pirq"], 1)


class FaultyDisks(unittest.TestCase):
    def test_its_table(self):
        tables = []
        with mock.patch.object(mapper, "_dmsetup", lambda verb, *words: tables.append(Path(words[1]).read_text()) if verb == "reload" else None):
            disk = mapper.Faulty("test-faulty", 8, Path("/dev/loop7"), Path("/dev/mapper/test-faulty"))
            disk.fail(at_mib=2, mib=1)
            disk.fail(at_mib=0, mib=8)
            disk.heal()
        good = "0 16384 linear /dev/loop7 0\n"
        part = "0 4096 linear /dev/loop7 0\n4096 2048 error\n6144 10240 linear /dev/loop7 6144\n"
        self.assertEqual(tables, [part, "0 16384 error\n", good])


class Scenarios(unittest.TestCase):
    def test_each_says_what_must_be_true(self):
        for scenario in known().values():
            self.assertTrue(scenario.says.endswith("."), scenario.name)
            self.assertIn(scenario.group, {"test", "all", "run", "soak", "bench"}, scenario.name)
            self.assertIn(scenario.machine, {"plain", "passthrough"}, scenario.name)


if __name__ == "__main__":
    unittest.main()
