#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints the table of README.md, the whole catalogue on the bundled trace: a long prompt with a
short answer, the same tokens as a short prompt with a long answer, and all policies at one
footprint. Python's standard library only.

usage: tests/studies/catalogue/table.py build/release/cli/kvspan
"""
import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[3]
TRACE = ROOT / "traces" / "smollm2-passkey.safetensors"
BOUNDS = ["judgeq(scorer=oracle)", "foresightkv(scorer=golden)", "write_gate(gate=oracle)",
          "less(variant=oracle)"]


def run(kvspan, *options):
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "result.json"
        subprocess.run([kvspan, "run", str(TRACE), "--quiet", "--no-chart", "--out", str(out),
                        *options], check=True, stdout=subprocess.DEVNULL)
        runs = json.loads(out.read_text())["runs"]
    return {r["policy"].split("(")[0] + ("*" if r["bound"] else ""): r for r in runs}


def percent(x):
    return f"{100 * x:.1f}"


def cells(run, needle):
    decode = run["fidelity"]["decode"]
    error = decode["output_error"]
    out = [percent(run["footprint"]), percent(decode["retained_mass"]["mean"]),
           percent(error["mean"])]
    if needle:
        out.append(percent(run["spans"][0]["resident_share"]))
    return out


def main():
    kvspan = sys.argv[1]
    policies = [x for spec in ["all", *BOUNDS] for x in ("--policy", spec)]
    long = run(kvspan, *policies, "--budget", "20%")
    short = run(kvspan, *policies, "--budget", "20%", "--prompt", "512")
    matched = run(kvspan, "--policy", "all", "--prompt", "512", "--match", "footprint=70%")
    print("| | F as it is | R | E | N | F at 512 + 1,368 | R | E | at F = 70 % | R | N |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name, r in long.items():
        row = [name.replace("*", " (bound)"), *cells(r, True), *cells(short[name], False)]
        m = matched.get(name)
        if m is None or abs(m["footprint"] - 0.7) > 0.04:
            row += ["", "", ""]
        else:
            knob = [m["label"].split("(")[1].rstrip(")").split(",")[0]] if "(" in m["label"] else []
            decode = m["fidelity"]["decode"]
            row += [knob[0] if knob else "", percent(decode["retained_mass"]["mean"]),
                    percent(m["spans"][0]["resident_share"])]
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
