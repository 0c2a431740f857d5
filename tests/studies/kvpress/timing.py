#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a policy costs: kvspan's run less `full`, beside kvpress's score() and topk of one layer.

Both see the q, k, v of one synthetic layer (`kvspan synth`), in turns, with one thread each; the
shortest of the repeats counts. kvpress gets them in fp32, through a module whose query projection is
the identity and whose rotation is none, so that its queries are the trace's. README.md says more.
"""

import argparse
import pathlib
import subprocess
import sys
import time
import types

import numpy as np
import torch
from safetensors import safe_open

import kvpress

# Of kvpress: how to make the press at a compression ratio; of kvspan: the spec of the same rule.
CASES = [
    ("knorm", kvpress.KnormPress, "knorm(budget={B})"),
    ("keydiff", kvpress.KeyDiffPress, "keydiff(budget={B})"),
    ("lagkv", kvpress.LagKVPress, "lagkv(budget={B})"),
    ("cur", kvpress.CURPress, "cur(budget={B})"),
    ("expected_attention", kvpress.ExpectedAttentionPress, "expected_attention(budget={B})"),
    ("snapkv", kvpress.SnapKVPress, "snapkv(budget={B},window=64,kernel=5,pool=avg,order=pool_then_group)"),
    ("tova", kvpress.TOVAPress, "tova(budget={B})"),
]


class Layer(torch.nn.Module):
    """What presses ask of an attention layer."""

    def __init__(self, heads, kv_heads, dim, plain):
        super().__init__()
        self.config = types.SimpleNamespace(num_attention_heads=heads, num_key_value_heads=kv_heads)
        self.head_dim = dim
        self.layer_idx = 0
        # An identity with a weight, which ExpectedAttention multiplies by.
        self.q_proj = torch.nn.Identity() if plain else torch.nn.Linear(heads * dim, heads * dim, False)
        if not plain:
            torch.nn.init.eye_(self.q_proj.weight)

    def rotary_emb(self, like, positions):
        shape = (*positions.shape, self.head_dim)
        return torch.ones(shape, dtype=like.dtype), torch.zeros(shape, dtype=like.dtype)


def best(parties, repeats):
    """Seconds of every party, the shortest of so many turns."""
    shortest = [float("inf")] * len(parties)
    for turn in range(repeats):
        for i, run in enumerate(parties):
            start = time.perf_counter()
            run()
            shortest[i] = min(shortest[i], time.perf_counter() - start)
    return shortest


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kvspan", required=True, type=pathlib.Path)
    parser.add_argument("--before", type=pathlib.Path, help="another kvspan, which takes its turns as well")
    parser.add_argument("--work", required=True, type=pathlib.Path, help="where the trace is made, 200 MB")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--policy", action="append", choices=[name for name, _, _ in CASES])
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    heads, kv_heads, dim, n = 32, 8, 128, arguments.tokens
    budget = n // 5
    trace = arguments.work / f"layer-{n}.safetensors"
    if not trace.exists():
        shape = ["--query-heads", str(heads), "--kv-heads", str(kv_heads), "--head-dim", str(dim)]
        subprocess.run([arguments.kvspan, "synth", "--tokens", str(n + 1), "--prompt", str(n), "--layers", "1",
                        *shape, "--quiet", "--out", trace], check=True)
    with safe_open(trace, "np") as file:
        q, k, v = (file.get_tensor(f"layers.0.{x}")[:n] for x in "qkv")
    stored = k
    hidden = torch.from_numpy(q.astype(np.float32)).reshape(1, n, heads * dim)
    keys, values = (torch.from_numpy(x.astype(np.float32)).transpose(0, 1).unsqueeze(0).contiguous() for x in (k, v))
    positions = (torch.ones(1, n, dim), torch.zeros(1, n, dim))

    def press_run(press, layer):
        def run():
            scores = press.score(layer, hidden, keys, values, None, {"position_embeddings": positions})
            scores.topk(budget, dim=-1).indices

        return run

    def kvspan_run(program, spec):
        command = [program, "run", trace, "--policy", spec, "--threads", "1", "--fidelity", "none", "--quiet", "--no-chart"]
        return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    programs = [arguments.kvspan] + ([arguments.before] if arguments.before else [])
    columns = ["kvspan"] + (["before"] if arguments.before else []) + ["kvpress", "kvspan / kvpress"]
    print(f"{n} tokens, {heads}/{kv_heads} heads of {dim}, budget {budget}; ms, best of {arguments.repeats}")
    print(f"| policy | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    with torch.no_grad():
        for name, make, spec in CASES:
            if arguments.policy and name not in arguments.policy:
                continue
            layer = Layer(heads, kv_heads, dim, plain=name != "expected_attention")
            parties = [kvspan_run(p, s) for p in programs for s in ("full", spec.format(B=budget))]
            times = best([press_run(make(0.8), layer), *parties], arguments.repeats)
            ours = [times[i + 1] - times[i] for i in range(1, len(times), 2)]
            print(f"| `{name}` | {' | '.join(f'{1e3 * t:.0f}' for t in [*ours, times[0]])} | {ours[0] / times[0]:.2f} |")
            sys.stdout.flush()
    # The bytes that a scorer of keys cannot do without.
    (once,) = best([lambda: stored.view(np.uint16).copy()], arguments.repeats)
    print(f"\nkeys read and written once, as stored: {1e3 * once:.1f} ms")


if __name__ == "__main__":
    main()
