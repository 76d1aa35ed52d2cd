"""Tests of dom0's port to the host half, and of the host half's answers."""

import hashlib
import json
import os
import socket
import subprocess
import tempfile
import threading
import tty
import unittest
from pathlib import Path
from unittest import mock

from ..dom0.events import Events
from ..dom0.lab import Lab
from ..dom0.xen import Mismatch
from ..host.answers import Answers
from ..host.monitor import Monitor
from ..host.nvme import Controller
from ..host.port import PIPE_BYTES, Port


class Ports(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def test_events_come_whole_and_answers_go_back(self):
        path = self.folder / "events"
        port = Port(path, self.folder / "log")
        self.addCleanup(port.close)
        self.assertEqual(port.events(), [])
        with open(f"{path}.out", "wb", buffering=0) as out, open(f"{path}.in", "rb", buffering=0) as answers:
            out.write(b'noise\r\n{"event": "ready"}\r\n{"event": "st')
            self.assertEqual(port.events(), [{"event": "ready"}])
            out.write(b'art"}\r\n')
            self.assertEqual(port.events(), [{"event": "start"}])
            port.answer(promises=3)
            self.assertEqual(answers.read(100), b'{"promises": 3}\n')
            out.write(b'{"event": "end"}\r\n')
        self.assertEqual(port.events(), [{"event": "end"}])
        self.assertEqual(port.events(), [])
        self.assertTrue((self.folder / "log").read_bytes().endswith(b'{"event": "end"}\r\n'))

    def test_single_bytes_fill_it_as_they_should(self):
        path = self.folder / "events"
        port = Port(path, self.folder / "log")
        self.addCleanup(port.close)
        line = b'{"event": "log"}\n'
        out = os.open(f"{path}.out", os.O_WRONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, out)
        count = PIPE_BYTES // 2 // len(line)
        for byte in line * count:
            self.assertEqual(os.write(out, bytes([byte])), 1)
        self.assertEqual(len(port.events()), count)


class Monitors(unittest.TestCase):
    def test_a_command_and_its_errors(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "monitor"
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(str(path))
            listening.listen()
            answers = ['{"return": {}}', '{"event": "STOP"}\n{"return": ""}', '{"return": "no such node"}', '{"error": {"desc": "bad"}}']
            asked: list[dict] = []

            def qemu() -> None:
                with listening.accept()[0] as connection, connection.makefile("rw") as lines:
                    lines.write('{"QMP": {}}\n')
                    lines.flush()
                    for answer in answers:
                        asked.append(json.loads(lines.readline()))
                        lines.write(f"{answer}\n")
                        lines.flush()

            thread = threading.Thread(target=qemu)
            thread.start()
            monitor = Monitor(path)
            monitor.qemu_io("first", "break flush_to_disk held")
            with self.assertRaisesRegex(RuntimeError, "^qemu-io first x: no such node$"):
                monitor.qemu_io("first", "x")
            with self.assertRaisesRegex(RuntimeError, "^human-monitor-command: bad$"):
                monitor.qemu_io("first", "x")
            monitor.close()
            thread.join()
            listening.close()
            self.assertEqual(asked[1], {"execute": "human-monitor-command", "arguments": {"command-line": 'qemu-io first "break flush_to_disk held"'}})


class Asking(unittest.TestCase):
    """dom0's end is a terminal, as a serial port is."""

    def setUp(self):
        self.host, terminal = os.openpty()
        self.addCleanup(os.close, self.host)
        tty.setraw(terminal)
        self.addCleanup(os.close, terminal)
        self.lab = Lab(Events(Path(os.ttyname(terminal))))

    def answered(self, answer: dict) -> tuple[dict, Exception | None, dict]:
        """What the host was asked for, and what became of its answer."""
        asked: dict = {}

        def host() -> None:
            line = b""
            while not line.endswith(b"\n"):
                line += os.read(self.host, 1000)
            asked.update(json.loads(line))
            os.write(self.host, json.dumps(answer).encode() + b"\n")

        thread = threading.Thread(target=host)
        thread.start()
        try:
            return asked, None, self.lab.ask("files", namespace=1)
        except Mismatch as wrong:
            return asked, wrong, {}
        finally:
            thread.join()

    def test_an_answer(self):
        asked, wrong, answer = self.answered({"promises": 3})
        self.assertEqual((asked, wrong, answer), ({"event": "ask", "what": "files", "namespace": 1}, None, {"promises": 3}))

    def test_what_is_wrong_fails_the_scenario(self):
        _, wrong, _ = self.answered({"wrong": "one is missing"})
        self.assertEqual(str(wrong), "one is missing")

    def test_without_a_host(self):
        with self.assertRaisesRegex(Mismatch, "^there is no host half to be asked for 'files'$"):
            Lab(Events(Path("/nowhere"))).ask("files")


class AnswersOfTheHost(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.nvme = Controller(Path(folder.name) / "nvme")
        self.nvme.make()
        self.answers = Answers(self.nvme, Path("monitor"))

    def ask(self, what: str, **fields: object) -> dict:
        return self.answers.to({"event": "ask", "what": what, **fields})

    def test_files(self):
        files = self.nvme.folder / "files"
        files.mkdir()
        (files / "one").write_bytes(b"one")
        md5 = hashlib.md5(b"one").hexdigest()
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(files), str(self.nvme.first)], check=True)
        self.assertEqual(self.ask("files", namespace=1, sums={"one": md5}), {})
        self.assertEqual(self.ask("files", namespace=1, sums={"one": "0" * 32}), {"wrong": f"one has the checksum {md5}, not {'0' * 32}"})
        self.assertIn("two: File not found", self.ask("files", namespace=1, sums={"two": md5})["wrong"])
        self.assertIn("e2fsck -f -n", self.ask("files", namespace=2, sums={})["wrong"])

    def test_promises_of_a_log_that_is_empty(self):
        self.assertEqual(self.ask("promises", series="s", at_bytes=0), {"wrong": "it ends in its superblock: 0 of 28 bytes at 0"})

    def test_flushes_are_held_up(self):
        with mock.patch("nested.host.answers.Monitor") as monitor:
            self.assertEqual(self.ask("hold flushes"), {})
            self.assertEqual(self.ask("let flushes go"), {})
        held, let_go = mock.call("first", "break flush_to_disk held"), mock.call("first", "remove_break held")
        self.assertEqual(monitor.return_value.qemu_io.mock_calls, [held, let_go])
        self.assertEqual(monitor.mock_calls[0], mock.call(Path("monitor")))

    def test_what_nobody_knows(self):
        self.assertEqual(self.ask("tea"), {"wrong": "this machine cannot be asked for 'tea'"})
        self.assertEqual(Answers(None, Path("monitor")).to({"event": "ask", "what": "files"}), {"wrong": "this machine cannot be asked for 'files'"})


if __name__ == "__main__":
    unittest.main()
