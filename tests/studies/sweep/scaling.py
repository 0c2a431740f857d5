#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a sweep of many cells would do on many machines, from the units of a measured one: who waits
for whom, what the journals carry, what merging takes. Python's standard library only.

usage: scaling.py FOLDER [--cells N] [--seconds-per-merged-cell S] [--fetch-us U]

Units (seconds, cost, cells, bytes of journal) are drawn with replacement from FOLDER's journals, and
handed to processes of one thread each:
  shards      dealt forth and back by cost, as --shard does
  counter     in the order of the plan, as processes of mpirun take them
  by cost     by the same counter, the costliest first
"""
import argparse
import heapq
import json
import pathlib
import random


def units_of(folder):
    """[(seconds, cost, cells, bytes)]: a unit's cells come before its record of work."""
    units = []
    for journal in sorted(pathlib.Path(folder, "journals").glob("*.journal")):
        cells = size = 0
        for line in journal.read_bytes().splitlines():
            record = json.loads(line[26:])
            if "file" in record:
                continue
            size += len(line) + 1
            if "cell" in record:
                cells += 1
            else:
                units.append((record["seconds"], record["cost"], cells, size))
                cells = size = 0
    return units


def dealt(units, processes):
    """Seconds until the last part ends."""
    parts = [0.0] * processes
    for place, unit in enumerate(sorted(units, key=lambda u: -u[1])):
        turn = place % (2 * processes)
        parts[min(turn, 2 * processes - 1 - turn)] += unit[0]
    return max(parts)


def counted(units, processes, fetch):
    """The same where whoever is free takes the next one; `fetch` seconds a time, one at a time."""
    free = [0.0] * processes
    counter = 0.0  # until when it is busy
    for unit in units:
        counter = max(counter, free[0]) + fetch
        heapq.heapreplace(free, counter + unit[0])
    return max(free)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--seconds-per-merged-cell", type=float, default=55e-6)
    parser.add_argument("--fetch-us", type=float, default=5)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    measured = units_of(args.folder)
    rng = random.Random(args.seed)
    units, cells = [], 0
    while cells < args.cells:
        units.append(rng.choice(measured))
        cells += units[-1][2]
    work = sum(u[0] for u in units)
    carried = sum(u[3] for u in units)
    longest = max(u[0] for u in units)
    in_plan = sorted(units, key=lambda u: (rng.random() < 0.5, -u[1]))  # two traces
    by_cost = sorted(units, key=lambda u: -u[1])
    print(f"{len(measured)} units measured; {len(units)} drawn: {cells} cells, {work / 3600:.1f} core "
          f"hours, the longest unit {longest:.0f} s; journals {carried / 1e6:.0f} MB; merging "
          f"{cells * args.seconds_per_merged_cell:.0f} s\n")
    print("| processes | units each | ideal s | shards | counter | by cost | appends / s | KB / s |")
    print("|---|---|---|---|---|---|---|---|")
    for processes in (1, 2, 4, 16, 64, 250, 1000):
        ideal = work / processes
        fetch = args.fetch_us * 1e-6
        ends = counted(in_plan, processes, fetch)
        print(f"| {processes} | {len(units) / processes:.0f} | {ideal:.0f} "
              f"| {dealt(units, processes) / ideal:.3f} | {ends / ideal:.3f} "
              f"| {counted(by_cost, processes, fetch) / ideal:.3f} | {len(units) / ends:.1f} "
              f"| {carried / ends / 1e3:.1f} |")


if __name__ == "__main__":
    main()
