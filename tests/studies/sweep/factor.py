#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a sweep saves: CPU seconds of a random sample of grid.json's cells in one setting, as a sweep
and as one `kvspan run` each, in one go. Python's standard library only.

usage: factor.py build/release/cli/kvspan [CELLS [SEED]]
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
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 60
    random.seed(int(sys.argv[3]) if len(sys.argv) > 3 else 1)
    grid = json.loads((ROOT / "tests/studies/sweep/grid.json").read_text())
    grid.update(chunks=[512], prompts=[0])
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder) / "grid.json"
        config.write_text(json.dumps(grid))
        listed = subprocess.run([kvspan, "sweep", str(config), "--list"], cwd=ROOT, check=True,
                                capture_output=True, text=True).stdout.splitlines()
        specs = random.sample([line.split("\t")[10] for line in listed], count)
        grid.update(policies=specs)
        del grid["budgets"]
        config.write_text(json.dumps(grid))
        out = f"{folder}/results"
        cpu, wall, memory = seconds([kvspan, "sweep", str(config), "--out", out, "--quiet"])
        one = sum(seconds([kvspan, "run", grid["traces"][0], "--policy", spec, "--chunk", "512",
                           "--quiet", "--no-chart", "--csv", f"{folder}/one.csv"])[0]
                  for spec in specs)
    print(f"{count} cells: {cpu:.1f} CPU s, {wall:.1f} s, {memory:.0f} MiB, {count / cpu:.1f} cells a "
          f"CPU second; as one run each {one:.1f} CPU s: {one / cpu:.1f} times as much")


if __name__ == "__main__":
    main()
