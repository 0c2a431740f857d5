#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares kvzip and kvcompose with the real KVzipPress and KVComposePress of kvpress.

`kvspan capture --replay` runs the model in kvspan and records the rows that ask for the context
again; the presses run the same model in transformers and are handed the same tokens (the trace's
`probe_ids`), so that requests are not compared, but everything that follows from them: hidden
states, scores, the norms of KVzip+, and the cut. Kept sets are compared head by head.
"""

import argparse
import json
import pathlib
import subprocess

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, DynamicCache

import kvpress


def kvspan(program, *arguments):
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, arguments))}\n{done.stderr}")


def passes_of(trace):
    """(begin, end, ids) of every pass of the trace's replay."""
    with safe_open(trace, "numpy") as file:
        probes = json.loads(file.metadata()["probes"])
    ids, first, out = load_file(trace)["probe_ids"], 0, []
    for p in probes:
        out.append((p["begin"], p["end"], torch.tensor([ids[first : first + p["rows"]].tolist()])))
        first += p["rows"]
    return out


def kvzip(model, ids, passes, ratio, **settings):
    """What KVzipPress keeps: bool [layers, kv_heads, tokens]."""
    press = kvpress.KVzipPress(ratio, **settings)

    def prepare(model, tokenizer, prev_postfix_size=8):
        config = model.config
        press.prefix_length = passes[0][0]  # read when this returns
        press.score_val = torch.zeros(config.num_hidden_layers, 1, config.num_key_value_heads, ids.shape[1])
        return [(ids[:, begin:end], asked) for begin, end, asked in passes]

    press.prepare = prepare
    with torch.no_grad(), press(model):
        model.model(input_ids=ids, past_key_values=DynamicCache())
    kept = np.ones((model.config.num_hidden_layers, model.config.num_key_value_heads, ids.shape[1]), bool)
    for l, layer in enumerate(model.model.layers):
        _, heads, tokens = layer.self_attn.masked_key_indices
        kept[l, heads.numpy(), tokens.numpy()] = False
        layer.self_attn.masked_key_indices = None
    return kept


def kvcompose(model, ids, ratio, structured):
    press = kvpress.KVComposePress(compression_ratio=ratio, structured=structured)
    masks = []
    press.compress_cache = lambda model: masks.extend(press.important_mask_per_kv_head)
    with torch.no_grad(), press(model):
        model.model(input_ids=ids, past_key_values=DynamicCache())
    return np.array([[head.numpy() for head in layer] for layer in masks])


def kept_by_kvspan(program, trace, spec, work, tokens):
    lifetimes = work / "lifetimes.safetensors"
    kvspan(program, "run", trace, "--policy", spec, "--fidelity", "none", "--lifetimes", lifetimes, "--no-chart")
    return load_file(lifetimes)["runs.0.death"][:, :, :tokens] > tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--kvspan", required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--chunk", type=int, default=200)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.5, 0.8])
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)

    config = json.loads((args.model / "config.json").read_text())
    ids = Tokenizer.from_file(str(args.model / "tokenizer.json")).encode(args.text.read_text()).ids
    ids = ([config["bos_token_id"]] + ids)[: args.prompt + 4]
    tokens = args.work / "ids.json"
    tokens.write_text(json.dumps(ids))
    traces = {}
    for kind, more in {"kvzip": ["--replay-chunk", args.chunk], "context": ["--replay-as", "context"]}.items():
        traces[kind] = args.work / f"{kind}.safetensors"
        kvspan(args.kvspan, "capture", "--model", args.model, "--tokens", tokens, "--bos", "none", "--prompt",
               args.prompt, "--teacher", "--replay", "--wo", "--dtype", "f32", "--quiet", "--out", traces[kind], *more)

    models = {
        attention: AutoModelForCausalLM.from_pretrained(
            args.model, dtype=torch.float32, attn_implementation=attention
        ).eval()
        for attention in ("sdpa", "eager")
    }
    prompt = torch.tensor([ids[: args.prompt]])
    passes = passes_of(traces["kvzip"])
    print(f"{len(passes)} passes, {args.prompt} tokens")
    for ratio in args.ratios:
        budget = round(args.prompt * (1 - ratio))
        # int() of a product then removes, or keeps, what is meant.
        removed, kept = 1 - (budget - 1e-9) / args.prompt, 1 - (budget + 1e-9) / args.prompt
        cases = {}
        for plus in (False, True):
            for layerwise in (False, True):
                spec = f"kvzip(budget={budget},plus={str(plus).lower()},cut={'layer' if layerwise else 'model'},sinks=4)"
                cases[spec] = (
                    "kvzip",
                    kvzip(models["sdpa"], prompt, passes, removed, layerwise=layerwise, kvzip_plus_normalization=plus),
                )
        for form in ("layers", "heads"):
            cases[f"kvcompose(budget={budget},form={form})"] = (
                "context",
                kvcompose(models["eager"], prompt, kept, form == "layers"),
            )
        for spec, (kind, theirs) in cases.items():
            ours = kept_by_kvspan(args.kvspan, traces[kind], spec, args.work, args.prompt)
            same = int((ours == theirs).all(axis=2).sum())
            print(
                f"{ratio:g} {spec}: {same} of {ours.shape[0] * ours.shape[1]} sets identical, "
                f"{int((theirs & ~ours).sum())} of {int(theirs.sum())} entries differ"
            )


if __name__ == "__main__":
    main()
