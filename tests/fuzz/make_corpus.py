#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the seed corpus of the trace fuzzer: small valid traces, one for each part of the format.

usage: make_corpus.py [DIRECTORY]   (default: the folder corpus beside this file)
Needs nothing but Python. The output is always the same.
"""
import json
import os
import struct
import sys

PACK = {"F32": "f", "F16": "e", "I32": "i", "I64": "q", "U8": "B"}


def pack(dtype, values):
    if dtype == "BF16":  # truncated, the seeds are exact
        return b"".join(struct.pack("<f", v)[2:] for v in values)
    return struct.pack("<%d%s" % (len(values), PACK[dtype]), *values)


def write(directory, name, metadata, tensors):
    """tensors: list of (name, dtype, shape, values)."""
    header = {"__metadata__": metadata}
    data = b""
    for tensor, dtype, shape, values in tensors:
        begin = len(data)
        data += pack(dtype, values)
        header[tensor] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, len(data)]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    content = struct.pack("<Q", len(text)) + text + data
    assert len(content) < 4096, (name, len(content))
    with open(os.path.join(directory, name + ".safetensors"), "wb") as out:
        out.write(content)


def base(**more):
    metadata = {
        "format": "kvspan.trace", "version": "1", "layers": "1", "query_heads": "2",
        "kv_heads": "1", "head_dim": "2", "tokens": "3", "prompt_tokens": "2",
        "score_scale": "0.5",
    }
    metadata.update(more)
    return metadata


def ramp(count):
    return [(i % 7 - 3) / 4 for i in range(count)]


def qkv(layer, dtype, head_dim=2, v_head_dim=2):
    tensors = [("q", [3, 2, head_dim]), ("k", [3, 1, head_dim]), ("v", [3, 1, v_head_dim])]
    return [("layers.%d.%s" % (layer, name), dtype, shape,
             ramp(shape[0] * shape[1] * shape[2])) for name, shape in tensors]


def scores(layout):
    rows = [("layers.0.scores.rows", "I32", [2], [1, 2]),
            ("layers.0.scores.lse", "F32", [2, 2], [1.0, 2.0, 3.0, 4.0])]
    if layout == "dense":
        return rows + [("layers.0.scores.dense", "F16", [2, 2, 3],
                        [0.5, 0.5, 0, 0.25, 0.75, 0, 0, 0.5, 0.25, 1, 0, 0])]
    return rows + [("layers.0.scores.prob", "F32", [2, 2, 2],
                    [0.75, 0.25, 0.5, 0.5, 0.5, 0.25, 1.0, 0.0]),
                   ("layers.0.scores.index", "I32", [2, 2, 2], [1, 0, 0, 1, 2, 0, 1, -1])]


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    directory = sys.argv[1] if len(sys.argv) > 1 else os.path.join(here, "corpus")
    os.makedirs(directory, exist_ok=True)
    rope = dict(head_dim="8", rope_theta="1e6", rope_dim="8", rope_layout="half")

    write(directory, "qkv_f32", base(), qkv(0, "F32"))
    write(directory, "qkv_f16_text",
          base(layers="2", model_layers="4", layer_ids="[1,3]", sliding_window="[0,2]",
               special_ids="[1,2]", model="m", source="s", text="t", licence="l", created_by="c",
               spans='[{"name":"needle","begin":0,"end":2},{"name":"turn","begin":2,"end":3}]'),
          qkv(0, "F16") + qkv(1, "F16") +
          [("token_ids", "I32", [3], [1, 5, 2]),
           ("nll", "F32", [3], [0.5, 1.5, 0.0]),
           ("token_text_offsets", "I64", [4], [0, 1, 1, 3]),
           ("token_text", "U8", [3], [97, 98, 99])])
    write(directory, "qkv_bf16_sinks",
          base(v_head_dim="3", logit_softcap="30.0", sliding_window="2", passes="[1,2]"),
          qkv(0, "BF16", v_head_dim=3) +
          [("layers.0.sink_logits", "F32", [2], [0.5, -1.0]),
           ("layers.0.wo", "F16", [1, 6], ramp(6))])
    for kind, scaling in (
            ("linear", {"type": "linear", "factor": 2.0}),
            ("llama3", {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}),
            ("yarn", {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32, "beta_slow": 1,
                      "truncate": True, "original_max_position_embeddings": 4096})):
        write(directory, "qkv_rope_" + kind, base(rope_scaling=json.dumps(scaling), **rope),
              qkv(0, "F16", head_dim=8)[:2])
    write(directory, "scores_largest", base(), scores("largest"))
    write(directory, "scores_dense", base(passes="[1,2]"),
          scores("dense") + [("layers.0.scores.column_mass", "F32", [2, 2, 3],
                              [1, 0, 0, 1, 0, 0, 0.5, 0.5, 0, 0.25, 0.75, 0])])
    write(directory, "not_a_trace", {"format": "pt"}, [("weight", "F32", [2, 2], ramp(4)),
                                                       ("empty", "U8", [0], [])])


if __name__ == "__main__":
    main()
