#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Sweeps that come to harm, by hand: a journal cut at every byte, and processes killed at random
moments. Each is gone on with, and has to end with the bytes of a sweep that nobody touched.

usage: kill.py build/dev/cli/kvspan [KILLS [SEED]]
"""
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

TRACES = pathlib.Path(__file__).resolve().parents[3] / "traces"


def sweep(kvspan, out, *options, seconds=None):
    command = [kvspan, "sweep", str(TRACES / "tiny-paper.safetensors"), *options, "--quiet", "--out",
               str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    if seconds is not None:
        time.sleep(seconds)
        process.kill()
    return process.wait()


def cells(out):
    return (out / "cells.csv").read_bytes()


def cut_everywhere(kvspan, folder):
    options = ["--policy", "full", "--policy", "tova", "--budget", "2"]
    sweep(kvspan, folder / "whole", *options)
    journal = next((folder / "whole" / "journals").glob("*.journal")).read_bytes()
    for size in range(len(journal) + 1):
        out = folder / "cut"
        (out / "journals").mkdir(parents=True)
        (out / "journals" / "cut.journal").write_bytes(journal[:size])
        if sweep(kvspan, out, *options) != 0 or cells(out) != cells(folder / "whole"):
            sys.exit(f"cut after byte {size}: another result")
        shutil.rmtree(out)
    print(f"cut after each of {len(journal) + 1} bytes: the same result")


def kill_at_random(kvspan, folder, kills, seed):
    options = ["--policy", "all", "--budget", "2,4,50%", "--chunk", "0,2,4", "--prompt", "0,3,5",
               "--seed", "0,1"]
    begin = time.monotonic()
    sweep(kvspan, folder / "all", *options)
    whole = time.monotonic() - begin
    random.seed(seed)
    killed, ended, sweeps = 0, 0, 0
    while killed < kills:
        out = folder / f"killed-{sweeps}"
        sweeps += 1
        for _ in range(8):
            code = sweep(kvspan, out, *options, seconds=random.uniform(0, whole))
            killed, ended = killed + (code < 0), ended + (code == 0)
        if sweep(kvspan, out, *options) != 0 or cells(out) != cells(folder / "all"):
            sys.exit(f"seed {seed}, sweep {sweeps}: another result")
        shutil.rmtree(out)
    print(f"{killed} kills in {sweeps} sweeps ({ended} ended first): the same result")


def main():
    kvspan = str(pathlib.Path(sys.argv[1]).resolve())
    kills = int(sys.argv[2]) if len(sys.argv) > 2 else 200
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    with tempfile.TemporaryDirectory() as folder:
        cut_everywhere(kvspan, pathlib.Path(folder))
        kill_at_random(kvspan, pathlib.Path(folder), kills, seed)


if __name__ == "__main__":
    main()
