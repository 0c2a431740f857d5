#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the tiny hand-made traces of this folder. Standard library only; the output is the same
every time, and the committed files are its output.

tiny-paper    8 tokens, one head, equal keys: with streaming_llm(sinks=0,window=3) and --prompt 1 its
              footprint is 26 / 36, the worked example of arXiv 2506.17121 (Figure 1).
tiny-picture  12 tokens, two layers, two query heads on one KV head, drawn by hand: a sink (token 0),
              a heavy hitter (token 3), a needle (tokens 5 and 6) that the last rows look for.
tiny-scores   the attention of tiny-picture as a score trace: the 4 largest probabilities of each row.
"""
import json
import math
import pathlib
import struct


def half(values):
    return struct.pack("<%de" % len(values), *values)


def single(values):
    return struct.pack("<%df" % len(values), *values)


def integers(values):
    return struct.pack("<%di" % len(values), *values)


def write(path, metadata, tensors):
    """tensors: {name: (dtype, shape, bytes)}, written in the order given."""
    header = {"__metadata__": metadata}
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(t[2] for t in tensors.values()))


def metadata(layers, query_heads, kv_heads, head_dim, tokens, prompt, **more):
    fields = dict(format="kvspan.trace", version="1", layers=layers, query_heads=query_heads, kv_heads=kv_heads,
                  head_dim=head_dim, tokens=tokens, prompt_tokens=prompt, score_scale=1.0, model="drawn by hand",
                  source="traces/make_tiny.py", licence="Apache-2.0", created_by="traces/make_tiny.py", **more)
    return {key: str(value) for key, value in fields.items()}


def texts(words):
    data = b"".join(w.encode() for w in words)
    offsets = [0]
    for w in words:
        offsets.append(offsets[-1] + len(w.encode()))
    return {"token_text": ("U8", [len(data)], data),
            "token_text_offsets": ("I64", [len(offsets)], struct.pack("<%dq" % len(offsets), *offsets))}


# Channel 0: what every row looks for (sink, heavy hitter); channel 1: what asks for the needle.
WORDS = ["<s>", " the", " code", " IS", " hidden", " seven", " teen", " and", " so", " what", " was", " it"]
LOGITS = [2.0, 0.0, 0.5, 1.5, 0.0, 0.25, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0]
NEEDLE = [0.0, 0.0, 0.0, 0.0, 0.0, 3.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0]
ASKS = [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1]


def picture():
    """q [12, 2, 2], k [12, 1, 2], v [12, 1, 2] of each of two layers."""
    layers = []
    for layer in range(2):
        q, k, v = [], [], []
        for t in range(12):
            for head in range(2):
                q += [1.0, float(ASKS[t] if head == layer else 0)]
            k += [LOGITS[t], NEEDLE[t]]
            v += [math.cos(t), math.sin(t)]
        layers.append((q, k, v))
    return layers


def main():
    here = pathlib.Path(__file__).parent
    ones = [1.0] * 8
    write(here / "tiny-paper.safetensors", metadata(1, 1, 1, 1, 8, 4, text="eight equal tokens"),
          {"layers.0.q": ("F32", [8, 1, 1], single(ones)), "layers.0.k": ("F32", [8, 1, 1], single(ones)),
           "layers.0.v": ("F32", [8, 1, 1], single([float(i) for i in range(8)]))})

    spans = json.dumps([{"name": "needle", "begin": 5, "end": 7}, {"name": "question", "begin": 9, "end": 10}])
    tensors = {}
    for i, (q, k, v) in enumerate(picture()):
        tensors["layers.%d.q" % i] = ("F16", [12, 2, 2], half(q))
        tensors["layers.%d.k" % i] = ("F16", [12, 1, 2], half(k))
        tensors["layers.%d.v" % i] = ("F16", [12, 1, 2], half(v))
    tensors.update(texts(WORDS))
    write(here / "tiny-picture.safetensors", metadata(2, 2, 1, 2, 12, 10, text="a drawn needle", spans=spans), tensors)

    tensors = {}
    for i, (q, k, _) in enumerate(picture()):
        prob, index, lse = [], [], []
        for row in range(12):
            for head in range(2):
                query = q[(row * 2 + head) * 2:(row * 2 + head) * 2 + 2]
                z = [query[0] * k[2 * j] + query[1] * k[2 * j + 1] for j in range(row + 1)]
                total = sum(math.exp(x) for x in z)
                best = sorted(range(row + 1), key=lambda j: (-z[j], j))[:4]
                prob += [math.exp(z[j]) / total for j in best] + [0.0] * (4 - len(best))
                index += best + [-1] * (4 - len(best))
                lse.append(math.log(total))
        tensors["layers.%d.scores.rows" % i] = ("I32", [12], integers(range(12)))
        tensors["layers.%d.scores.prob" % i] = ("F32", [12, 2, 4], single(prob))
        tensors["layers.%d.scores.index" % i] = ("I32", [12, 2, 4], integers(index))
        tensors["layers.%d.scores.lse" % i] = ("F32", [12, 2], single(lse))
    tensors.update(texts(WORDS))
    write(here / "tiny-scores.safetensors", metadata(2, 2, 1, 2, 12, 10, text="a drawn needle", spans=spans), tensors)


if __name__ == "__main__":
    main()
