#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a sweep saves: CPU seconds of one setting of grid.json as a sweep, and as one `kvspan run` a
cell, of a random sample of its cells, in turns. Python's standard library only.

usage: factor.py build/release/cli/kvspan [ROUNDS [RUNS_PER_ROUND [SEED]]]
"""
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[3]


def seconds(command):
    """CPU and wall-clock seconds, MiB at most."""
    begin = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"{command} ended with {status}")
    return usage.ru_utime + usage.ru_stime, time.monotonic() - begin, usage.ru_maxrss / 1024


def main():
    kvspan = str(pathlib.Path(sys.argv[1]).resolve())
    rounds, runs, seed = (int(x) for x in (sys.argv[2:] + ["3", "8", "1"][len(sys.argv) - 2:]))
    grid = json.loads((ROOT / "tests/studies/sweep/grid.json").read_text())
    grid.update(chunks=[512], prompts=[0])
    random.seed(seed)
    sweeps, singles = [], []
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder) / "grid.json"
        config.write_text(json.dumps(grid))
        listed = subprocess.run([kvspan, "sweep", str(config), "--list"], cwd=ROOT, check=True,
                                capture_output=True, text=True).stdout.splitlines()
        specs = [line.split("\t")[10] for line in listed]
        for turn in range(rounds):
            out = f"{folder}/{turn}"
            sweeps.append(seconds([kvspan, "sweep", str(config), "--out", out, "--quiet"]))
            for spec in random.sample(specs, runs):
                singles.append(seconds([kvspan, "run", grid["traces"][0], "--policy", spec, "--chunk",
                                        "512", "--quiet", "--no-chart", "--csv", f"{folder}/one.csv"]))
    cpu, wall, memory = min(sweeps)
    one = sum(s[0] for s in singles) / len(singles)
    print(f"{len(specs)} cells: {cpu:.1f} CPU s ({wall:.1f} s, {memory:.0f} MiB), "
          f"{len(specs) / wall:.1f} cells a second")
    print(f"one run a cell: {one:.2f} CPU s each ({len(singles)} runs), "
          f"{one * len(specs):.0f} for all: {one * len(specs) / cpu:.1f} times as much")


if __name__ == "__main__":
    main()
