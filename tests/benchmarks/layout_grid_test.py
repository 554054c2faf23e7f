"""The layout grid without GPUs: python3 layout_grid_test.py SOURCE_DIR BUILD_DIR

Its parts by themselves, and whole stages with a stand-in for nvidia-smi that prints recorded maps."""
import doctest
import json
import os
import stat
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.dont_write_bytecode = True
SOURCE, BUILD = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
sys.path.insert(0, str(SOURCE / "benchmarks/train"))
import grid_report
import grid_topology
import random_model

TOPOLOGY = SOURCE / "tests/data/topology"
HOPPER = TOPOLOGY / "nvidia-smi/hopper-8gpu-nv18-8nic.txt"


def read(path):
    out = subprocess.run([BUILD / "bin/r1run", "topo", "--input", path, "--json", "-"], capture_output=True, text=True, check=True)
    return grid_topology.host_of(json.loads(out.stdout))


def altered(path, gpu, before, after, where):
    """A copy of the map in which one word of a GPU's row and of the column's row is another."""
    lines = path.read_text().splitlines()
    for i, line in enumerate(lines):
        if line.startswith(f"GPU{gpu} "):
            at = [j for j in range(len(line)) if line.startswith(before, j)][where]
            lines[i] = line[:at] + after.ljust(len(before)) + line[at + len(before):]
    return "\n".join(lines) + "\n"


class Parts(unittest.TestCase):
    def test_doctests(self):
        for module in (grid_report, grid_topology, random_model):
            failures, count = doctest.testmod(module)
            self.assertEqual(failures, 0, module.__name__)
            self.assertGreater(count, 0)


class Comparison(unittest.TestCase):
    def test_every_recorded_map_agrees_with_itself_in_every_pair(self):
        files = sorted((TOPOLOGY / "nvidia-smi").glob("*.txt")) + sorted((TOPOLOGY / "nccl").glob("*topo*.xml"))
        self.assertGreater(len(files), 10)
        for f in files:
            host = read(f)
            n = len(host["gpus"])
            c = grid_topology.compare(host, host, "itself")
            self.assertEqual(c["says"], [], f.name)
            self.assertEqual(c["pairs"], n * (n - 1) // 2, f.name)

    def test_two_programs_on_one_kind_of_host(self):
        c = grid_topology.compare(read(HOPPER), read(TOPOLOGY / "nccl/oci-h100-topology.xml"), "NCCL", as_nccl=True)
        self.assertEqual(c["pairs"], 28)
        self.assertFalse([x for x in c["says"] if "-GPU" in x], "NV18 between all of them in both")

    def test_one_virtual_machine(self):
        c = grid_topology.compare(read(TOPOLOGY / "one-h200-vm/h200-vm-topo-m.txt"), read(TOPOLOGY / "one-h200-vm/h200-vm-nccl.xml"), "NCCL", as_nccl=True)
        self.assertEqual(c["says"], [])

    def test_disagreements_are_named(self):
        ours, other = read(HOPPER), read(HOPPER)
        other["gpu_gpu"][2][5]["nvlinks"] = 12
        other["gpu_nic"][0][0]["path"] = "SYS"
        other["gpu_gpu"][0][1] = {}
        other["gpus"][7]["numa"] = 0
        del other["gpus"][7]["cpu_affinity"]
        c = grid_topology.compare(ours, other, "x")
        self.assertEqual(c["says"], ["GPU0-GPU1: NV18, x says nothing", "GPU0-mlx5_0: PIX, x says SYS", "GPU2-GPU5: NV18, x says NV12",
                                     "GPU7 on NUMA node 1, x says 0", "GPU7 is near 96 CPUs, x says 96"])
        self.assertEqual(c["pairs"], 27)

    def test_a_missing_gpu(self):
        other = read(HOPPER)
        other["gpus"].pop()
        self.assertEqual(grid_topology.compare(read(HOPPER), other, "x")["says"], ["8 GPUs, x has 7", "GPU7 is missing in x"])


class Stages(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory()
        self.out = Path(self.dir.name)
        fake = self.out / "nvidia-smi"
        fake.write_text('#!/bin/sh\n[ "$*" = "topo -m" ] && exec cat "$FAKE_TOPO"\nexit 9\n')
        fake.chmod(fake.stat().st_mode | stat.S_IXUSR)

    def tearDown(self):
        self.dir.cleanup()

    def grid(self, *options, topo=HOPPER):
        env = dict(os.environ, PATH=f"{self.out}:{os.environ['PATH']}", FAKE_TOPO=str(topo), PYTHONDONTWRITEBYTECODE="1")
        p = subprocess.run([sys.executable, SOURCE / "benchmarks/train/layout_grid", "--build", BUILD, "--out", self.out / "out", "--device", "cpu",
                            "--commit", "test", *options], env=env, capture_output=True, text=True, timeout=240)
        self.assertEqual(p.returncode, 0, p.stdout + p.stderr)
        return p.stdout, json.loads((self.out / "out/results.json").read_text()), (self.out / "out/report.md").read_text()

    def test_topology_agrees_or_names_the_pair(self):
        said, results, report = self.grid("--gpus", "8", "--only", "topology", "--live", str(HOPPER))
        self.assertTrue(results["topology"]["ok"], said)
        self.assertIn("28 GPU pairs, 64 GPU-NIC pairs, 8 NUMA nodes", report)
        other = self.out / "other.txt"
        other.write_text(altered(HOPPER, 3, "NV18", "SYS", 0).replace("GPU0     X      NV18    NV18    NV18", "GPU0     X      NV18    NV18    SYS "))
        said, results, report = self.grid("--gpus", "8", "--only", "topology", "--live", str(HOPPER), "--again", topo=other)
        self.assertTrue(results["topology"]["ok"], "a stage that is through is not repeated")
        (self.out / "out/results.json").unlink()
        said, results, report = self.grid("--gpus", "8", "--only", "topology", "--live", str(HOPPER), topo=other)
        self.assertFalse(results["topology"]["ok"])
        self.assertIn("GPU0-GPU3: NV18, nvidia-smi says SYS", said)
        self.assertIn("GPU0-GPU3: NV18, nvidia-smi says SYS", report)

    def test_a_training_cell_is_measured_beside_its_plan(self):
        said, results, report = self.grid("--gpus", "2", "--cluster", "2xRTX-4090", "--only", "about,train tiny-2x1x1-T64")
        cell = results["train tiny-2x1x1-T64"]
        self.assertTrue(cell["ok"], said)
        self.assertGreater(cell["bubble"], 0)
        self.assertLess(cell["bubble"] + cell["exposed"], 1)
        self.assertGreater(cell["plan"]["step_time"]["bubble_fraction"], 0)
        self.assertIn("--model", cell["command"])
        self.assertNotIn("--init", cell["command"], "weights were made once and are loaded")
        self.assertIn("| tiny-2x1x1-T64 | 2×1×1 | 1,024 |", report)
        self.assertIn("pp receive", cell["operations"])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
