#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""kvpress's rules as formulas of q, k, v alone, in double precision, checked against the real presses.

usage: formulas.py WORK SETS   (what compare.py left: its --work folder and its --sets file)

README.md has the same rules in words, and says which sets cannot agree: ties go to the lower index here,
while torch's top-k has no rule for them.
"""

import math
import pathlib
import sys

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

SENTINEL = 1e300


class Layer:
    """q [query_heads, n, d], k and v [kv_heads, n, d] of one layer, all double."""

    def __init__(self, trace, meta, layer, n):
        read = lambda name: trace[f"layers.{layer}.{name}"][:n].astype(np.float64).transpose(1, 0, 2)
        self.q, self.k, self.v = read("q"), read("k"), read("v")
        self.wo = trace[f"layers.{layer}.wo"].astype(np.float64)  # [hidden, query_heads * d]
        self.heads, self.n, self.d = self.k.shape
        self.group = self.q.shape[0] // self.heads
        self.scale = float(meta["score_scale"])
        self.angle = float(meta["rope_theta"]) ** (-np.arange(0, self.d, 2) / self.d)

    def mean_of_group(self, x):
        return x.reshape((self.heads, self.group) + x.shape[1:]).mean(1)

    def attention(self, rows):
        """Causal softmax of the rows over all keys [query_heads, rows, n]."""
        logits = self.q[:, rows] @ np.repeat(self.k, self.group, 0).transpose(0, 2, 1) * self.scale
        logits[:, np.arange(self.n)[None, :] > np.asarray(rows)[:, None]] = -np.inf
        return softmax(logits)

    def unrotated_q(self):
        angle = np.arange(self.n)[:, None] * self.angle
        a, b = self.q[..., : self.d // 2], self.q[..., self.d // 2 :]
        cos, sin = np.cos(angle), np.sin(angle)
        return np.concatenate([a * cos + b * sin, b * cos - a * sin], -1)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def largest(score, count):
    kept = np.zeros(score.shape, bool)
    np.put_along_axis(kept, np.argsort(-score, axis=-1, kind="stable")[..., :count], True, -1)
    return kept


def protect(score, before=0, after=0):
    top = np.full((score.shape[0], 1), score.max() + 1)
    return np.concatenate([np.repeat(top, before, 1), score, np.repeat(top, after, 1)], 1)


# ---- Scores [kv_heads, n], larger = keep ---------------------------------------------------------


def knorm(x):
    return -np.linalg.norm(x.k, axis=-1)


def keydiff(x):
    unit = x.k / np.linalg.norm(x.k, axis=-1, keepdims=True)
    anchor = unit.mean(1, keepdims=True)
    return -(unit * anchor).sum(-1) / np.linalg.norm(anchor, axis=-1)


def lagkv(x, sinks=4, lag=128):
    parts = (x.n - sinks) // lag
    if parts < 2:
        ramp = np.arange(x.n - sinks) / (x.n - sinks)
        return np.repeat(np.concatenate([np.ones(sinks), ramp])[None], x.heads, 0)
    end = sinks + parts * lag

    def spread(t):
        t = t[:, sinks:end].reshape(x.heads, parts, lag, x.d)
        low, high = t[:, 1:].min(2, keepdims=True), t[:, 1:].max(2, keepdims=True)
        return softmax(((t[:, :-1] - low) / (high - low)).std(-1, ddof=1))

    score = (spread(x.k) + spread(x.v)) / 2
    rank = score.argsort(-1, kind="stable").argsort(-1) / lag
    tail = np.ones((x.heads, lag + x.n - end))
    return np.concatenate([np.ones((x.heads, sinks)), rank.reshape(x.heads, -1), tail], 1)


def expected_attention(x, future=512, sinks=4):
    q = x.unrotated_q()[:, sinks:]
    mean = q.mean(1)
    centred = q - mean[:, None]
    cov = centred.transpose(0, 2, 1) @ centred / (x.n - sinks)
    angle = np.arange(x.n, x.n + future)[:, None] * x.angle
    half, sin = x.d // 2, np.sin(angle).mean(0)
    turn = np.diag(np.tile(np.cos(angle).mean(0), 2))
    turn[half:, :half] += np.diag(sin)
    turn[:half, half:] -= np.diag(sin)
    mean, cov = mean @ turn.T, turn @ cov @ turn.T
    k = np.repeat(x.k[:, sinks:], x.group, 0)
    logits = np.einsum("hd,hnd->hn", mean, k) / math.sqrt(x.d)
    logits += ((k @ cov) * k).sum(-1) / (2 * x.d)
    score = x.mean_of_group(softmax(logits)) * np.linalg.norm(x.v[:, sinks:], axis=-1)
    return protect(score, before=sinks)


def cur(x, sinks=4, window=16):
    def share(t):
        norm = (t**2).sum(-1)
        padded = np.pad(norm, ((0, 0), (0, -x.n % window))).reshape(x.heads, -1, window)
        return (padded / padded.sum(-1, keepdims=True)).reshape(x.heads, -1)[:, : x.n]

    score = share(x.k) * share(x.v)
    score /= score.sum(-1, keepdims=True)
    score[:, :sinks] = 1
    return score


def observed_attention(x):
    return x.mean_of_group(x.attention(range(x.n)).sum(1) / np.arange(x.n, 0, -1))


def snapkv(x, window=64, kernel=5):
    votes = x.attention(range(x.n - window, x.n))[:, :, : x.n - window].mean(1)
    padded = np.pad(votes, ((0, 0), (kernel // 2, kernel // 2)))
    pooled = sum(padded[:, i : i + votes.shape[1]] for i in range(kernel)) / kernel
    return protect(x.mean_of_group(pooled), after=window)


def tova(x):
    score = x.attention([x.n - 1])[:, 0, :-1].mean(0, keepdims=True)
    return np.repeat(protect(score, after=1), x.heads, 0)


def criticalkv(x, r):
    score = snapkv(x)
    first = largest(score, max(1, int((1 - r) * x.n * 0.5)))
    v = np.repeat(x.v, x.group, 0)
    wo = x.wo.T.reshape(v.shape[0], x.d, -1)
    score = (score + 1e-4) * x.mean_of_group(np.abs(v @ wo).sum(-1))
    score[first] = SENTINEL
    return score


# ---- Counts and picks: bool [kv_heads, n] --------------------------------------------------------


def count(n, r):
    return max(1, int(n * (1 - r)))


def pyramid_count(n, r, layer, layers, window=64, beta=20):
    cap = window + n * (1 - r)
    low = (cap - window) / beta
    high = (cap - window) * 2 - low
    if high >= n - window:
        high = n - window
        low = (cap - window) * 2 - high
    if not n >= high >= low >= window:
        return max(1, round(n * (1 - r)))
    return round(high - layer * ((high - low) / (layers - 1) if layers > 1 else 0.0))


def adakv(x, r, alpha=0.2):
    score, kept = snapkv(x), count(x.n, r)
    score[largest(score, max(1, int(kept * alpha)))] = SENTINEL
    return ~largest(-score.reshape(1, -1), x.heads * (x.n - kept)).reshape(x.heads, x.n)


def chunkkv(x, r, length=20):
    score = snapkv(x).sum(0)
    chunks = [range(i, min(i + length, x.n)) for i in range(0, x.n, length)]
    means = np.array([[score[c.start : c.stop].mean() for c in chunks]])
    kept = np.zeros((x.heads, x.n), bool)
    for i in np.flatnonzero(largest(means, max(1, int(len(chunks) * (1 - r))))[0]):
        kept[:, chunks[i].start : chunks[i].stop] = True
    return kept


def chunk_knorm(x, r, length=256):
    score = knorm(x)
    parts = [score[:, i : i + length] for i in range(0, x.n, length)]
    return np.concatenate([largest(p, count(p.shape[1], r)) for p in parts], 1)


def block(x, r, scorer, size=128):
    """As kvpress for scorers that ask nothing of an entry's slot or of hidden states."""
    total = count(x.n, r)
    kept = np.zeros((x.heads, x.n), bool)
    for h in range(x.heads):
        entries = np.arange(total)
        for begin in range(total, x.n, size):
            entries = np.concatenate([entries, np.arange(begin, min(begin + size, x.n))])
            view = type("View", (), {"k": x.k[h : h + 1, entries]})
            entries = entries[largest(scorer(view), total)[0]]
        kept[h, entries] = True
    return kept


def dms_knorm(x, threshold, window=128):
    kept = knorm(x) >= threshold
    kept[:, x.n - window :] = True
    return kept


def simlayerkv(x, threshold, initial=4, recent=64, last=1):
    kept = np.ones((x.heads, x.n), bool)
    seen = x.attention(range(x.n - last, x.n))[:, :, : x.n - last].mean((0, 1))
    if x.n > initial + recent + last and seen[:initial].sum() + seen[-recent:].sum() > threshold:
        kept[:, initial : x.n - recent + last] = False
    return kept


def think(x, r, window=32):
    score = x.mean_of_group((x.q[:, -window:] ** 2).mean(1)) * (x.k**2).mean(1)
    return ~largest(-score, int(x.d * r))  # channels [kv_heads, d]


RULES = {
    "KnormPress": lambda x, r, c: largest(knorm(x), count(x.n, r)),
    "KeyDiffPress": lambda x, r, c: largest(keydiff(x), count(x.n, r)),
    "LagKVPress": lambda x, r, c: largest(lagkv(x), count(x.n, r)),
    "ExpectedAttentionPress": lambda x, r, c: largest(expected_attention(x), count(x.n, r)),
    "CURPress": lambda x, r, c: largest(cur(x), count(x.n, r)),
    "ObservedAttentionPress": lambda x, r, c: largest(observed_attention(x), count(x.n, r)),
    "SnapKVPress": lambda x, r, c: largest(snapkv(x), count(x.n, r)),
    "PyramidKVPress": lambda x, r, c: largest(snapkv(x), pyramid_count(x.n, r, c["layer"], c["layers"])),
    "TOVAPress": lambda x, r, c: largest(tova(x), count(x.n, r)),
    "AdaKVPress(SnapKV)": lambda x, r, c: adakv(x, r),
    "CriticalKVPress(SnapKV)": lambda x, r, c: largest(criticalkv(x, r), count(x.n, r)),
    "ChunkKVPress(SnapKV)": lambda x, r, c: chunkkv(x, r),
    "ChunkPress(Knorm,256)": lambda x, r, c: chunk_knorm(x, r),
    "BlockPress(Knorm)": lambda x, r, c: block(x, r, knorm),
    "BlockPress(KeyDiff)": lambda x, r, c: block(x, r, keydiff),
    "DMSPress(Knorm)": lambda x, r, c: dms_knorm(x, c["threshold"](r)),
    "DecodingPress(Knorm)": lambda x, r, c: largest(knorm(x), count(c["prompt"], r)),
    "SimLayerKVPress": lambda x, r, c: simlayerkv(x, r),
    "ThinKPress": lambda x, r, c: think(x, r),
}


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    work, sets = pathlib.Path(sys.argv[1]), load_file(sys.argv[2])
    traces, metas = {}, {}
    for name in ("sdpa", "eager"):
        path = work / f"trace-{name}.safetensors"
        if path.exists():
            traces[name] = load_file(path)
            with safe_open(path, "numpy") as file:
                metas[name] = file.metadata()
    meta = metas["sdpa"]
    layers, prompt = int(meta["layers"]), int(meta["prompt_tokens"])

    def threshold(r):  # as compare.py sets it: the r-quantile of all Knorm scores, in fp32
        norms = [-np.linalg.norm(traces["sdpa"][f"layers.{l}.k"][:prompt], axis=-1).T for l in range(layers)]
        return float(np.float32(np.quantile(np.stack(norms), r)))

    print("press                        setting  identical  differing entries, by layer")
    for key, kept in sorted(sets.items()):
        name, setting, what = key.rsplit("/", 2)
        if what != "kept" or name not in RULES:
            continue
        source = "eager" if name.startswith("Observed") else "sdpa"
        same, differing = 0, {}
        for l in range(layers):
            rows = prompt if name.startswith("ThinK") else kept.shape[2]
            x = Layer(traces[source], meta, l, rows)
            context = {"layer": l, "layers": layers, "prompt": prompt, "threshold": threshold}
            ours, theirs = RULES[name](x, float(setting), context), kept[l].astype(bool)
            same += int((ours == theirs).all(-1).sum())
            if (ours != theirs).any():
                differing[l] = int((ours != theirs).sum())
        print(f"{name:28} {setting:>7}  {same:3} of {kept.shape[0] * kept.shape[1]:<3} {differing or ''}")


if __name__ == "__main__":
    main()
