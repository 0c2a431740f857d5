#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares the first, second and third cut of kvpress's DecodingPress with kvspan's decoding(...).

usage: later_cuts.py --model MODEL --text TEXT --kvspan PROGRAM [--prompt N] [--targets B,...] [--ties places]

After a cut the keys that a model computes are those of a cut cache, and a trace has the full cache's. So
kvpress's own hook is called here layer by layer on the full cache's keys, values and hidden states, which
are appended to the cache that it cut: real press, teacher-forced vectors. Its buffered queries get the
rotation of their own rows (kvspan's convention; README.md). --ties places replaces torch's top-k, which
has no rule for equal scores, by a stable sort, as kvspan breaks ties.
"""

import argparse
import pathlib
import tempfile
import types

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import DynamicCache

import compare
import kvpress

EVERY, WINDOW, CUTS = 16, 8, 3
VOTES = f"window={WINDOW},kernel=5,pool=avg,order=pool_then_group"

# name, base press, kvspan's policy
CASES = [
    ("Knorm", lambda: kvpress.KnormPress(), "knorm"),
    ("KeyDiff", lambda: kvpress.KeyDiffPress(), "keydiff"),
    ("StreamingLLM", lambda: kvpress.StreamingLLMPress(), "streaming_llm(sinks=4,window={recent})"),
    ("SnapKV", lambda: kvpress.SnapKVPress(window_size=WINDOW), f"snapkv({VOTES})"),
    ("CUR", lambda: kvpress.CURPress(), "cur"),
    ("LagKV", lambda: kvpress.LagKVPress(lag_size=32), "lagkv(lag=32)"),
]


class Hidden:
    """What each attention module was given, row by row, and the rotations of all positions."""

    def __init__(self, runner):
        self.states = [[] for _ in runner.layers]

        def hook(module, _, kwargs, __):
            self.states[module.layer_idx].append(kwargs["hidden_states"])

        hooks = [layer.register_forward_hook(hook, with_kwargs=True) for layer in runner.layers]
        cache = DynamicCache()
        runner.prefill(cache)
        runner.decode(cache, range(runner.prompt, runner.ids.shape[1]))
        for h in hooks:
            h.remove()
        self.states = [torch.cat(rows, dim=1) for rows in self.states]
        positions = torch.arange(runner.ids.shape[1])[None]
        self.rotation = runner.model.model.rotary_emb(self.states[0], positions)


def cuts_of(press, runner, hidden):
    """returns bool [cuts, layers, kv_heads, tokens]: what lies in the cache right after each cut."""
    heads, tokens = runner.config.num_key_value_heads, runner.ids.shape[1]
    kept = np.zeros((CUTS, len(runner.layers), heads, tokens), bool)
    for l, module in enumerate(runner.layers):
        cache = DynamicCache()
        for layer in range(l):  # the press looks its layer up by index
            cache.update(torch.zeros(1, heads, 1, 1), torch.zeros(1, heads, 1, 1), layer)
        cache.update(runner.keys[l][None, :, : runner.prompt], runner.values[l][None, :, : runner.prompt], l)
        for row in range(runner.prompt, runner.prompt + CUTS * EVERY):
            cache.update(runner.keys[l][None, :, row : row + 1], runner.values[l][None, :, row : row + 1], l)
            kwargs = {
                "hidden_states": hidden.states[l][:, row : row + 1],
                "past_key_values": cache,
                "cache_position": torch.tensor([row]),
                "position_embeddings": tuple(x[:, : row + 1] for x in hidden.rotation),
            }
            press.forward_hook(module, [], kwargs, [None, None])
            cut, rest = divmod(row + 1 - runner.prompt, EVERY)
            if rest == 0:
                for h in range(heads):
                    held = cache.layers[l].keys[0, h].numpy()
                    kept[cut - 1, l, h, compare.positions_of(held, runner.keys[l][h].numpy())] = True
    return kept


def stable_topk(self, k, dim=-1):
    values, indices = self.sort(dim=dim, descending=True, stable=True)
    return types.SimpleNamespace(values=values.narrow(dim, 0, k), indices=indices.narrow(dim, 0, k))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=pathlib.Path, required=True, help="Hugging Face folder, Llama type")
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--kvspan", required=True, help="the program")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--targets", default="100,300", help="entries after a cut")
    parser.add_argument("--ties", choices=["torch", "places"], default="places")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    if args.ties == "places":
        torch.Tensor.topk = stable_topk
    tokens = compare.read_tokens(args.model, args.text.read_text(), args.prompt + CUTS * EVERY + 1)
    runner = compare.Runner(str(args.model), tokens, args.prompt, "sdpa")
    hidden = Hidden(runner)
    print(f"| press | target | kvspan | {' | '.join(f'identical after cut {c + 1}' for c in range(CUTS))} |")
    print("|---|---|---|" + "---|" * CUTS)
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        trace = work / "trace.safetensors"
        runner.write_trace(trace)
        kvspan = compare.Kvspan(args.kvspan, work, 1)
        for target in map(int, args.targets.split(",")):
            for name, base, policy in CASES:
                press = kvpress.DecodingPress(base(), compression_interval=EVERY, target_size=target)
                theirs = cuts_of(press, runner, hidden)
                for order in ("cache", "token"):
                    spec = f"decoding({policy.format(recent=target - 4)},every={EVERY},target={target},order={order})"
                    used, _, refused = kvspan.kept(trace, [spec], 1)
                    if used is None:
                        raise SystemExit("later_cuts.py: " + "; ".join(refused))
                    death = load_file(work / "lifetimes.safetensors")["runs.0.death"]
                    same = []
                    for cut in range(CUTS):
                        end = args.prompt + (cut + 1) * EVERY
                        ours = death[:, :, :end] > end
                        same.append(int((ours == theirs[cut, :, :, :end]).all(-1).sum()))
                    sets = theirs.shape[1] * theirs.shape[2]
                    cells = " | ".join(f"{s} of {sets}" for s in same)
                    print(f"| Decoding({name}) | {target} | `{spec}` | {cells} |", flush=True)


if __name__ == "__main__":
    main()
