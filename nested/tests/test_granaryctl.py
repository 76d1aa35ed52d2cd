"""Tests of scripts/granaryctl, against a xenstored and a domain in this process."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import unittest
from unittest import mock

from .scripts import SCRIPTS, load
from .xenstored import Xenstored

granaryctl = load("granaryctl")

REQUEST = "/local/domain/5/data/request"
RESPONSE = "/local/domain/5/data/response"
PART_MAX = 1500


class Domain:
    """The domain's side of the protocol, as docs/control.md has it."""

    def __init__(self, store: Xenstored, answers: dict[str, tuple[str, str]]):
        self._store = store
        self._answers = answers
        self.ran: list[str] = []
        self.silent = False
        self._last: tuple[str, str, list[bytes]] = ("", "", [])
        store.changed = self.look

    def look(self) -> None:
        request = self._store.nodes.get(REQUEST, b"").decode()
        id_, _, command = request.partition(" ")
        answered, status, parts = self._last
        if not request or self.silent or (RESPONSE in self._store.nodes and id_ != answered):
            return
        self._store.write(REQUEST, b"")
        if command.startswith("part ") and id_ == answered:
            self._show(int(command.removeprefix("part ")))
            return
        if id_ != answered:
            self.ran.append(command)
            status, body = self._answers.get(command, ("error", f"`{command.split()[0]}`: unknown command"))
            room = PART_MAX - len(f"{id_} 99/99 error\n")
            text = body.encode()
            parts = [text[at : at + room] for at in range(0, len(text), room)] or [b""]
            self._last = (id_, status, parts)
        self._show(1)

    def _show(self, part: int) -> None:
        id_, status, parts = self._last
        if part == 0:
            self._store.remove(RESPONSE)
        else:
            text = f"{id_} {part}/{len(parts)} {status}\n".encode() + parts[part - 1]
            assert len(text) <= PART_MAX
            self._store.write(RESPONSE, text)


POOL = "pool total_pages=16384 free_pages=4096 reserve_pages=64\n"
IMAGE = "image name=gold format=qcow2 sectors=524288\n"
DISK = "disk name=12 type=overlay sectors=524288 block=512 pages=3 cap_pages=16384 base=gold access=rw vbds=7/51712,8/51728\n"
OWN = "disk name=- type=null sectors=2147483648 block=4096 pages=0 cap_pages=- base=- access=ro vbds=9/51712\n"
HEAP = POOL.replace("\n", " handles=37 ports=4 watches=5 heap_peak_bytes=430080\n")
BUSY = (
    "vbd id=7/51712 disk=12 state=connected rings=2 in_flight=3 reads=1234 sectors_read=2517504 writes=56 sectors_written=448 flushes=7 barriers=0 "
    "discards=1 sectors_discarded=8192 errors=2 mapped=35 at_hand=1:900,32:40 segments=1:20,8:1270\n"
)
IDLE = (
    "vbd id=9/51728 disk=- state=waiting rings=0 in_flight=0 reads=0 sectors_read=0 writes=0 sectors_written=0 flushes=0 barriers=0 "
    "discards=0 sectors_discarded=0 errors=0 mapped=0 at_hand=- segments=-\n"
)
MANY = POOL + "".join(
    f"disk name=a-disk-with-quite-a-long-name-{n} type=ram sectors=2097152 block=512 pages={n} cap_pages=262144 base=- access=rw vbds=-\n" for n in range(32)
)


class GranaryctlTest(unittest.TestCase):
    def setUp(self):
        nodes = {"/local/domain/0/name": "Domain-0", "/local/domain/5": "", "/local/domain/5/name": "granary", "/local/domain/11/name": "other"}
        self.store = self.enterContext(Xenstored(nodes))
        self.enterContext(mock.patch.dict(os.environ, {"XENSTORED_PATH": str(self.store.socket)}))
        self.domain = Domain(self.store, {"list": ("ok", POOL + IMAGE + DISK + OWN), "stats": ("ok", HEAP + BUSY + IDLE), "create d ram,size=1G": ("ok", "")})

    def ctl(self, *words: str) -> tuple[int, str, str]:
        """Exit code, output, error output."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = granaryctl.main(list(words))
        return code, out.getvalue(), err.getvalue().removeprefix("granaryctl: ").rstrip("\n")

    def start(self, *words: str) -> subprocess.Popen:
        # A shell's background job ignores SIGINT, and its children inherit that.
        heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
        process = subprocess.Popen([sys.executable, SCRIPTS / "granaryctl", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
        self.addCleanup(process.kill)
        return process

    def wait_for(self, what) -> None:
        end = time.monotonic() + 20
        while not what():
            self.assertLess(time.monotonic(), end)
            time.sleep(0.005)


class Verbs(GranaryctlTest):
    def test_a_command_that_is_done_says_nothing(self):
        self.assertEqual(self.ctl("create", "d", "ram,size=1G"), (0, "", ""))
        self.assertEqual(self.domain.ran, ["create d ram,size=1G"])
        self.assertEqual(self.store.nodes[REQUEST], b"")
        self.assertNotIn(RESPONSE, self.store.nodes)

    def test_each_verb_is_sent_as_it_stands(self):
        commands = ["list", "stats", "create n null,size=1M", "remove n", "resize n 2M", "snapshot n s", "clone n c", "discard-all n"]
        for command in commands:
            self.ctl(*command.split())
        self.assertEqual(self.domain.ran, commands)
        self.assertEqual([command.split()[0] for command in commands], list(granaryctl.VERBS))

    def test_a_refusal_is_the_domains_own_sentence(self):
        self.domain._answers["remove d"] = ("error", "d is in use by vbd 7/51712\n")
        self.assertEqual(self.ctl("remove", "d"), (1, "", "refused: d is in use by vbd 7/51712"))
        self.assertNotIn(RESPONSE, self.store.nodes)

    def test_a_table(self):
        code, out, err = self.ctl("list")
        self.assertEqual((code, err), (0, ""))
        self.assertEqual(
            out,
            "64 MiB of memory for disks, 16 MiB free, 256 KiB in reserve\n"
            "\n"
            "IMAGE  FORMAT     SIZE\n"
            "gold   qcow2   256 MiB\n"
            "\n"
            "DISK  TYPE        SIZE    USED     CAP  BLOCK  BASE  ACCESS  VBDS\n"
            "12    overlay  256 MiB  12 KiB  64 MiB    512  gold  rw      7/51712 8/51728\n"
            "-     null       1 TiB     0 B       -   4096  -     ro      9/51712\n",
        )

    def test_json(self):
        code, out, _ = self.ctl("list", "--json")
        self.assertEqual(code, 0)
        overlay = {"name": "12", "type": "overlay", "sectors": 524288, "block": 512, "pages": 3, "cap_pages": 16384, "base": "gold", "access": "rw"}
        null = {"name": None, "type": "null", "sectors": 2147483648, "block": 4096, "pages": 0, "cap_pages": None, "base": None, "access": "ro"}
        self.assertEqual(
            json.loads(out),
            {
                "pool": {"total_pages": 16384, "free_pages": 4096, "reserve_pages": 64},
                "images": [{"name": "gold", "format": "qcow2", "sectors": 524288}],
                "upstreams": [],
                "disks": [
                    overlay | {"vbds": [{"frontend": 7, "devid": 51712}, {"frontend": 8, "devid": 51728}]},
                    null | {"vbds": [{"frontend": 9, "devid": 51712}]},
                ],
            },
        )

    def test_upstream_disks(self):
        upstreams = "upstream dev=xvdb state=connected sectors=16777216 in_flight=3\nupstream dev=xvdc state=waiting sectors=0 in_flight=0\n"
        self.domain._answers["list"] = ("ok", "pool total_pages=16384 free_pages=4096 reserve_pages=64\n" + upstreams)
        self.assertEqual(
            self.ctl("list")[1].split("\n\n")[1],
            "UPSTREAM  STATE       SIZE  IN FLIGHT\n"
            "xvdb      connected  8 GiB          3\n"
            "xvdc      waiting      0 B          0\n",
        )
        listed = [
            {"dev": "xvdb", "state": "connected", "sectors": 16777216, "in_flight": 3},
            {"dev": "xvdc", "state": "waiting", "sectors": 0, "in_flight": 0},
        ]
        self.assertEqual(json.loads(self.ctl("list", "--json")[1])["upstreams"], listed)

    def test_statistics(self):
        code, out, err = self.ctl("stats")
        self.assertEqual((code, err), (0, ""))
        self.assertEqual(
            out,
            "64 MiB of memory for disks, 16 MiB free, 256 KiB in reserve\n"
            "37 grant handles, 4 event channel ports, 5 watches, at most 420 KiB of heap\n"
            "\n"
            "VBD      DISK  STATE      RINGS  IN FLIGHT  MAPPED  ERRORS\n"
            "7/51712  12    connected      2          3      35       2\n"
            "9/51728  -     waiting        0          0       0       0\n"
            "\n"
            "VBD      READS     READ  WRITES  WRITTEN  FLUSHES  BARRIERS  DISCARDS  DISCARDED\n"
            "7/51712   1234  1.2 GiB      56  224 KiB        7         0         1      4 MiB\n"
            "9/51728      0      0 B       0      0 B        0         0         0        0 B\n"
            "\n"
            "REQUESTS AT HAND\n"
            "VBD       1+  32+\n"
            "7/51712  900   40\n"
            "\n"
            "SEGMENTS A REQUEST\n"
            "VBD      1+    8+\n"
            "7/51712  20  1270\n",
        )
        self.domain._answers["stats"] = ("ok", HEAP + IDLE)
        self.assertNotIn("\n\n", self.ctl("stats")[1].split("DISCARDED\n")[1])
        self.domain._answers["stats"] = ("ok", HEAP)
        self.assertEqual(self.ctl("stats")[1].count("\n"), 2)

    def test_statistics_as_json(self):
        code, out, _ = self.ctl("stats", "--json")
        self.assertEqual(code, 0)
        busy = {"id": {"frontend": 7, "devid": 51712}, "disk": "12", "state": "connected", "rings": 2, "in_flight": 3, "reads": 1234}
        busy |= {"sectors_read": 2517504, "writes": 56, "sectors_written": 448, "flushes": 7, "barriers": 0, "discards": 1}
        busy |= {"sectors_discarded": 8192, "errors": 2, "mapped": 35, "at_hand": {"1": 900, "32": 40}, "segments": {"1": 20, "8": 1270}}
        idle = dict.fromkeys(busy, 0) | {"id": {"frontend": 9, "devid": 51728}, "disk": None, "state": "waiting", "at_hand": {}, "segments": {}}
        pool = {"total_pages": 16384, "free_pages": 4096, "reserve_pages": 64, "handles": 37, "ports": 4, "watches": 5, "heap_peak_bytes": 430080}
        self.assertEqual(json.loads(out), {"pool": pool, "vbds": [busy, idle]})

    def test_statistics_that_cannot_be_read(self):
        for wrong in (BUSY.replace("1:900", "1-900"), BUSY.replace("id=7/", "id="), BUSY.replace("errors=2 ", "")):
            self.domain._answers["stats"] = ("ok", HEAP + wrong)
            self.assertEqual(self.ctl("stats"), (3, "", f"the answer's line cannot be read: {wrong.rstrip()}"))

    def test_what_a_later_granary_adds_is_passed_over(self):
        self.domain._answers["list"] = ("ok", POOL.replace("\n", " heap=1\n") + "weather sun=yes\n")
        self.assertEqual(self.ctl("list")[:2], (0, "64 MiB of memory for disks, 16 MiB free, 256 KiB in reserve\n"))

    def test_a_list_that_cannot_be_read(self):
        for line in ("pool total_pages=1\n", "pool total_pages=x free_pages=1 reserve_pages=1\n", "pool free\n", POOL + DISK.replace("7/", "7-")):
            self.domain._answers["list"] = ("ok", line)
            code, out, err = self.ctl("list")
            self.assertEqual((code, out, err), (3, "", f"the answer's line cannot be read: {line.splitlines()[-1]}"))
        self.domain._answers["list"] = ("ok", IMAGE)
        self.assertEqual(self.ctl("list"), (3, "", "the answer does not say what is in the pool"))

    def test_usage(self):
        for words in ([], ["lost"], ["remove"], ["remove", "a b"], ["remove", ""], ["remove", "ä"], ["remove", "a", "b"], ["--timeout", "-1", "list"]):
            with self.assertRaises(SystemExit) as ended:
                self.ctl(*words)
            self.assertEqual(ended.exception.code, 2, words)
        self.assertEqual(self.domain.ran, [])


class Domains(GranaryctlTest):
    def test_by_name_or_domid_before_the_verb_or_behind(self):
        self.store.write("/local/domain/5/name", b"store")
        self.assertEqual(self.ctl("-d", "store", "list")[0], 0)
        self.assertEqual(self.ctl("list", "-d", "5")[0], 0)
        self.assertEqual(self.ctl("list"), (3, "", "no domain is called granary; -d says which one is meant"))
        self.assertEqual(self.ctl("-d", "6", "list"), (3, "", "there is no domain 6"))

    def test_two_of_a_name(self):
        self.store.write("/local/domain/11/name", b"granary")
        self.assertEqual(self.ctl("list"), (3, "", "several domains are called granary: 11, 5; -d DOMID says which one is meant"))

    def test_no_xenstore(self):
        with mock.patch.dict(os.environ, {"XENSTORED_PATH": "/nowhere"}):
            self.assertEqual(self.ctl("list"), (3, "", "cannot open xenstore, is this dom0's root? /nowhere: No such file or directory"))


class Answers(GranaryctlTest):
    def test_parts_are_joined(self):
        self.domain._answers["list"] = ("ok", MANY)
        self.assertGreater(len(MANY), 2 * PART_MAX)
        code, out, _ = self.ctl("list", "--json")
        self.assertEqual(code, 0)
        self.assertEqual([disk["pages"] for disk in json.loads(out)["disks"]], list(range(32)))
        self.assertEqual(self.domain.ran, ["list"])
        self.assertNotIn(RESPONSE, self.store.nodes)

    def test_a_domain_that_takes_its_time(self):
        self.domain._answers["list"] = ("ok", MANY)

        def look() -> None:
            with self.store.lock:
                self.domain.look()

        self.store.changed = lambda: threading.Timer(0.05, look).start()
        self.assertEqual(len(json.loads(self.ctl("list", "--json")[1])["disks"]), 32)

    def test_a_transaction_in_conflict_is_tried_again(self):
        self.store.conflicts = 3
        self.assertEqual(self.ctl("create", "d", "ram,size=1G"), (0, "", ""))
        self.assertEqual(self.domain.ran, ["create d ram,size=1G"])

    def test_a_transaction_that_saw_things_of_two_moments_is_tried_again(self):
        self.store.torn = 3
        self.assertEqual(self.ctl("create", "d", "ram,size=1G"), (0, "", ""))
        self.assertEqual(self.domain.ran, ["create d ram,size=1G"])

    def test_a_repeated_id_gets_the_stored_answer(self):
        with granaryctl.Xenstore(granaryctl.Deadline(20)) as store:
            control = granaryctl.Control(store, 5)
            self.assertEqual(control.run("list", "abc"), POOL + IMAGE + DISK + OWN)
            self.domain._answers["list"] = ("ok", "")
            self.assertEqual(control.run("list", "abc"), POOL + IMAGE + DISK + OWN)
            self.assertEqual(self.domain.ran, ["list"])
            self.assertEqual(control.run("list"), "")
        self.assertEqual(self.domain.ran, ["list", "list"])

    def test_two_clients_at_once(self):
        self.domain._answers["list"] = ("ok", MANY)
        self.domain.silent = True
        clients = [self.start("list", "--json"), self.start("list", "--json")]
        # One has placed its request, the other has found it there.
        self.wait_for(lambda: self.store.nodes.get(REQUEST) and self.store.nr_idle_transactions > 2)
        with self.store.lock:
            self.domain.silent = False
            self.domain.look()
        for client in clients:
            out, err = client.communicate(timeout=20)
            self.assertEqual((client.returncode, err), (0, ""))
            self.assertEqual(len(json.loads(out)["disks"]), 32)
        self.assertEqual(self.domain.ran, ["list", "list"])
        self.assertNotIn(RESPONSE, self.store.nodes)

    def test_busy_for_too_long(self):
        busy = (3, "", "busy: the domain still answers somebody else's request")
        self.domain.silent = True
        self.store.write(REQUEST, b"x list")
        self.assertEqual(self.ctl("--timeout", "0.1", "list"), busy)
        self.assertEqual(self.store.nodes[REQUEST], b"x list")
        self.store.write(REQUEST, b"")
        self.store.write(RESPONSE, b"x 1/1 ok\n")
        self.assertEqual(self.ctl("--timeout", "0.1", "list"), busy)

    def test_without_an_answer_the_request_is_taken_back(self):
        self.domain.silent = True
        silence = "no answer from domain 5 in time (is it a Granary?); the request was taken back; it may have been obeyed all the same"
        self.assertEqual(self.ctl("--timeout", "0.2", "list"), (3, "", silence))
        self.assertEqual(self.store.nodes[REQUEST], b"")

    def test_what_was_read_may_still_be_done(self):
        self.store.changed = lambda: self.store.write(REQUEST, b"")
        silence = "no answer from domain 5 in time (is it a Granary?); it has the request, and may still obey it"
        self.assertEqual(self.ctl("--timeout", "0.2", "list"), (3, "", silence))

    def test_an_interrupted_request_is_taken_back(self):
        self.domain.silent = True
        client = self.start("list")
        self.wait_for(lambda: self.store.nodes.get(REQUEST))
        # It is waiting for its answer by then.
        time.sleep(0.1)
        client.send_signal(signal.SIGINT)
        out, err = client.communicate(timeout=20)
        self.assertEqual((client.returncode, out), (130, ""))
        self.assertEqual(err, "granaryctl: interrupted; the request was taken back; it may have been obeyed all the same\n")
        self.assertEqual(self.store.nodes[REQUEST], b"")

    def test_an_answer_that_goes_while_it_is_read(self):
        self.domain._answers["list"] = ("ok", MANY)

        def look() -> None:
            self.domain.look()
            if RESPONSE in self.store.nodes and b" 2/" in self.store.nodes[RESPONSE]:
                self.store.remove(RESPONSE)

        self.store.changed = look
        self.assertEqual(self.ctl("list"), (3, "", "the answer was removed before all of it was read"))

    def test_a_client_that_was_given_up_leaves_the_next_one_alone(self):
        self.domain._answers["list"] = ("ok", MANY)
        with granaryctl.Xenstore(granaryctl.Deadline(20)) as store:
            control = granaryctl.Control(store, 5)
            wait_for_part = control._part

            def slowly(*which):
                part = wait_for_part(*which)
                self.store.nodes |= {RESPONSE: b"other 1/2 ok\n", REQUEST: b"other part 2"}
                return part

            with mock.patch.object(control, "_part", slowly), self.assertRaisesRegex(granaryctl.Unreachable, granaryctl.REMOVED):
                control.run("list")
        self.assertEqual(self.store.nodes[REQUEST], b"other part 2")

    def test_an_answer_that_cannot_be_read(self):
        self.store.changed = lambda: self.store.write(RESPONSE, b"hello")
        self.assertTrue(self.ctl("list")[2].startswith("the answer cannot be read: b'hello'; "))


class Sizes(unittest.TestCase):
    def test_units(self):
        sizes = [0, 1, 512, 1023, 1024, 1536, 4096, 1 << 20, (1 << 20) * 5 // 4, 1 << 30, 3 << 40, 1 << 60]
        texts = ["0 B", "1 B", "512 B", "1023 B", "1 KiB", "1.5 KiB", "4 KiB", "1 MiB", "1.2 MiB", "1 GiB", "3 TiB", "1048576 TiB"]
        self.assertEqual([granaryctl.size(count) for count in sizes], texts)


if __name__ == "__main__":
    unittest.main()
