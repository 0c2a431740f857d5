#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws figure3.svg: the footprint axis of Figure 3 of arXiv 2506.17121, as published and as `kvspan
predict` computes it from the published lengths. Python's standard library only.

usage: tests/studies/figure3/plot.py build/release/cli/kvspan
"""
import json
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
COLOURS = {"PruLong": "#0072B2", "DuoAttention": "#E69F00", "PyramidKV patched": "#D55E00"}
SHAPES = {"PruLong": "circle", "DuoAttention": "square", "PyramidKV patched": "triangle"}


def specification(method, s, program):
    """As the paper's metric counts, or as its program holds entries."""
    if method == "PyramidKV patched":
        settings = "preset=prulong" if program else "window=64,pool=avg,kernel=5"
        return f"chunked(pyramidkv(budget={round(100 * (1 - s))}%,{settings}),variant=patched)"
    if method == "DuoAttention":
        return f"duoattention(sparsity={s:.1f},sinks=128,window=1024)"
    return f"prulong(sparsity={s:.1f},sinks=128,window=1024{',full=quantile' if program else ''})"


def computed(kvspan, data, task, method, shares, output_share, program=False):
    """Footprints in percent, mean over the data sets of the task."""
    total = [0.0] * len(shares)
    for n, m in data["lengths"][task]:
        out = HERE / ".predicted.json"
        command = [kvspan, "predict", "--model", "Llama-3.1-8B", "--prompt", str(n),
                   "--gen", str(round(m * output_share)), "--chunk", str(data["chunk"]),
                   "--out", str(out)]
        for s in shares:
            command += ["--policy", specification(method, s, program)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        runs = json.loads(out.read_text())["runs"]
        out.unlink()
        for i, run in enumerate(runs):
            total[i] += 100 * run["footprint"]
    return [t / len(data["lengths"][task]) for t in total]


def marker(shape, x, y, colour):
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
    if shape == "square":
        return f'<rect x="{x - 3.6:.1f}" y="{y - 3.6:.1f}" width="7.2" height="7.2" fill="{colour}"/>'
    return f'<path d="M{x:.1f} {y - 4.6:.1f}l4.4 8h-8.8z" fill="{colour}"/>'


def main():
    kvspan = sys.argv[1]
    data = json.loads((HERE / "figure3.json").read_text())
    tasks = list(data["lengths"])
    width, panel, height, gap = 1240, 270, 210, 30
    svg = []
    text = lambda x, y, s, size=12, fill="#222", anchor="start", weight="normal": svg.append(
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" text-anchor="{anchor}" font-weight="{weight}">{s}</text>')
    text(28, 34, "KV footprint of Llama-3.1-8B, as published and as kvspan computes it", 19, weight="600")
    text(28, 55, "markers: read off Figure 3 of arXiv 2506.17121 (about ±0.5 points); lines: kvspan predict, from the "
         "prompt and output lengths of its Table 4, chunks of 32,768", 12.5, "#555")
    x = 28
    for method, colour in COLOURS.items():
        svg.append(marker(SHAPES[method], x + 6, 76, colour))
        svg.append(f'<path d="M{x + 16} 76h22" stroke="{colour}" stroke-width="2"/>')
        text(x + 44, 80, method, 12.5)
        x += 60 + 8 * len(method)
    svg.append(f'<path d="M{x} 76h26" stroke="#777" stroke-width="1.6" stroke-dasharray="4 3"/>')
    text(x + 32, 80, "the same with shorter outputs: 0.70 of the nominal length (HTML→TSV), 0.45 (Travel)", 12.5)
    worst = worst_program = most_apart = 0.0
    for i, task in enumerate(tasks):
        left = 52 + (i % 4) * (panel + gap)
        top = 126 + (i // 4) * (height + 64)
        px = lambda s: left + panel * s
        py = lambda f: top + height * (100 - f) / 80
        text(left, top - 10, task.replace(">", "&gt;"), 14, weight="600")
        for f in range(20, 101, 20):
            svg.append(f'<path d="M{left} {py(f):.1f}h{panel}" stroke="#e4e4e4"/>')
            text(left - 6, py(f) + 4, f"{f}", 11, "#666", "end")
        for s in (0, .2, .4, .6, .8, 1):
            text(px(s), top + height + 16, f"{s:g}", 11, "#666", "middle")
        if i >= 4:
            text(left + panel / 2, top + height + 34, "share evicted, or of streaming heads", 11.5, "#555", "middle")
        if i % 4 == 0:
            text(left - 34, top - 27, "footprint, %", 11.5, "#555")
        for curve in (c for c in data["curves"] if c["task"] == task):
            method, points = curve["method"], curve["points"]
            shares = [p[0] for p in points]
            colour = COLOURS[method]
            for share, style in ((1.0, ""), (data["output_share"].get(task), ' stroke-dasharray="4 3"')):
                if share is None:
                    continue
                values = computed(kvspan, data, task, method, shares, share)
                line = "L".join(f"{px(s):.1f} {py(v):.1f}" for s, v in zip(shares, values))
                svg.append(f'<path d="M{line}" fill="none" stroke="{colour}" stroke-width="1.8"{style}/>')
                if share != 1.0 or task not in data["output_share"]:
                    worst = max([worst] + [abs(v - p[1]) for v, p in zip(values, points)])
                    held = computed(kvspan, data, task, method, shares, share, program=True)
                    worst_program = max([worst_program] + [abs(v - p[1]) for v, p in zip(held, points)])
                    most_apart = max([most_apart] + [abs(v - w) for v, w in zip(held, values)])
            svg.extend(marker(SHAPES[method], px(s), py(f), colour) for s, f in points)
    bottom = 126 + 2 * (height + 64)
    text(28, bottom, f"largest distance between line and marker: {worst:.2f} points (HTML→TSV and Travel: dashed line)", 12.5, "#555")
    body = "\n".join(svg)
    (HERE / "figure3.svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + 20}" width="{width}" height="{bottom + 20}" '
        f'font-family="Helvetica, Arial, sans-serif">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n')
    print(f"figure3.svg: largest distance {worst:.2f} points")
    print(f"as the authors' program runs (preset=prulong, full=quantile): largest distance {worst_program:.2f} "
          f"points, and at most {most_apart:.2f} from the lines")


if __name__ == "__main__":
    main()
