#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Whether the intervals of `sweep --sample` hold what a sweep of everything gives, as often as they
say, and what a sample saves. Python's standard library only.

usage: coverage.py KVSPAN TRACE [DRAWS [PROMPT [SAMPLE...]]]

Each sample is drawn DRAWS times (seeds 0, 1, ...; 100 unless given). Held: draws and cells whose
interval has the exact retained attention in it; the same of critical footprints, which lie between
those at both ends.
"""
import csv
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

POLICIES = ["streaming_llm", "h2o", "tova", "snapkv", "knorm", "keydiff", "pyramidkv", "quest"]


def run(*command):
    """CPU seconds."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"{command} ended with {status}")
    return usage.ru_utime + usage.ru_stime


class Sweeps:
    def __init__(self, kvspan, trace, prompt, folder):
        self.kvspan, self.folder, self.swept = kvspan, pathlib.Path(folder), 0
        self.grid = {"traces": [str(pathlib.Path(trace).resolve())], "policies": POLICIES,
                     "budgets": ["10%", "20%", "40%", "60%", "80%"], "prompts": [prompt],
                     "fidelity": "all"}

    def sweep(self, **more):
        """CPU seconds, cells.csv as dictionaries, and the report's curves with their seeds."""
        self.swept += 1
        config, out = self.folder / f"{self.swept}.json", self.folder / str(self.swept)
        config.write_text(json.dumps({**self.grid, **more}))
        seconds = run(self.kvspan, "sweep", str(config), "--out", str(out), "--quiet")
        run(self.kvspan, "report", str(out), "--out", str(out / "r.json"), "--draws", "1", "--quiet")
        report = json.loads((out / "r.json").read_text())
        curves = [(report["groups"][c["group"]]["seed"], c) for c in report["curves"]]
        with open(out / "cells.csv", newline="") as file:
            return seconds, [r for r in csv.DictReader(file) if r["status"] == "done"], curves


def place(critical):
    """For comparing: nothing is below the smallest footprint that was measured."""
    return {"below": 0, "above": math.inf}.get(critical["kind"], critical["value"])


def main():
    kvspan, trace = sys.argv[1:3]
    draws = int(sys.argv[3]) if len(sys.argv) > 3 else 100
    prompt = int(sys.argv[4]) if len(sys.argv) > 4 else 0
    samples = sys.argv[5:] or ["rows=16", "rows=64", "heads=4", "layers=2"]
    with tempfile.TemporaryDirectory() as folder:
        sweeps = Sweeps(str(pathlib.Path(kvspan).resolve()), trace, prompt, folder)
        exact_seconds, cells, curves = sweeps.sweep()
        exact = {c["policy"]: float(c["retained_attention_mean_share"]) for c in cells}
        critical = {c["method"]: place(c["critical_footprint"]) for _, c in curves}
        print("| sample | draws | held % | half width, points | bias, points | critical held % | "
              "CPU time |\n|---|---|---|---|---|---|---|")
        for sample in samples:
            seconds, _, _ = sweeps.sweep(sample=sample)
            _, cells, curves = sweeps.sweep(sample=sample, seeds=list(range(draws)))
            held, halves, errors = [], [], []
            for cell in cells:
                low, mean, high = (float(cell[f"retained_attention_{end}_share"])
                                   for end in ("low", "mean", "high"))
                truth = exact[cell["policy"]]
                held.append(low - 1e-9 <= truth <= high + 1e-9)
                halves.append((high - low) / 2)
                errors.append(mean - truth)
            between = []
            for _, curve in curves:
                ends = curve["critical_footprint_interval"]
                between.append(place(ends["low"]) - 1e-9 <= critical[curve["method"]]
                               <= place(ends["high"]) + 1e-9)
            print(f"| {sample} | {draws} | {100 * statistics.mean(held):.1f} "
                  f"| {100 * statistics.mean(halves):.2f} | {100 * statistics.mean(errors):.3f} "
                  f"| {100 * statistics.mean(between):.1f} | {seconds / exact_seconds:.2f} |")


if __name__ == "__main__":
    main()
