#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares kvzip and kvcompose, fast_kvzip and kvzap, with the real presses of kvpress.

`kvspan capture --replay` runs the model in kvspan and records the rows that ask for the context
again; the presses run the same model in transformers and are handed the same tokens (the trace's
`probe_ids`), so that requests are not compared, but everything that follows from them: hidden
states, scores, the norms of KVzip+, and the cut. Kept sets are compared head by head. The gates of
FastKVzipPress and the model of KVzapPress get random weights: their scores go to kvspan in a file,
and what is compared is what becomes of them.
"""

import argparse
import json
import pathlib
import subprocess

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, DynamicCache

import kvpress
from kvpress.presses.fastkvzip_press import FastKVzipGate
from kvpress.presses.kvzap_press import KVzapConfig, KVzapModel


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
    return left_unmasked(model, ids, press)


def left_unmasked(model, ids, press):
    with torch.no_grad(), press(model):
        model.model(input_ids=ids, past_key_values=DynamicCache())
    kept = np.ones((model.config.num_hidden_layers, model.config.num_key_value_heads, ids.shape[1]), bool)
    for l, layer in enumerate(model.model.layers):
        if layer.self_attn.masked_key_indices is not None:
            _, heads, tokens = layer.self_attn.masked_key_indices
            kept[l, heads.numpy(), tokens.numpy()] = False
        layer.self_attn.masked_key_indices = None
    return kept


def write_scores(path, scores, tokens):
    """Scores [layers, heads, prompt] as a file of all tokens of the trace."""
    padded = np.zeros((*scores.shape[:2], tokens), np.float32)
    padded[:, :, : scores.shape[2]] = scores
    save_file({"scores": padded}, path)


def fast_kvzip(model, ids, ratio, layerwise):
    """What FastKVzipPress keeps with random gates, and their scores."""
    c = model.config
    torch.manual_seed(1)
    press = kvpress.FastKVzipPress(ratio, layerwise=layerwise)
    group = c.num_attention_heads // c.num_key_value_heads
    press.gates = [
        FastKVzipGate(l, c.hidden_size, c.num_key_value_heads, group, torch.float32).eval()
        for l in range(c.num_hidden_layers)
    ]
    for gate in press.gates:
        torch.nn.init.normal_(gate.k_base)
        torch.nn.init.normal_(gate.b)
    return left_unmasked(model, ids, press), press.score_val[:, 0].numpy()


def kvzap(model, ids, share):
    """What DMSPress(KVzapPress) keeps with a random model, its scores, and a threshold so high."""
    c = model.config
    torch.manual_seed(2)
    inner = kvpress.KVzapPress(model_type="linear")
    inner.kvzap_model = KVzapModel(
        KVzapConfig(input_dim=c.hidden_size, output_dim=c.num_key_value_heads, n_modules=c.num_hidden_layers)
    )
    inner.post_init_from_model = lambda model: None
    scores = [None] * c.num_hidden_layers
    score = inner.score

    def remember(module, *more):
        scores[module.layer_idx] = score(module, *more)
        return scores[module.layer_idx]

    inner.score = remember
    left_unmasked(model, ids, kvpress.DMSPress(inner, threshold=-1e9))
    all_scores = torch.stack(scores)[:, 0].numpy()
    ordered = np.sort(all_scores.ravel()).astype(np.float64)
    cut = int(len(ordered) * share)
    threshold = float((ordered[cut - 1] + ordered[cut]) / 2)
    return left_unmasked(model, ids, kvpress.DMSPress(inner, threshold=threshold)), all_scores, threshold


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
        for layerwise in (False, True):
            theirs, scores = fast_kvzip(models["sdpa"], prompt, removed, layerwise)
            file = args.work / f"gates-{layerwise}.safetensors"
            write_scores(file, scores, len(ids))
            cut = "layer" if layerwise else "model"
            cases[f'fast_kvzip(budget={budget},cut={cut},scorer=file,weights="{file}")'] = ("kvzip", theirs)
        theirs, scores, threshold = kvzap(models["sdpa"], prompt, ratio)
        file = args.work / "kvzap.safetensors"
        write_scores(file, scores, len(ids))
        inner = f'kvzap(scorer=file,weights="{file}")'
        cases[f"dms({inner},threshold={threshold!r},variant=kvpress)"] = ("kvzip", theirs)
        for spec, (kind, theirs) in cases.items():
            ours = kept_by_kvspan(args.kvspan, traces[kind], spec, args.work, args.prompt)
            same = int((ours == theirs).all(axis=2).sum())
            print(
                f"{ratio:g} {spec}: {same} of {ours.shape[0] * ours.shape[1]} sets identical, "
                f"{int((theirs & ~ours).sum())} of {int(theirs.sum())} entries differ"
            )


if __name__ == "__main__":
    main()
