#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Cuts tests/data/references.safetensors from the full reference files of independent programs.

    cut_references.py REFERENCE_DIR OUT

REFERENCE_DIR holds minimind2-logits-512, minimind2-sherlock-2048 and smollm2-pride-8192-check
(.safetensors). Needs numpy and safetensors. The tests use the full files instead when the
environment names their folder: KVSPAN_REFERENCE=REFERENCE_DIR.
"""

import pathlib
import sys

import numpy as np
from safetensors.numpy import load_file, save_file


def log_sum_exp(logits: np.ndarray) -> np.ndarray:
    most = logits.max(axis=1, keepdims=True).astype(np.float64)
    return (most[:, 0] + np.log(np.exp(logits - most).sum(axis=1))).astype(np.float32)


def main() -> None:
    folder, out = map(pathlib.Path, sys.argv[1:])
    logits = load_file(folder / "minimind2-logits-512.safetensors")["logits"]
    mini = load_file(folder / "minimind2-sherlock-2048.safetensors")
    smol = load_file(folder / "smollm2-pride-8192-check.safetensors")
    rows = np.linspace(0, 511, 32).round().astype(np.int32)
    qkv_rows = np.linspace(0, 2047, 16).round().astype(np.int32)
    cut = {
        "minimind2.token_ids": mini["token_ids"].astype(np.int32),
        "minimind2.nll": mini["nll"],
        "minimind2.logits.rows": rows,
        "minimind2.logits": logits[rows],
        "minimind2.argmax": logits.argmax(axis=1).astype(np.int32),
        "minimind2.lse": log_sum_exp(logits),
        "minimind2.qkv.rows": qkv_rows,
        "smollm2.token_ids": smol["token_ids"].astype(np.int32),
        "smollm2.nll": smol["nll"],
        "smollm2.logits.rows": smol["logits.rows"][[3, 15]],
        "smollm2.logits": smol["logits"][[3, 15]],
        "smollm2.attention.layers": np.array([0, 14, 29], np.int32),
        "smollm2.attention": smol["attention.row8191"][[0, 14, 29]].astype(np.float16),
    }
    for layer in range(8):
        for x in "qkv":
            cut[f"minimind2.layers.{layer}.{x}"] = mini[f"layers.{layer}.{x}"][qkv_rows]
    for layer in (0, 14, 29):
        for x in "qkv":
            cut[f"smollm2.layers.{layer}.{x}.last32"] = smol[f"layers.{layer}.{x}.last32"].astype(
                np.float16
            )
    cut = {name: np.ascontiguousarray(value) for name, value in cut.items()}
    about = "cut from full references by tests/tracegen/cut_references.py; see tests/data/README.md"
    save_file(cut, out, {"about": about})


if __name__ == "__main__":
    main()
