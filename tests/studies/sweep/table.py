#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The table of README.md: critical footprints of every method in every setting.

usage: table.py REPORT.json     of `kvspan report FOLDER --out REPORT.json`
"""
import json
import pathlib
import sys


def text(critical):
    sign = {"exact": "", "below": "< ", "above": "> "}[critical["kind"]]
    return f"{sign}{100 * critical['value']:.1f}"


def order(critical):
    return (critical["kind"] == "above", critical["value"])


def main():
    report = json.loads(pathlib.Path(sys.argv[1]).read_text())
    groups = sorted(range(len(report["groups"])),
                    key=lambda g: (report["groups"][g]["prompt"], -report["groups"][g]["chunk"] or -1e9))
    names = [f"{'1,868 + 12' if report['groups'][g]['prompt'] == 0 else '512 + 1,368'}, "
             f"{report['groups'][g]['chunk'] or 'one pass'}" for g in groups]
    methods = {}
    label = {}
    for curve in report["curves"]:
        methods.setdefault(curve["method"], {})[curve["group"]] = curve["critical_footprint"]
        if curve["bound"] or curve["stand_in"]:
            label[curve["method"]] = " (bound)" if curve["bound"] else " (stand-in)"
    print("| method | " + " | ".join(names) + " |")
    print("|---" * (len(groups) + 1) + "|")
    best = {m: min(order(c) for c in of.values()) for m, of in methods.items()}
    for method in sorted(methods, key=lambda m: best[m]):
        cells = [text(methods[method][g]) if g in methods[method] else "" for g in groups]
        print(f"| {method}{label.get(method, '')} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
