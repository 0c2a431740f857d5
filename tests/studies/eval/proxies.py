#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What `kvspan eval --proxies` found, as tables and a picture: figures of the replay against what became
of the model. Python's standard library only.

usage: proxies.py EVAL.json [PICTURE.svg]

Markdown to standard output: rank correlations with their intervals, and every policy at its budgets.
The picture: a point a policy and budget, means over samples, filled by its score.
"""
import html
import json
import pathlib
import statistics
import sys

WIDTH, HEIGHT, LEFT, TOP, GAP = 430, 300, 60, 30, 70
PANELS = [("retained_mass", "attention left in the replay, %", 100),
          ("output_error", "output error in the replay, %", 100)]


def mean(values):
    return statistics.fmean(v for v in values if v is not None)


def runs_of(document, task):
    """Means over the samples of a task: one dictionary a policy and budget, but full."""
    samples = [r for r in document["results"] if r["sample"]["task"] == task]
    out = []
    for policy in document["eval"]["tasks"][0]["policies"][1:]:
        runs = [next(r for r in s["runs"] if r["label"] == policy["label"]) for s in samples]
        found = [r["eval"]["replay"] for r in runs]
        if any(f is None for f in found):
            continue
        one = {key: mean(f[key] for f in found) for key in ("retained_mass", "output_error", "agreement")}
        one.update(label=policy["label"], method=runs[0]["method"], budget=runs[0]["budget"],
                   score=policy["score"], kl=policy["kl"], own=policy["retained_mass"],
                   footprint=policy["footprint"])
        out.append(one)
    return out


def tables(task, runs):
    print("| the replay's | the model's | rank correlation | 95 % interval |\n|---|---|---|---|")
    for p in task["proxies"]:
        low, high = p["interval"]
        print(f"| {p['proxy']} | {p['outcome']} | {p['rank_correlation']:.2f} | {low:.2f} to {high:.2f} |")
    print("\n| policy | score | KL, nats | attention left in the replay, % | along its own run, % | "
          "same entries at the end, % |\n|---|---|---|---|---|---|")
    methods = {}
    for run in runs:
        methods.setdefault(run["method"], []).append(run)

    def row(key, scale, digits):
        return lambda of: ", ".join(f"{scale * r[key]:.{digits}f}" for r in of)

    columns = [row("score", 1, 2), row("kl", 1, 2), row("retained_mass", 100, 0), row("own", 100, 0),
               row("agreement", 100, 0)]
    for method, of in sorted(methods.items(), key=lambda m: -max(r["score"] for r in m[1])):
        print(f"| `{method}` | " + " | ".join(column(of) for column in columns) + " |")


def picture(task, runs):
    worst = max(r["kl"] for r in runs)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * (WIDTH + GAP) + LEFT - GAP + 20}" '
             f'height="{HEIGHT + TOP + 60}" font-family="sans-serif" font-size="12">',
             '<rect width="100%" height="100%" fill="white"/>']
    for panel, (key, words, scale) in enumerate(PANELS):
        left = LEFT + panel * (WIDTH + GAP)
        values = [scale * r[key] for r in runs]
        low, high = min(values), max(values)
        high += 1e-9 if high == low else 0

        def x(value):
            return left + WIDTH * (value - low) / (high - low)

        def y(value):
            return TOP + HEIGHT * (1 - value / worst)

        parts.append(f'<rect x="{left}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" '
                     'stroke="#888"/>')
        for i in range(5):
            at, kl = low + (high - low) * i / 4, worst * i / 4
            parts.append(f'<text x="{x(at):.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{at:.0f}</text>')
            parts.append(f'<text x="{left - 6}" y="{y(kl) + 4:.1f}" text-anchor="end">{kl:.1f}</text>')
        parts.append(f'<text x="{left + WIDTH / 2}" y="{TOP + HEIGHT + 40}" text-anchor="middle">{words}</text>')
        for r, value in zip(runs, values):
            name = html.escape(f"{r['label']}: score {r['score']:.2f}, KL {r['kl']:.2f}")
            parts.append(f'<circle cx="{x(value):.1f}" cy="{y(r["kl"]):.1f}" r="4" stroke="#1f5fa8" '
                         f'fill="#1f5fa8" fill-opacity="{r["score"]:.2f}"><title>{name}</title></circle>')
    title = html.escape(pathlib.Path(task["task"]).name)
    parts.append(f'<text x="{LEFT}" y="18">KL from the full cache, nats, of {title}; a point a policy and '
                 'budget, filled by its score</text></svg>')
    return "\n".join(parts) + "\n"


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    document = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))
    task = document["eval"]["tasks"][0]
    runs = runs_of(document, task["task"])
    if not runs:
        sys.exit(f"{sys.argv[1]}: found no replays, expected a file of eval --proxies")
    tables(task, runs)
    if len(sys.argv) > 2:
        pathlib.Path(sys.argv[2]).write_text(picture(task, runs), encoding="utf-8")


if __name__ == "__main__":
    main()
