#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Recomputes a sweep's report from its cells, by a second program: critical footprints and peaks,
Pareto fronts, ranks, bootstrap intervals. Written from footprint's definitions and the comments of
sim/sweep/curves.h; Python's standard library only.

usage: check.py FOLDER REPORT.json     of `kvspan report FOLDER --out REPORT.json`
       check.py                        prints the vectors of tests/sim/sweep/report_test.cpp
"""
import csv
import json
import math
import pathlib
import sys
from collections import defaultdict

MASK = (1 << 64) - 1


def splitmix64(x):
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def uniform(seed, *keys):
    x = splitmix64(seed)
    for key in keys:
        x = splitmix64(x ^ key)
    return ((x >> 12) + 0.5) * 2.0 ** -52


def critical(points, least):
    """points: (x, quality). The smallest x from which on a quality of `least` is kept."""
    if not points:
        return "unknown", None
    best = {}
    for x, quality in points:
        best[x] = max(quality, best.get(x, -math.inf))
    xs = sorted(best)
    if best[xs[-1]] < least:
        return "above", xs[-1]
    if best[xs[0]] >= least:
        return "below", xs[0]
    for a, b in zip(xs, xs[1:]):
        if best[a] < least <= best[b]:
            return "exact", a + (b - a) * (least - best[a]) / (best[b] - best[a])
    raise AssertionError("no crossing")


def front(points):
    """points: (x, quality, name). Brute force: those that no other point beats."""
    def beaten(p):
        return any(q[0] <= p[0] and q[1] >= p[1] and (q[0] < p[0] or q[1] > p[1]) for q in points)
    return {p[2] for p in points if not beaten(p)}


def ranks(values):
    order = sorted(values)
    return [(order.index(v) + 1 + len(order) - order[::-1].index(v)) / 2 for v in values]


def bootstrap(values, seed, draws):
    n = len(values)
    means = sorted(sum(values[int(uniform(seed, b, i) * n)] for i in range(n)) / n
                   for b in range(draws))
    return means[max(1, math.ceil(0.025 * draws)) - 1], means[max(1, math.ceil(0.975 * draws)) - 1]


def close(a, b, what):
    if (a is None) != (b is None) or (a is not None and not math.isclose(a, b, rel_tol=1e-9)):
        raise AssertionError(f"{what}: {a} and {b}")


def group_of(row):
    return (row["prompt_option_tokens"], row["evict_at"], row["chunk_tokens"],
            row["kv_element_bytes"], row["seed"], row["prefill"], row["layout"])


def check(folder, report):
    least = report["retained_least"]
    names = [tuple(str(g[k]) for k in ("prompt", "evict_at", "chunk", "kv_bytes", "seed", "prefill",
                                       "layout")) for g in report["groups"]]
    curves, panels = defaultdict(list), defaultdict(list)
    with open(pathlib.Path(folder) / "cells.csv", newline="") as file:
        for row in csv.DictReader(file):
            if row["status"] != "done" or not row["retained_attention_mean_share"]:
                continue
            key = (row["trace"], names.index(group_of(row)))
            curves[(*key, row["method"], row["bound"] == "true")].append(row)
            if row["bound"] == "false":
                panels[key].append((float(row["footprint_share"]),
                                    float(row["retained_attention_mean_share"]), row["cell"]))
    if len(curves) != len(report["curves"]):
        raise AssertionError("number of curves")
    order = {}
    for curve in report["curves"]:
        key = (curve["trace"], curve["group"], curve["method"], curve["bound"])
        rows = curves[key]
        for field, column in (("critical_footprint", "footprint_share"),
                              ("critical_peak_kv", "peak_kv_share"),
                              ("critical_peak_bytes", "peak_bytes")):
            kind, x = critical([(float(r[column]), float(r["retained_attention_mean_share"]))
                                for r in rows], least)
            if kind != curve[field]["kind"]:
                raise AssertionError(f"{key} {field}: {kind} and {curve[field]}")
            close(x, curve[field]["value"], f"{key} {field}")
            if field == "critical_footprint":
                check_estimates(curve, rows, least)
            if field == "critical_footprint" and not curve["bound"]:
                order[key[:3]] = x if kind in ("exact", "below") else math.inf
        check_regrets(curve, rows, least)
    for panel in report["fronts"]:
        if set(panel["cells"]) != front(panels[(panel["trace"], panel["group"])]):
            raise AssertionError(f"front of {panel['trace']}")
    ranked = check_ranking(report, order)
    print(f"{len(curves)} curves, {len(report['fronts'])} fronts and {ranked} ranked methods agree")


def check_estimates(curve, rows, least):
    """Of a sample: the critical footprints at the ends of the intervals; null without one."""
    rows = [r for r in rows if r["retained_attention_low_share"]]
    if not rows:
        if curve["critical_footprint_interval"] is not None:
            raise AssertionError(f"{curve['method']}: an interval of nothing")
        return
    for end, column in (("low", "high"), ("high", "low")):  # what retains more needs less
        kind, x = critical([(float(r["footprint_share"]),
                             float(r[f"retained_attention_{column}_share"])) for r in rows], least)
        if kind != curve["critical_footprint_interval"][end]["kind"]:
            raise AssertionError(f"{curve['method']}: {kind} at the {end} end")
        close(x, curve["critical_footprint_interval"][end]["value"], curve["method"])
    for r in rows:
        low, mean, high = (float(r[f"retained_attention_{c}_share"]) for c in ("low", "mean", "high"))
        if not low - 1e-9 <= mean <= high + 1e-9:
            raise AssertionError(f"{r['cell']}: {mean} is not in [{low}, {high}]")


def check_regrets(curve, rows, least):
    """Against the best eviction: null where no cell has a regret."""
    rows = [r for r in rows if r["regret_share"]]
    if not rows:
        if curve["regret"] is not None or curve["critical_optimum_footprint"] is not None:
            raise AssertionError(f"{curve['method']}: a regret of nothing")
        return
    regrets = [float(r["regret_share"]) for r in rows]
    close(min(regrets), curve["regret"]["low"], curve["method"])
    close(max(regrets), curve["regret"]["high"], curve["method"])
    kind, x = critical([(float(r["optimum_footprint_share"]),
                         float(r["retained_attention_mean_share"])) for r in rows], least)
    if kind != curve["critical_optimum_footprint"]["kind"]:
        raise AssertionError(f"{curve['method']}: {kind} of the optimum")
    close(x, curve["critical_optimum_footprint"]["value"], curve["method"])
    for r in rows:
        best = float(r["optimum_retained_attention_share"])
        if abs(best - float(r["retained_attention_mean_share"]) - float(r["regret_share"])) > 1e-6:
            raise AssertionError(f"{r['cell']}: regret")
        if float(r["optimum_footprint_share"]) > 1e-9 + (
                float(r["footprint_share"]) + float(r["host_footprint_share"])):
            raise AssertionError(f"{r['cell']}: the optimum needs more")


def check_ranking(report, order):
    for g in range(len(report["groups"])):
        traces = sorted({t for t, group, _ in order if group == g})
        methods = sorted({m for _, group, m in order if group == g})
        methods = [m for m in methods if all((t, g, m) in order for t in traces)]
        places = [ranks([order[(t, g, m)] for m in methods]) for t in traces]
        found = {r["method"]: r for r in report["ranking"] if r["group"] == g}
        if sorted(found) != methods:
            raise AssertionError("ranked methods")
        for i, method in enumerate(methods):
            mine = [p[i] for p in places]
            close(sum(mine) / len(mine), found[method]["mean_rank"], method)
            if len(traces) < 2:
                continue
            # The order of a trace's values decides what a draw takes: that of the report.
            inputs = list(dict.fromkeys(c["trace"] for c in report["curves"] if c["group"] == g))
            mine = [places[traces.index(t)][i] for t in inputs]
            low, high = bootstrap(mine, report["bootstrap"]["seed"], report["bootstrap"]["draws"])
            close(low, found[method]["rank_interval"]["low"], method)
            close(high, found[method]["rank_interval"]["high"], method)
    return len(report["ranking"])


def vectors():
    print("bootstrap {3, 1, 4, 1, 5, 9, 2, 6}, seed 7, 1000 draws:",
          bootstrap([3, 1, 4, 1, 5, 9, 2, 6], 7, 1000))
    print("bootstrap {0.25, 0.5}, seed 0, 40 draws:", bootstrap([0.25, 0.5], 0, 40))
    line = [(0.1 * i + 0.03 * (i % 3), 0.5 + 0.05 * i + 0.04 * (i % 2)) for i in range(1, 10)]
    print("critical of the line of the test at 0.83:", critical(line, 0.83))
    points = [(uniform(1, i), uniform(2, i), i) for i in range(200)]
    print("front of 200 uniform points:", sorted(front([(x, round(q, 1), i) for x, q, i in points])))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        check(sys.argv[1], json.loads(pathlib.Path(sys.argv[2]).read_text()))
    else:
        vectors()
