#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares kvspan's policies with the real kvpress, head by head, on one model and one text.

One fp32 prefill gives the q, k, v that become a kvspan trace. Every press then runs through its own
context manager on the same model and the same tokens; what it keeps is read from the model's cache
(or from the mask that mask-type presses leave behind) and compared with the death rows that
`kvspan run --lifetimes` writes for the same trace. README.md says how to run and read it.
"""

import argparse
import collections
import dataclasses
import importlib.metadata
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import types
import typing

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import kvpress
from kvpress.presses import duo_attention_press
from kvpress.presses.base_press import BasePress
from kvpress.presses.key_rerotation_press import KeyRerotationPress

INTERVAL = 16  # decode rows before DecodingPress cuts: only its first cut has full-cache q, k, v
ROUNDING = 1e-5  # relative distance to the cut below which fp32 sums in another order may differ


# ---- What is compared ----------------------------------------------------------------------------


@dataclasses.dataclass
class Case:
    """One press, how to make it, and the kvspan specs that should do the same (the first accepted one
    is used; {B} tokens kept, {n} prompt, {r} setting, other fields from `context`)."""

    name: str
    policy: str  # must be among `kvspan policies`; otherwise the case is skipped
    press: typing.Callable  # (setting, context) -> press
    specs: list
    kind: str = "cache"  # cache | mask | rerotated | decoding | channels
    scope: str = "head"  # over what the scores compete: head | layer | threshold | none
    eager: bool = False
    settings: tuple = ()  # instead of --ratios
    note: str = ""  # conventions that differ
    random: bool = False  # only the counts can agree


def snapkv(r=0.0):
    return kvpress.SnapKVPress(r)


class Finch(kvpress.FinchPress):
    """The window is a number here: the delimiter token of the press only serves to find it."""

    __call__ = BasePress.__call__


def finch(r, window=64):
    press = Finch(r, rerotate_keys=False)
    press.window_size = window
    return press


SNAPKV = "snapkv(budget={B},window=64,kernel=5,pool=avg,order=pool_then_group)"

def unsketched(press):
    """kvpress draws its sketch of the keys anew each time: a square one of the identity instead."""
    leverage = getattr(press, "_leverage_press", None) or press
    original = kvpress.LeverageScorePress.compute_leverage_scores

    def scores(keys, sketch_dimension):
        draw = torch.randn
        size = keys.shape[-1]
        torch.randn = lambda *shape, **_: torch.eye(size).expand(*shape[:-2], size, size) * math.sqrt(size)
        try:
            return original(keys, size)
        finally:
            torch.randn = draw

    leverage.compute_leverage_scores = scores
    return press


def filtered(press, context):
    """The filters of make_filters.py (NathanGodey/qfilters), of this prompt's queries."""
    filters = []
    for q in context["queries"]:  # [rows, query_heads, d]
        rows = q.transpose(0, 1).double()
        u, _, vh = torch.linalg.svd(rows, full_matrices=False)
        sign = ((u[..., 0] > 0).double().mean(-1) > 0.5).double() * 2 - 1
        kv_heads = context["kv_heads"]
        filters.append((-sign[:, None] * vh[:, 0]).reshape(kv_heads, -1, vh.shape[-1]).mean(1))
    press.q_filters = torch.stack(filters).float()
    press.post_init_from_model = lambda model: None
    return press


REPEATED = "layer 0: a repeated token has the same norm, an ulp apart in fp32"

CASES = [
    Case(
        "RandomPress",
        "random",
        lambda r, c: kvpress.RandomPress(r, seed=0),
        ["random(budget={B})"],
        random=True,
        note="other generator; kvpress with a seed draws the same numbers in every layer",
    ),
    Case(
        "StreamingLLMPress", "streaming_llm", lambda r, c: kvpress.StreamingLLMPress(r), ["streaming_llm(budget={B})"]
    ),
    Case(
        "KnormPress",
        "knorm",
        lambda r, c: kvpress.KnormPress(r),
        ["knorm(budget={B})"],
        note=REPEATED,
    ),
    Case(
        "KeyDiffPress",
        "keydiff",
        lambda r, c: kvpress.KeyDiffPress(r),
        ["keydiff(budget={B})"],
    ),
    Case(
        "LagKVPress",
        "lagkv",
        lambda r, c: kvpress.LagKVPress(r),
        ["lagkv(budget={B},sinks=4,lag=128)"],
        note="equal ranks of partitions tie at the cut, and so do sinks and tail if B is smaller than they",
    ),
    Case(
        "ExpectedAttentionPress",
        "expected_attention",
        lambda r, c: kvpress.ExpectedAttentionPress(r),
        ["expected_attention(budget={B})"],
    ),
    Case("CapPress", "cap", lambda r, c: kvpress.CapPress(r), ["cap(budget={B})"]),
    Case(
        "NonCausalAttnPress",
        "noncausal",
        lambda r, c: kvpress.NonCausalAttnPress(r),
        ["noncausal(budget={B})"],
    ),
    Case(
        "LeverageScorePress",
        "leverage",
        lambda r, c: unsketched(kvpress.LeverageScorePress(r)),
        ["leverage(budget={B},sketch=0)"],
        note="without the random sketch",
    ),
    Case(
        "CompactorPress",
        "compactor",
        lambda r, c: unsketched(kvpress.CompactorPress(r)),
        ["compactor(budget={B},sketch=0,blending={r})"],
        note="without the random sketch",
    ),
    Case(
        "QFilterPress",
        "qfilter",
        lambda r, c: filtered(kvpress.QFilterPress(r), c),
        ["qfilter(budget={B})"],
        note="filters of this prompt's queries, not the authors'",
    ),
    Case("CURPress", "cur", lambda r, c: kvpress.CURPress(r), ["cur(budget={B})"], note=REPEATED),
    Case(
        "ObservedAttentionPress",
        "observed_attention",
        lambda r, c: kvpress.ObservedAttentionPress(r),
        ["observed_attention(budget={B})"],
        eager=True,
    ),
    Case(
        "SnapKVPress", "snapkv", lambda r, c: snapkv(r), [SNAPKV], note="kvpress defaults: window 64, kernel 5, average"
    ),
    Case(
        "FinchPress",
        "finch",
        lambda r, c: finch(r),
        ["finch(budget={B},window=64)"],
        note="window 64; keys not rotated to their places",
    ),
    Case(
        "PyramidKVPress",
        "pyramidkv",
        lambda r, c: kvpress.PyramidKVPress(r),
        [
            "pyramidkv(budget={share},window=64,kernel=5,pool=avg,order=pool_then_group,rounding=kvpress)",
            "pyramidkv(budget={B},window=64,kernel=5,pool=avg,order=pool_then_group,rounding=exact)",
        ],
        note="without rounding=kvpress kvspan follows KVCache-Factory, whose window comes on top of the layer's "
        "share and whose shape is computed from budget - window; kvpress counts the window inside",
    ),
    Case(
        "TOVAPress",
        "tova",
        lambda r, c: kvpress.TOVAPress(r),
        ["tova(budget={B})"],
        note="kvpress always keeps the last token; TOVA (and kvspan) lets it compete",
    ),
    Case(
        "AdaKVPress(SnapKV)",
        "adakv",
        lambda r, c: kvpress.AdaKVPress(snapkv(r)),
        [
            "adakv(budget={B},form=kvpress,window=64,kernel=5,pool=avg,order=pool_then_group)",
            "adakv(budget={B},window=64,kernel=5,pool=avg,order=pool_then_group)",
        ],
        kind="mask",
        scope="layer",
    ),
    Case(
        "CriticalKVPress(SnapKV)",
        "criticalkv",
        lambda r, c: kvpress.CriticalKVPress(snapkv(r)),
        ["criticalkv(" + SNAPKV + ")"],
    ),
    Case(
        "ChunkKVPress(SnapKV)",
        "chunkkv",
        lambda r, c: kvpress.ChunkKVPress(snapkv(r)),
        ["chunkkv(budget={share},preset=kvpress)", "chunkkv(budget={B})"],
        scope="none",
        note="whole chunks: kvpress keeps int(chunks * (1 - r)) of them, not {B} tokens",
    ),
    Case(
        "EntropyGatedChunkKVPress(SnapKV)",
        "chunkkv",
        lambda r, c: kvpress.EntropyGatedChunkKVPress(snapkv(r)),
        ["chunkkv(budget={B},preset=entropy)"],
        scope="none",
        note="equal scores of the window's chunks",
    ),
    Case(
        "ChunkPress(Knorm,256)",
        "chunk",
        lambda r, c: kvpress.ChunkPress(kvpress.KnormPress(r), 256),
        ["chunk(knorm(budget={B}),length=256)"],
        scope="none",
        note="kvpress keeps int(256 * (1 - r)) of each chunk; kvspan spends B exactly, the rest in the last",
    ),
    Case(
        "BlockPress(Knorm)",
        "block",
        lambda r, c: kvpress.BlockPress(kvpress.KnormPress(r)),
        ["block(knorm(budget={B}),size=128)"],
        scope="none",
        note=REPEATED,
    ),
    Case(
        "BlockPress(KeyDiff)",
        "block",
        lambda r, c: kvpress.BlockPress(kvpress.KeyDiffPress(r)),
        ["block(keydiff(budget={B}),size=128)"],
        scope="none",
    ),
    Case(
        "ThinKPress",
        "think",
        lambda r, c: kvpress.ThinKPress(r),
        ["think(ratio={percent},window=32,preset=kvpress)"],
        kind="channels",
        scope="none",
        note="prunes key channels; every entry stays",
    ),
    Case(
        "SimLayerKVPress",
        "simlayerkv",
        lambda r, c: kvpress.SimLayerKVPress(lazy_threshold=r, n_recent=64),
        ["simlayerkv(threshold={r},recent=64,variant=kvpress)"],
        scope="none",
        settings=(0.5, 0.75, 0.85),
        note="the setting is lazy_threshold; n_recent 64",
    ),
    Case(
        "DMSPress(Knorm)",
        "dms",
        lambda r, c: kvpress.DMSPress(kvpress.KnormPress(), threshold=c["threshold"]),
        ["dms(knorm,threshold={threshold},window=128,variant=kvpress)"],
        kind="mask",
        scope="threshold",
        note="threshold: the r-quantile of all Knorm scores",
    ),
    Case(
        "DecodingPress(Knorm)",
        "decoding",
        lambda r, c: kvpress.DecodingPress(kvpress.KnormPress(), compression_interval=INTERVAL, target_size=c["B"]),
        [
            "decoding(knorm,every=%d,target={B})" % INTERVAL,
            "decoding(knorm(budget={B}),every=%d,target={B})" % INTERVAL,
        ],
        kind="decoding",
        note=REPEATED,
    ),
    Case(
        "DuoAttentionPress",
        "duoattention",
        lambda r, c: kvpress.DuoAttentionPress(r, on_the_fly_scoring=True),
        ["duoattention(heads={gates},sparsity={r},sinks=128,window=256)"],
        kind="mask",
        scope="none",
        note="the setting is the share of streaming heads; kvpress streams round(share x heads), kvspan "
        "cuts at the quantile of the gates, as the authors' code does",
    ),
    Case(
        "DuoAttentionPress, its heads",
        "duoattention",
        lambda r, c: kvpress.DuoAttentionPress(r, on_the_fly_scoring=True),
        ["duoattention(heads={mask},sinks=128,window=256)"],
        kind="mask",
        scope="none",
        note="kvspan reads kvpress's own choice of heads, as gates 0 and 1",
    ),
    Case(
        "KeyRerotationPress(StreamingLLM)",
        "streaming_llm",
        lambda r, c: KeyRerotationPress(kvpress.StreamingLLMPress(r)),
        ["streaming_llm(budget={B})"],
        kind="rerotated",
        note="re-rotation changes keys, not lifetimes",
    ),
]


# ---- Model, tokens and trace ---------------------------------------------------------------------


class Runner:
    """A model with one attention implementation, the tokens, and what one plain prefill computed."""

    def __init__(self, folder, tokens, prompt, attention):
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attention
        ).eval()
        self.config = self.model.config
        self.prompt = prompt
        self.ids = torch.tensor([tokens])
        self.layers = [layer.self_attn for layer in self.model.model.layers]
        self.keys, self.values, self.queries = self.capture()

    def prefill(self, cache):
        self.model.model(input_ids=self.ids[:, : self.prompt], past_key_values=cache)

    def decode(self, cache, rows):
        """Teacher-forced decode rows, one pass each, at the true positions even when the cache is cut."""
        for row in rows:
            self.model.model(
                input_ids=self.ids[:, row : row + 1], past_key_values=cache, position_ids=torch.tensor([[row]])
            )

    def capture(self):
        """Post-rotary q of every pass by the module's own projection; k and v as the cache holds them.
        returns per layer k, v [kv_heads, tokens, head_dim] and q [tokens, query_heads, head_dim]."""
        queries = [[] for _ in self.layers]

        def hook(module, _, kwargs, __):
            hidden = kwargs["hidden_states"]
            q = module.q_proj(hidden).view(1, hidden.shape[1], -1, module.head_dim).transpose(1, 2)
            cos, sin = kwargs["position_embeddings"]
            q, _ = apply_rotary_pos_emb(q, q, cos, sin)
            queries[module.layer_idx].append(q[0].transpose(0, 1))

        hooks = [layer.register_forward_hook(hook, with_kwargs=True) for layer in self.layers]
        cache = DynamicCache()
        self.prefill(cache)
        self.decode(cache, range(self.prompt, self.ids.shape[1]))
        for h in hooks:
            h.remove()
        return (
            [layer.keys[0].clone() for layer in cache.layers],
            [layer.values[0].clone() for layer in cache.layers],
            [torch.cat(q) for q in queries],
        )

    def write_trace(self, path):
        c = self.config
        rope = getattr(c, "rope_parameters", None) or {}
        theta = rope.get("rope_theta", getattr(c, "rope_theta", None))
        heads_dim = self.layers[0].head_dim
        meta = {
            "format": "kvspan.trace",
            "version": 1,
            "layers": len(self.layers),
            "model_layers": len(self.layers),
            "query_heads": c.num_attention_heads,
            "kv_heads": c.num_key_value_heads,
            "head_dim": heads_dim,
            "tokens": self.ids.shape[1],
            "prompt_tokens": self.prompt,
            "score_scale": repr(self.layers[0].scaling),
            "rope_theta": theta,
            "rope_dim": heads_dim,
            "rope_layout": "half",
            "created_by": "tests/studies/kvpress/compare.py",
        }
        if rope.get("rope_type", "default") != "default":
            meta["rope_scaling"] = json.dumps(rope)
        tensors = {"token_ids": self.ids[0].numpy().astype(np.int32)}
        for l in range(len(self.layers)):
            tensors[f"layers.{l}.q"] = self.queries[l].contiguous().numpy()
            tensors[f"layers.{l}.k"] = self.keys[l].transpose(0, 1).contiguous().numpy()
            tensors[f"layers.{l}.v"] = self.values[l].transpose(0, 1).contiguous().numpy()
            tensors[f"layers.{l}.wo"] = self.layers[l].o_proj.weight.detach().numpy()
        save_file(tensors, path, metadata={k: str(v) for k, v in meta.items()})


def read_tokens(folder, text, count):
    """bos and the text's first tokens. The tokenizer adds nothing by itself."""
    config = json.loads((folder / "config.json").read_text())
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    bos = config.get("bos_token_id")
    if bos is not None and ids[:1] != [bos]:
        ids = [bos] + ids
    if len(ids) < count:
        sys.exit(f"compare.py: the text has {len(ids)} tokens, {count} are needed")
    return ids[:count]


# ---- The press -----------------------------------------------------------------------------------


class Spy:
    """Times a press's hook, and keeps the last scores of its outermost scorer."""

    def __init__(self, press):
        self.scores, self.hook_seconds, self.score_seconds = {}, 0.0, 0.0
        scorer = press
        while not hasattr(scorer, "score"):
            scorer = getattr(scorer, "press", None) or getattr(scorer, "base_press", None)
            if scorer is None:
                break
        if scorer is not None:
            score = scorer.score

            def timed_score(module, *args, **kwargs):
                start = time.perf_counter()
                result = score(module, *args, **kwargs)
                self.score_seconds += time.perf_counter() - start
                self.scores[module.layer_idx] = result[0].detach().clone()  # AdaKV writes into it afterwards
                return result

            scorer.score = timed_score
        hook = press.forward_hook

        def timed_hook(*args, **kwargs):
            start = time.perf_counter()
            result = hook(*args, **kwargs)
            self.hook_seconds += time.perf_counter() - start
            return result

        press.forward_hook = timed_hook


def positions_of(kept, all_rows):
    """Original positions of the kept rows: exact equality, which post-rotary keys allow."""
    index = {row.tobytes(): i for i, row in enumerate(np.ascontiguousarray(all_rows))}
    if len(index) != len(all_rows):
        raise RuntimeError("two positions have the same key")
    return [index[row.tobytes()] for row in np.ascontiguousarray(kept)]


@dataclasses.dataclass
class Outcome:
    kept: np.ndarray  # bool [layers, kv_heads, tokens]
    scores: typing.Optional[np.ndarray]
    hook_seconds: float
    score_seconds: float


def run_press(case, press, runner):
    spy = Spy(press)
    rerotated = {}
    original = KeyRerotationPress.rerotate_keys
    if case.kind == "rerotated":

        def rerotate(module, indices, keys):
            rerotated[module.layer_idx] = indices[0].numpy()
            return original(module, indices, keys)

        KeyRerotationPress.rerotate_keys = staticmethod(rerotate)
    cache = DynamicCache()
    tokens = runner.prompt + (INTERVAL if case.kind == "decoding" else 0)
    for module in runner.layers:
        module.masked_key_indices = None
    try:
        if case.kind == "decoding":
            runner.prefill(cache)
        with press(runner.model):
            if case.kind == "decoding":
                runner.decode(cache, range(runner.prompt, tokens))
            else:
                runner.prefill(cache)
    finally:
        KeyRerotationPress.rerotate_keys = staticmethod(original)
    heads = runner.config.num_key_value_heads
    kept = np.zeros((len(runner.layers), heads, tokens), bool)
    if case.kind == "channels":  # [layers, kv_heads, head_dim]: channels that are not all zero
        keys = torch.stack([layer.keys[0] for layer in cache.layers])
        return Outcome((keys != 0).any(2).numpy(), None, spy.hook_seconds, 0.0)
    for l, module in enumerate(runner.layers):
        if case.kind == "mask":
            kept[l] = True
            if module.masked_key_indices is not None:
                _, head, position = module.masked_key_indices
                kept[l, head.numpy(), position.numpy()] = False
            module.masked_key_indices = None
            assert torch.equal(cache.layers[l].keys[0], runner.keys[l][:, :tokens])
            continue
        for h in range(heads):
            if case.kind == "rerotated":
                where = rerotated[l][h]
            else:
                where = positions_of(cache.layers[l].keys[0, h].numpy(), runner.keys[l][h, :tokens].numpy())
            kept[l, h, where] = True
            assert len(set(where)) == len(where)
    scores = None
    if len(spy.scores) == len(runner.layers) and spy.scores[0].shape[-1] == tokens:
        scores = torch.stack([spy.scores[l] for l in range(len(runner.layers))]).numpy()
    return Outcome(kept, scores, spy.hook_seconds, spy.score_seconds)


def gates_on_the_fly(runner, text):
    """kvpress's own duo_attention_on_the_fly; its data set is replaced by 50 pieces of the text."""
    import pandas

    size = min(len(text) // 50, 2000)
    pieces = pandas.DataFrame({"chapter": [text[i * size : (i + 1) * size] for i in range(50)]})
    duo_attention_press.load_dataset = lambda *_, **__: types.SimpleNamespace(to_pandas=lambda: pieces)
    return duo_attention_press.duo_attention_on_the_fly(runner.model)


# ---- kvspan --------------------------------------------------------------------------------------


class Kvspan:
    def __init__(self, program, work, threads):
        self.program, self.work, self.threads = program, work, threads
        listing = subprocess.run([program, "policies"], capture_output=True, text=True, check=True).stdout
        self.policies = {line.split()[0] for line in listing.splitlines()[:-1] if line.strip()}

    def run(self, trace, spec, more=()):
        command = [
            self.program,
            "run",
            str(trace),
            "--policy",
            spec,
            "--quiet",
            "--no-chart",
            "--fidelity",
            "none",
            "--threads",
            str(self.threads),
            *more,
        ]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        return done, time.perf_counter() - start

    def kept(self, trace, specs, tokens):
        """The first spec that is accepted. returns spec, kept [layers, heads, tokens] at the pass that
        ends at `tokens`, and the refusals before it."""
        refused = []
        for spec in specs:
            file = self.work / "lifetimes.safetensors"
            done, _ = self.run(trace, spec, ["--lifetimes", str(file), "--out", str(self.work / "run.json")])
            if done.returncode == 0:
                death = load_file(file)["runs.0.death"]
                return spec, death[:, :, :tokens] > tokens, refused
            refused.append(f"{spec}: {done.stderr.strip()}")
            if done.returncode != 2:
                break
        return None, None, refused


# ---- Comparison ----------------------------------------------------------------------------------


def gap_to_cut(case, context, outcome, l, h):
    """Relative distance of every entry's score to the cut; 0: exactly at the cut. None: unknown."""
    s, kept = outcome.scores, outcome.kept
    if s is None or case.scope == "none":
        return None
    if case.scope == "threshold":
        cut = np.float32(context["threshold"])
    else:
        scope = (l, h) if case.scope == "head" else (l,)
        inside, score = kept[scope], s[scope]
        if inside.all() or not inside.any():
            return None
        cut = score[inside].min() if case.scope == "head" else score[~inside].max()
    return np.abs(s[l, h].astype(np.float64) - cut) / max(abs(float(cut)), 1e-30)


def compare(case, context, outcome, ours):
    theirs = outcome.kept
    layers, heads, _ = theirs.shape
    same, jaccard, counts = 0, [], collections.Counter()
    largest_gap = 0.0
    contained = lambda a, b: (a & b).sum() == min(a.sum(), b.sum()) and a.sum() != b.sum()
    for l in range(layers):
        for h in range(heads):
            a, b = theirs[l, h], ours[l, h]
            differing = np.flatnonzero(a != b)
            same += differing.size == 0
            jaccard.append((a & b).sum() / max((a | b).sum(), 1))
            counts["differing"] += int(differing.size)
            if differing.size == 0:
                continue
            if contained(a, b):
                counts["count"] += int(differing.size)
                continue
            gap = gap_to_cut(case, context, outcome, l, h)
            if gap is None:
                counts["unclassified"] += int(differing.size)
                continue
            g = gap[differing]
            counts["tie"] += int((g == 0).sum())
            counts["rounding"] += int(((g > 0) & (g <= ROUNDING)).sum())
            counts["other"] += int((g > ROUNDING).sum())
            largest_gap = max(largest_gap, float(g.max()))
    per_layer = lambda x: sorted({int(v) for v in x.sum(-1).ravel()})
    return {
        "sets": layers * heads,
        "identical": int(same),
        "jaccard": float(np.mean(jaccard)),
        "kept_kvpress": per_layer(theirs),
        "kept_kvspan": per_layer(ours),
        "counts_equal": bool((theirs.sum(-1) == ours.sum(-1)).all()),
        "kept_total": int(theirs.sum()),
        "differing": counts["differing"],
        "tie": counts["tie"],
        "rounding": counts["rounding"],
        "count": counts["count"],
        "other": counts["other"],
        "unclassified": counts["unclassified"],
        "largest_gap": largest_gap,
        "differing_positions": [[l, h, int(t), bool(theirs[l, h, t])] for l, h, t in zip(*np.nonzero(theirs != ours))][
            :64
        ],
    }


def imported_scores(kvspan, trace, outcome, budget, total):
    """kvspan's selection from kvpress's own scores, through scores(file=): only ties may differ."""
    file = kvspan.work / "scores.safetensors"
    scores = np.full(outcome.scores.shape[:2] + (total,), outcome.scores.min(), np.float32)
    scores[:, :, : outcome.scores.shape[2]] = outcome.scores
    save_file({"scores": scores}, file)
    return kvspan.kept(trace, [f"scores(file={file},budget={budget})"], outcome.kept.shape[2])


def settings_context(case, setting, runner, shared):
    n = runner.prompt
    context = dict(shared, r=setting, n=n, B=max(1, int(n * (1 - setting))))
    context["share"] = f"{100 * (1 - setting):.12g}%"
    context["percent"] = f"{100 * setting:.12g}%"
    context["queries"] = [q[:n] for q in runner.queries]
    context["kv_heads"] = runner.config.num_key_value_heads
    if "quantiles" in shared and setting in shared["quantiles"]:
        context["threshold"] = shared["quantiles"][setting]
    if case.name.startswith("Duo"):
        press = case.press(setting, context)
        press.post_init_from_model(runner.model)
        context["mask"] = shared["gates"].with_name("heads.json")
        context["mask"].write_text(json.dumps((~press.streaming_mask).int().tolist()))
    return context


# ---- Time ----------------------------------------------------------------------------------------


def time_case(case, context, runner, kvspan, trace, spec, repeat):
    """Medians, interleaved. kvpress: its forward hook over all layers, and score() alone. kvspan: wall
    time of the program with this policy less the same with `full` (reading, checking and writing)."""
    hook, score, ours = [], [], []
    for i in range(repeat + 1):
        outcome = run_press(case, case.press(context["r"], context), runner)
        seconds = []
        for policy in (spec, "full"):
            done, wall = kvspan.run(trace, policy)
            if done.returncode != 0:
                raise RuntimeError(done.stderr)
            seconds.append(wall)
        if i > 0:  # the first is the warm-up
            hook.append(outcome.hook_seconds)
            score.append(outcome.score_seconds)
            ours.append(seconds[0] - seconds[1])
    return {
        "press_hook": statistics.median(hook),
        "press_score": statistics.median(score),
        "kvspan": statistics.median(ours),
        "kvspan_spread": [min(ours), max(ours)],
    }


# ---- Report --------------------------------------------------------------------------------------


def span(values):
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def markdown(report):
    out = [
        f"kvpress {report['versions']['kvpress']}, torch {report['versions']['torch']}, transformers "
        f"{report['versions']['transformers']}; {report['layers']} layers, {report['kv_heads']} KV heads, "
        f"{report['prompt']} prompt tokens, fp32.",
        "",
        "| press | setting | kvspan | kept, kvpress | kept, kvspan | identical sets | Jaccard | differing "
        "entries | of them tie / rounding / count / other / not classified | why |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        if "skipped" in row:
            out.append(f"| {row['press']} | | | | | | | | | skipped: {row['skipped']} |")
            continue
        c = row["result"]
        split = (
            ""
            if row["random"]
            else f"{c['tie']} / {c['rounding']} / {c['count']} / {c['other']} / " f"{c['unclassified']}"
        )
        out.append(
            f"| {row['press']} | {row['setting']:g} | `{row['spec']}` | {span(c['kept_kvpress'])} | "
            f"{span(c['kept_kvspan'])} | {c['identical']} of {c['sets']} | {c['jaccard']:.4f} | "
            f"{c['differing']} of {c['kept_total']} | {split} | {row['note'] if c['differing'] else ''} |"
        )
    if report["imported"]:
        out += [
            "",
            "kvpress's own scores, ranked by kvspan (`scores(file=..)`): the selection alone.",
            "",
            "| press | setting | identical sets | differing entries | tie / rounding / other |",
            "|---|---|---|---|---|",
        ]
        for row in report["imported"]:
            c = row["result"]
            out.append(
                f"| {row['press']} | {row['setting']:g} | {c['identical']} of {c['sets']} | "
                f"{c['differing']} of {c['kept_total']} | {c['tie']} / {c['rounding']} / {c['other']} |"
            )
    if report["times"]:
        out += [
            "",
            "Time. kvpress: its forward hook, all layers (in brackets score() alone); kvspan: wall "
            "time of `kvspan run --fidelity none` less the same with `full`. Ratio > 1: kvspan is faster; "
            "differences under the noise are marked.",
            "",
            f"Load of the machine when it ended: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores. Two torch threads "
            "on busy cores wait for each other: use those lines of a quiet machine only.",
            "",
            "| press | setting | threads | kvpress hook (score) | kvspan | hook / kvspan |",
            "|---|---|---|---|---|---|",
        ]
        for row in report["times"]:
            t = row["time"]
            noisy = t["kvspan"] <= 0 or t["kvspan_spread"][0] <= 0
            ratio = (
                "under the noise"
                if t["kvspan"] <= 0
                else f"{t['press_hook'] / t['kvspan']:.2g}" + (" (noisy)" if noisy else "")
            )
            out.append(
                f"| {row['press']} | {row['setting']:g} | {row['threads']} | {1e3 * t['press_hook']:.1f} ms "
                f"({1e3 * t['press_score']:.1f}) | {1e3 * t['kvspan']:.1f} ms | {ratio} |"
            )
    return "\n".join(out) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=pathlib.Path, required=True, help="Hugging Face folder, Llama type")
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--kvspan", required=True, help="the program")
    parser.add_argument("--prompt", type=int, default=1024)
    parser.add_argument("--decode", type=int, default=24, help="teacher-forced rows after the prompt")
    parser.add_argument(
        "--ratios", type=float, nargs="+", default=[0.2, 0.5, 0.8], help="compression ratios: shares removed"
    )
    parser.add_argument("--press", nargs="+", help="only these (prefixes of the names)")
    parser.add_argument(
        "--spec",
        action="append",
        default=[],
        metavar="PRESS=SPEC",
        help="try this kvspan spec first; {B} tokens kept, {r} setting",
    )
    parser.add_argument("--work", type=pathlib.Path, help="folder for the traces; default: temporary")
    parser.add_argument("--markdown", type=pathlib.Path)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument(
        "--sets",
        type=pathlib.Path,
        help="safetensors of kvpress's sets and scores: PRESS/SETTING/kept, /scores; formulas.py reads it",
    )
    parser.add_argument("--time", type=int, default=0, metavar="N", help="repeats; 0: no timing")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="for the timing")
    args = parser.parse_args()
    assert args.decode > INTERVAL, "--decode must exceed the decoding interval"

    transformers.utils.logging.disable_progress_bar()
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    temporary = None if args.work else tempfile.TemporaryDirectory()
    work = args.work or pathlib.Path(temporary.name)
    work.mkdir(parents=True, exist_ok=True)
    kvspan = Kvspan(args.kvspan, work, 1)
    text = args.text.read_text()
    total = args.prompt + args.decode
    tokens = read_tokens(args.model, text, total)
    forced = dict(item.split("=", 1) for item in args.spec)
    cases = [c for c in CASES if not args.press or any(c.name.startswith(p) for p in args.press)]

    runners, traces = {}, {}

    def runner_of(case):
        attention = "eager" if case.eager else "sdpa"
        if attention not in runners:
            runners[attention] = Runner(args.model, tokens, args.prompt, attention)
            traces[attention] = work / f"trace-{attention}.safetensors"
            runners[attention].write_trace(traces[attention])
        return runners[attention], traces[attention]

    first, first_trace = runner_of(cases[0])
    report = {
        "versions": {
            "kvpress": importlib.metadata.version("kvpress"),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "layers": len(first.layers),
        "kv_heads": first.config.num_key_value_heads,
        "prompt": args.prompt,
        "rows": [],
        "imported": [],
        "times": [],
    }
    shared = {"wo": first_trace}
    if any(c.name.startswith("DMS") for c in cases):
        norms = np.stack([-k[:, : args.prompt].norm(dim=-1).numpy() for k in first.keys])
        shared["quantiles"] = {r: float(np.float32(np.quantile(norms, r))) for r in args.ratios}
    if any(c.name.startswith("Duo") for c in cases):
        gates = gates_on_the_fly(first, text)
        shared["gates"] = work / "gates.json"
        shared["gates"].write_text(json.dumps(gates.tolist()))

    sets = {}
    for case in cases:
        runner, trace = runner_of(case)
        specs = ([forced[case.name]] if case.name in forced else []) + case.specs
        skipped = None if case.policy in kvspan.policies else f"this kvspan has no policy {case.policy}"
        if case.kind == "channels":
            skipped = skipped or "it prunes channels; every entry stays"
        for setting in case.settings or args.ratios:
            context = settings_context(case, setting, runner, shared)
            outcome = run_press(case, case.press(setting, context), runner)
            sets[f"{case.name}/{setting:g}/kept"] = outcome.kept.astype(np.uint8)
            if outcome.scores is not None:
                sets[f"{case.name}/{setting:g}/scores"] = outcome.scores
            note = case.note.format(**context)
            row = {"press": case.name, "setting": setting, "note": note, "random": case.random}
            uniform = len(set(outcome.kept.sum(-1).ravel())) == 1
            if (
                outcome.scores is not None
                and case.kind == "cache"
                and case.scope == "head"
                and uniform
                and not case.random
            ):
                _, ours, _ = imported_scores(kvspan, trace, outcome, int(outcome.kept[0, 0].sum()), total)
                report["imported"].append(
                    {"press": case.name, "setting": setting, "result": compare(case, context, outcome, ours)}
                )
            if skipped:
                continue
            spec, ours, refused = kvspan.kept(trace, [s.format(**context) for s in specs], outcome.kept.shape[2])
            if spec is None:
                skipped = "kvspan refuses: " + "; ".join(refused)
                continue
            row.update(spec=spec.replace(f"{work}/", ""), refused=refused, result=compare(case, context, outcome, ours))
            report["rows"].append(row)
            print(
                f"{case.name} {setting:g}: {row['result']['identical']} of {row['result']['sets']} identical",
                file=sys.stderr,
            )
            if args.time:
                for threads in args.threads:
                    torch.set_num_threads(threads)
                    kvspan.threads = threads
                    seconds = time_case(case, context, runner, kvspan, trace, spec, args.time)
                    report["times"].append(
                        {"press": case.name, "setting": setting, "threads": threads, "time": seconds}
                    )
                torch.set_num_threads(1)
                kvspan.threads = 1
        if skipped:
            report["rows"].append({"press": case.name, "skipped": skipped})

    table = markdown(report)
    print(table)
    if args.markdown:
        args.markdown.write_text(table)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1, default=str) + "\n")
    if args.sets:
        save_file(sets, args.sets)
    if temporary:
        temporary.cleanup()


if __name__ == "__main__":
    main()
