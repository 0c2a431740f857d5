# SPDX-License-Identifier: Apache-2.0
"""An independent opinion: kvspan capture against Hugging Face transformers.

    python compare_transformers.py [--kvspan PROGRAM] [--work FOLDER] [--tokens N] [--only NAME]

Makes a randomly initialised model of every architecture of make_fixtures.py, four times as wide, as
a Hugging Face folder and, where GGUF has the architecture, as a GGUF file; captures random tokens
from it; and compares q, k and v (after the rotation) of every layer and row, and nll, with what
transformers computes in fp32. Prints one line a model; the exit code is 1 if any deviates.
"""

import argparse
import pathlib
import shutil
import subprocess
import sys
import tempfile

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import load_file

import make_fixtures

SIZE = dict(
    vocab_size=512,
    hidden_size=128,
    intermediate_size=352,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=2,
    max_position_embeddings=2048,
)
# Largest |a - b| over the largest |b| of a layer; nll in nats. fp32 sums in another order.
QKV_BOUND = 1e-4
NLL_BOUND = 1e-3


def nll_of(logits, token_ids):
    logp = torch.log_softmax(logits.double(), dim=-1)
    return -logp[:-1].gather(1, token_ids[1:, None].long())[:, 0]


def capture(program, model, token_ids, work):
    tokens = work / "tokens.txt"
    tokens.write_text(" ".join(str(i) for i in token_ids) + "\n")
    trace = work / "trace.safetensors"
    subprocess.run(
        [program, "capture", "--model", model, "--tokens", tokens, "--prompt", str(len(token_ids)),
         "--generate", "0", "--bos", "none", "--emit", "qkv", "--dtype", "f32", "--shards", "one",
         "--out", trace, "--quiet"],
        check=True, stdout=subprocess.DEVNULL,
    )
    return load_file(trace)


def compare(name, got, expected):
    worst = 0.0
    for key, want in expected.items():
        if key.startswith("layers."):
            if got[key].shape != want.shape:
                sys.exit(f"{name}: {key} has shape {list(got[key].shape)}, not {list(want.shape)}")
            difference = (got[key].double() - want.double()).abs().max() / want.double().abs().max()
            worst = max(worst, difference.item())
    want = nll_of(expected["logits"], expected["token_ids"])
    nll = (got["nll"][:-1].double() - want).abs().max().item()
    ids = torch.equal(got["token_ids"], expected["token_ids"])
    good = ids and worst <= QKV_BOUND and nll <= NLL_BOUND
    print(f"{name:<20} q k v {worst:8.1e}   nll {nll:8.1e}   mean nll {want.mean():.4f}   "
          f"{'ok' if good else 'DEVIATES'}", flush=True)
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    root = pathlib.Path(__file__).resolve().parents[2]
    parser.add_argument("--kvspan", default=root / "build/release/cli/kvspan", type=pathlib.Path)
    parser.add_argument("--work", type=pathlib.Path, help="kept; default: a temporary folder")
    parser.add_argument("--tokens", type=int, default=700)
    parser.add_argument("--only", help="one name of make_fixtures.models()")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    work = options.work or pathlib.Path(tempfile.mkdtemp(prefix="kvspan-compare-"))
    work.mkdir(parents=True, exist_ok=True)
    good = True
    models = make_fixtures.models(SIZE)
    for seed, (name, (config_class, config, dtype)) in enumerate(models.items()):
        if options.only not in (None, name):
            continue
        if "sliding_window" in config:
            config["sliding_window"] = 100
        model = make_fixtures.random_model(config_class, config, dtype, 100 + seed)
        rng = np.random.default_rng(100 + seed)
        token_ids = rng.integers(0, SIZE["vocab_size"], options.tokens).tolist()
        folder = work / name
        shutil.rmtree(folder, ignore_errors=True)
        make_fixtures.write_folder(folder, name, model, dtype)
        expected = make_fixtures.reference(folder, token_ids)
        good &= compare(name, capture(options.kvspan, folder, token_ids, work), expected)
        if name not in make_fixtures.GGUF_MODELS:
            continue
        file = work / f"{name}.gguf"
        make_fixtures.write_gguf(file, name, model, gguf.GGMLQuantizationType.F32)
        if name == "qwen2":
            full = make_fixtures.without_window(config["num_hidden_layers"])
            expected = make_fixtures.reference(folder, token_ids, **full)
        good &= compare(file.name, capture(options.kvspan, file, token_ids, work), expected)
    if options.work is None:
        shutil.rmtree(work)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
