"""Tests of what the benchmark makes of dom0's answers."""

import contextlib
import io
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from ..bench import compare, document, plots, tables
from ..bench.cases import CASES
from ..bench.goals import DOM0, DRIVER_DOMAIN, Verdict, verdicts
from ..bench.results import FACTS, FIGURES, GRANARY, Results, Sample, Spread
from ..host.report import Report

DEPTH_1, DEPTH_32 = "4 KiB random read, depth 1", "4 KiB random read, depth 32"


def measured(backend: str, case: str, *, persistent: bool = True, **figures: list[float]) -> list[Sample]:
    """A sample for each repetition."""
    return [
        Sample(backend, persistent, case, dict(zip(figures, repetition, strict=True)))
        for repetition in zip(*figures.values(), strict=True)
    ]


def small_run() -> Results:
    results = Results(versions={"Xen": "4.17.5", "Linux": "6.1.0"})
    results.samples += measured("Granary (sse)", DEPTH_32, iops=[52000.0, 50000, 51000], instructions=[1870.4, 1877, 1902], copy_instructions=[653.0] * 3)
    results.samples += measured("Granary (u64)", DEPTH_32, iops=[48000.0, 48000, 48000])
    results.samples += measured(DRIVER_DOMAIN, DEPTH_32, iops=[30000.0, 31000, 30500], instructions=[10800.0, 10810, 10790])
    results.samples += measured(DOM0, DEPTH_32, iops=[52000.0, 52000, 52000])
    results.samples += measured("qdisk in dom0", DEPTH_1, persistent=False, iops=[3000.0, 3100, 2900])
    for backend, name, value in [
        (GRANARY, "image_bytes", 258080),
        (GRANARY, "smallest_memory_mib", 3),
        (DRIVER_DOMAIN, "smallest_memory_mib", 96),
    ]:
        results.take({"event": "fact", "backend": backend, "name": name, "value": value})
    return results


def verdict(results: Results, what: str, reference: str | None = DRIVER_DOMAIN) -> Verdict:
    [found] = [one for one in verdicts(results) if one.what == what and one.reference == reference]
    return found


class Kept(unittest.TestCase):
    def test_a_spread(self):
        self.assertEqual(Spread.of([3.0, 1, 10]), Spread(1, 3, 10))
        self.assertEqual(Spread.of([1.0, 2]), Spread(1, 1.5, 2))

    def test_spreads_are_of_one_backend_one_case_and_one_sort_of_grants(self):
        results = small_run()
        results.samples += measured("Granary (sse)", DEPTH_32, persistent=False, iops=[9.0])
        results.samples += measured("Granary (sse)", DEPTH_1, iops=[8.0])
        self.assertEqual(results.spread("Granary (sse)", DEPTH_32, "iops", persistent=True), Spread(50000, 51000, 52000))
        self.assertIsNone(results.spread("Granary (sse)", DEPTH_32, "vm_entries", persistent=True))
        self.assertIsNone(results.spread("Granary (avx)", DEPTH_32, "iops", persistent=True))

    def test_instructions_without_copies_need_both(self):
        results = small_run()
        self.assertEqual(results.spread("Granary (sse)", DEPTH_32, "protocol_instructions", persistent=True), Spread(1217.4, 1224, 1249))
        self.assertIsNone(results.spread(DRIVER_DOMAIN, DEPTH_32, "protocol_instructions", persistent=True))

    def test_the_first_granary_is_the_default_one(self):
        self.assertEqual(small_run().granary, "Granary (sse)")
        self.assertIsNone(Results().granary)

    def test_events_become_results(self):
        report = Report()
        with contextlib.redirect_stdout(io.StringIO()) as said:
            report.event({"event": "version", "name": "Xen", "text": "4.17.5"})
            report.event({"event": "note", "text": "not for the results"})
            report.event({"event": "sample", "backend": DOM0, "persistent": False, "case": DEPTH_1, "figures": {"iops": 12345.5}})
            report.event({"event": "fact", "backend": DOM0, "name": "image_bytes", "value": 9800000})
        expected = Results(versions={"Xen": "4.17.5"}, samples=measured(DOM0, DEPTH_1, persistent=False, iops=[12345.5]))
        expected.take({"event": "fact", "backend": DOM0, "name": "image_bytes", "value": 9800000})
        self.assertEqual(report.results, expected)
        self.assertEqual(
            [line.partition("]")[2] for line in said.getvalue().splitlines()],
            [
                "     Xen 4.17.5",
                "     not for the results",
                "     Linux in dom0, not persistent, 4 KiB random read, depth 1: iops 12,345.5",
                "     Linux in dom0: image_bytes 9,800,000",
            ],
        )

    def test_what_is_saved_is_what_is_loaded(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "new" / "results.json"
            small_run().save(path)
            self.assertEqual(Results.load(path), small_run())
            self.assertIn('{"backend": "Granary (u64)", "persistent": true, "case": "4 KiB random read, depth 32", "figures": {"iops": 48000.0}},', path.read_text().splitlines())
            Results().save(path)
            self.assertEqual(Results.load(path), Results())


class Goals(unittest.TestCase):
    IOPS = f"requests a second: {DEPTH_32}, persistent"

    def test_met_and_missed(self):
        results = small_run()
        self.assertIs(verdict(results, self.IOPS).met, True)
        self.assertEqual(verdict(results, self.IOPS).ratio, 51000 / 30500)
        self.assertIs(verdict(results, self.IOPS, DOM0).met, False)
        self.assertIs(verdict(results, f"instructions a request in the serving domain: {DEPTH_32}, persistent").met, True)

    def test_a_bound_itself_is_met(self):
        for bound, factor, met in [("at most", 0.5, True), ("at most", 0.49, False), ("at least", 0.5, True), ("at least", 0.51, False)]:
            one = Verdict("", bound, factor, DRIVER_DOMAIN, Spread(1, 5, 9), Spread(1, 10, 11))
            self.assertIs(one.met, met, (bound, factor))

    def test_a_bound_without_a_reference(self):
        self.assertIs(verdict(small_run(), FACTS["image_bytes"], None).met, True)
        self.assertIs(Verdict("", "at most", 262144, None, Spread(1, 262145, 262145), None).met, False)

    def test_what_was_not_measured_is_not_met(self):
        self.assertIsNone(verdict(small_run(), f"requests a second: {DEPTH_1}, not persistent").met)
        self.assertIsNone(verdict(small_run(), FACTS["own_start_instructions"], None).met)
        self.assertIsNone(Verdict("", "at most", 1, DOM0, Spread(1, 1, 1), None).met)
        self.assertIsNone(Verdict("", "at most", 1, DOM0, None, Spread(1, 1, 1)).met)

    def test_nothing_has_no_ratio_to_nothing(self):
        self.assertIsNone(Verdict("", "at most", 0.4, DOM0, Spread(0, 0, 0), Spread(0, 0, 0)).ratio)

    def test_reading_and_writing_are_separate(self):
        found = [one.what for one in verdicts(Results()) if one.what.startswith(FIGURES["vm_entries"])]
        self.assertEqual(
            found,
            [
                "VM entries a request: 4 KiB random read, depth 1, persistent",
                "VM entries a request: 4 KiB random write, depth 1, persistent",
                "VM entries a request: 4 KiB random read, depth 1, not persistent",
                "VM entries a request: 4 KiB random write, depth 1, not persistent",
            ],
        )

    def test_each_case_has_a_goal(self):
        whats = [one.what for one in verdicts(Results())]
        self.assertEqual([case.name for case in CASES if not any(case.name in what for what in whats)], [])


class Tables(unittest.TestCase):
    def test_numbers(self):
        texts = [tables.number(value) for value in (258080, 1234.5, 99.96, 12.34, 1.017, 0.0312, 3.0, 0.0)]
        self.assertEqual(texts, ["258,080", "1,234", "100.0", "12.3", "1.02", "0.031", "3", "0"])

    def test_spreads(self):
        self.assertEqual(tables.spread(Spread(1870.4, 1877, 1902)), "1,877 (1,870–1,902)")
        self.assertEqual(tables.spread(Spread(1876.9, 1877, 1877.1)), "1,877")
        self.assertEqual(tables.spread(None), "–")

    def test_figures(self):
        self.assertEqual(
            tables.figures(small_run()),
            """\
Requests a second, persistent:

|  | Granary (sse) | Granary (u64) | Linux driver domain | Linux in dom0 |
|---|--:|--:|--:|--:|
| 4 KiB random read, depth 32 | 51,000 (50,000–52,000) | 48,000 | 30,500 (30,000–31,000) | 52,000 |

Requests a second, not persistent:

|  | qdisk in dom0 |
|---|--:|
| 4 KiB random read, depth 1 | 3,000 (2,900–3,100) |

Instructions a request in the serving domain, persistent:

|  | Granary (sse) | Linux driver domain |
|---|--:|--:|
| 4 KiB random read, depth 32 | 1,877 (1,870–1,902) | 10,800 (10,790–10,810) |

Instructions a request that copy data, persistent:

|  | Granary (sse) |
|---|--:|
| 4 KiB random read, depth 32 | 653 |

Instructions a request in the serving domain, without those that copy data, persistent:

|  | Granary (sse) |
|---|--:|
| 4 KiB random read, depth 32 | 1,224 (1,217–1,249) |
""",
        )

    def test_facts(self):
        lines = tables.facts(small_run()).splitlines()
        self.assertEqual(lines[:4], [
            "|  | Granary | Linux driver domain |",
            "|---|--:|--:|",
            "| image, bytes | 258,080 | – |",
            "| smallest `memory=` that serves an 8 MiB disk, MiB | 3 | 96 |",
        ])  # fmt: skip
        self.assertEqual(len(lines), 2 + len(FACTS))
        self.assertEqual(tables.facts(Results()), "")

    def test_goals(self):
        lines = tables.goals(small_run()).splitlines()
        self.assertEqual(lines[:4], [
            "4 of 46 figures are met, 1 missed, 41 not measured. **Missed:**",
            "",
            "- requests a second: 4 KiB random read, depth 32, persistent: 0.981×, should be ≥ 1× Linux in dom0",
            "",
        ])  # fmt: skip
        rows = [line for line in lines[4:] if "not measured" not in line]
        self.assertEqual(rows, [
            "| Figure | Goal | Granary (sse) | Linux | Ratio |  |",
            "|---|---|--:|--:|--:|---|",
            "| instructions a request in the serving domain: 4 KiB random read, depth 32, persistent | ≤ 0.25× | 1,877 (1,870–1,902) | 10,800 (10,790–10,810) | 0.174× | met |",
            "| requests a second: 4 KiB random read, depth 32, persistent | ≥ 1.6× | 51,000 (50,000–52,000) | 30,500 (30,000–31,000) | 1.672× | met |",
            "| requests a second: 4 KiB random read, depth 32, persistent | ≥ 1× Linux in dom0 | 51,000 (50,000–52,000) | 52,000 | 0.981× | **missed** |",
            "| smallest `memory=` that serves an 8 MiB disk, MiB | ≤ 0.125× | 3 | 96 | 0.031× | met |",
            "| image, bytes | ≤ 262,144 | 258,080 |  |  | met |",
        ])  # fmt: skip
        self.assertIn("| VM entries a request: 4 KiB random read, depth 1, persistent | ≤ 0.4× | – | – | – | not measured |", lines)

    def test_a_bound_without_a_reference_that_is_missed(self):
        results = Results()
        results.take({"event": "fact", "backend": GRANARY, "name": "image_bytes", "value": 262145})
        self.assertIn("- image, bytes: 262,145, should be ≤ 262,144", tables.goals(results).splitlines())

    def test_method(self):
        self.assertEqual(tables.method(small_run()), "Measured with Xen 4.17.5 and Linux 6.1.0; medians of 3, in brackets the least and the most.\n")


class Compared(unittest.TestCase):
    def test_two_runs(self):
        before, after = Results(versions={"Xen": "4.17.4", "Linux": "6.1.0"}), Results(versions={"Xen": "4.17.5", "Linux": "6.1.0"})
        before.samples = measured("Granary (sse)", DEPTH_32, iops=[100.0, 110, 120], instructions=[2000.0, 2000, 2000], vm_entries=[0.0] * 3)
        after.samples = measured("Granary (sse)", DEPTH_32, iops=[119.0, 121, 130], instructions=[1900.0, 1910, 1905], vm_entries=[0.5] * 3)
        after.samples += measured("Granary (sse)", DEPTH_1, persistent=False, iops=[7.0])
        self.assertEqual(
            compare.difference(before, after),
            """\
Xen was 4.17.4, is 4.17.5: what differs below may come from that
Granary (sse), persistent, 4 KiB random read, depth 32
    iops                   121 (119–130), was 110 (100–120): +10.0 %, within the spread
    instructions           1,905 (1,900–1,910), was 2,000: -4.8 %
    vm_entries             0.500, was 0
Granary (sse), not persistent, 4 KiB random read, depth 1
    iops                   7, was not measured
""",
        )

    def test_the_same_run(self):
        lines = compare.difference(small_run(), small_run()).splitlines()
        self.assertIn("    instructions           10,800 (10,790–10,810), was 10,800 (10,790–10,810): the same", lines)
        self.assertEqual([line for line in lines if line.startswith(" ") and not line.endswith(": the same")], [])


class Plots(unittest.TestCase):
    def test_the_script(self):
        lines = plots.script("iops", small_run()).splitlines()
        self.assertEqual(lines[0], "set terminal svg size 1280,860 font 'sans-serif,13' background '#ffffff' noenhanced")
        self.assertIn("set yrange [1000:100000]", lines)
        data = lines.index("$data0 << END")
        self.assertEqual(
            lines[data:],
            [
                "$data0 << END",
                r'"4 KiB\nrandom read\ndepth 32" 51000 50000 52000 48000 48000 48000 30500 30000 31000 52000 52000 52000 NaN NaN NaN',
                "END",
                "$data1 << END",
                r'"4 KiB\nrandom read\ndepth 1" NaN NaN NaN NaN NaN NaN NaN NaN NaN NaN NaN NaN 3000 2900 3100',
                "END",
                "set multiplot layout 2,1",
                "set title 'requests a second, persistent grants (logarithmic)'",
                "plot $data0 using 2:3:4:xtic(1) title 'Granary (sse)' linecolor '#0072B2', \\",
                "     $data0 using 5:6:7:xtic(1) title 'Granary (u64)' linecolor '#56B4E9', \\",
                "     $data0 using 8:9:10:xtic(1) title 'Linux driver domain' linecolor '#D55E00', \\",
                "     $data0 using 11:12:13:xtic(1) title 'Linux in dom0' linecolor '#E69F00', \\",
                "     $data0 using 14:15:16:xtic(1) title 'qdisk in dom0' linecolor '#000000'",
                "set title 'requests a second, no persistent grants (logarithmic)'",
                "plot $data1 using 2:3:4:xtic(1) title 'Granary (sse)' linecolor '#0072B2', \\",
                "     $data1 using 5:6:7:xtic(1) title 'Granary (u64)' linecolor '#56B4E9', \\",
                "     $data1 using 8:9:10:xtic(1) title 'Linux driver domain' linecolor '#D55E00', \\",
                "     $data1 using 11:12:13:xtic(1) title 'Linux in dom0' linecolor '#E69F00', \\",
                "     $data1 using 14:15:16:xtic(1) title 'qdisk in dom0' linecolor '#000000'",
                "unset multiplot",
            ],
        )

    def test_one_sort_of_grants_is_one_panel(self):
        lines = plots.script("instructions", small_run()).splitlines()
        self.assertIn("set multiplot layout 1,1", lines)
        self.assertNotIn("$data1 << END", lines)


class CommandLine(unittest.TestCase):
    def test_the_document_takes_no_wall_clock_figures(self):
        done = subprocess.run([sys.executable, "-m", "nested.bench", "--update", "--clock", "real"], cwd=document.REPOSITORY, capture_output=True, text=True)
        self.assertEqual(done.returncode, 2)
        self.assertEqual(done.stderr.splitlines()[-1], "scripts/bench: error: --update is for exact figures, which --clock real does not give")

    def test_a_name_with_an_apostrophe(self):
        self.assertIn("title 'over dom0''s blkback'", plots._panel("$data0", "figure", ["over dom0's blkback"]))

    def test_no_gnuplot(self):
        with mock.patch("shutil.which", return_value=None), self.assertRaisesRegex(SystemExit, "^bench: no gnuplot. To get it: apt-get install gnuplot-nox$"):
            document.need_gnuplot()


class Document(unittest.TestCase):
    def test_only_what_stands_between_the_markers_is_written(self):
        text = f"before\n{document.BEGIN}old\n{document.END}between\n<!-- another -->\n{document.END}after\n"
        new = document.written(text, small_run())
        self.assertEqual(new, f"before\n{document.BEGIN}{document.section(small_run())}{document.END}between\n<!-- another -->\n{document.END}after\n")
        self.assertEqual(document.written(new, small_run()), new)

    def test_a_document_without_the_markers_is_refused(self):
        with self.assertRaisesRegex(SystemExit, "^bench: docs/benchmarks.md has no place for the figures$"):
            document.written("nothing", small_run())

    def test_the_order(self):
        text = document.section(small_run())
        self.assertEqual([line for line in text.splitlines() if line.startswith("#")], ["### What it has to reach", "### Plots", "### Every figure", "### Apart from loads"])
        self.assertIn("\n![iops by case and backend](benchmarks/iops.svg)\n![instructions by case and backend](benchmarks/instructions.svg)\n", text)

    def test_wall_clock_figures_are_marked(self):
        results = small_run()
        self.assertNotIn("NOISY", document.report(results))
        results.clock = "real"
        self.assertTrue(document.report(results).startswith("> **NOISY: measured by the wall's clock.**"))

    def test_the_document_has_the_figures_of_its_results(self):
        text = document.DOCUMENT.read_text()
        if document.RESULTS.exists():
            results = Results.load(document.RESULTS)
            self.assertEqual(results.clock, "instructions")
            self.assertEqual(text, document.written(text, results), "scripts/bench --render writes it")
            for name in plots.PLOTS.values():
                self.assertTrue((document.FOLDER / name).exists(), name)
        else:
            self.assertIn(document.BEGIN + document.END, text)
