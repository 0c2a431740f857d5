#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prefill speed of `kvspan capture` beside Hugging Face transformers (eager and sdpa, fp32).

    bench_transformers.py --kvspan build/release/cli/kvspan --gguf SmolLM2-135M-Instruct.Q4_1.gguf
                          [--text traces/texts/pride-excerpt.txt] [--tokens 2048,8192]
                          [--threads 2] [--turns 3] [--attention eager,sdpa]

Same machine, same weights (dequantised to fp32), same tokens, same number of threads, in turns; the
best of the turns counts, because other work on the machine only ever slows a turn down. transformers
runs one forward pass and the mean nll. kvspan runs the whole command: it opens the checkpoint, runs
the same pass, computes every token's nll and writes q, k and v of all layers to disk.
Needs torch, transformers, gguf.
"""

import argparse
import pathlib
import resource
import subprocess
import tempfile
import time

import torch
import transformers


def cpu_seconds(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def timed(work, who: int) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), cpu_seconds(who)
    work()
    return time.perf_counter() - wall, cpu_seconds(who) - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kvspan", type=pathlib.Path, required=True)
    parser.add_argument("--gguf", type=pathlib.Path, required=True)
    parser.add_argument("--text", type=pathlib.Path, default="traces/texts/pride-excerpt.txt")
    parser.add_argument("--tokens", default="2048,8192")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--attention", default="eager,sdpa")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()

    def load(attention: str):
        return transformers.AutoModelForCausalLM.from_pretrained(
            str(options.gguf.parent),
            gguf_file=options.gguf.name,
            dtype=torch.float32,
            attn_implementation=attention,
        ).eval()

    models = {name: load(name) for name in options.attention.split(",")}
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        str(options.gguf.parent), gguf_file=options.gguf.name
    )
    ids = tokenizer(options.text.read_text(), add_special_tokens=False)["input_ids"]

    def forward(model, tokens: torch.Tensor) -> None:
        with torch.inference_mode():
            logits = model(tokens, use_cache=False).logits[0]
            torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:]).item()

    print(
        f"{'tokens':>7}  {'program':<20} {'wall s':>8} {'CPU s':>8} {'tokens/s':>9}  times kvspan"
    )
    with tempfile.TemporaryDirectory() as folder:
        for count in map(int, options.tokens.split(",")):
            id_file = pathlib.Path(folder) / "ids.txt"
            id_file.write_text(" ".join(map(str, ids[:count])))
            command = [
                *(str(options.kvspan), "capture", "--model", str(options.gguf)),
                *("--tokens", str(id_file), "--bos", "none", "--prompt", str(count)),
                *("--threads", str(options.threads), "--quiet"),
                *("--out", str(pathlib.Path(folder) / "trace.safetensors")),
            ]
            tokens = torch.tensor([ids[:count]])
            runs = {
                "kvspan capture": lambda: subprocess.run(command, check=True, capture_output=True),
                **{
                    f"transformers {name}": lambda model=model: forward(model, tokens)
                    for name, model in models.items()
                },
            }
            best = {name: (float("inf"), float("inf")) for name in runs}
            for _ in range(options.turns):
                for name, run in runs.items():
                    child = name.startswith("kvspan")
                    who = resource.RUSAGE_CHILDREN if child else resource.RUSAGE_SELF
                    best[name] = tuple(map(min, best[name], timed(run, who)))
            for name, (wall, cpu) in best.items():
                ratio = wall / best["kvspan capture"][0]
                print(
                    f"{count:>7}  {name:<20} {wall:>8.2f} {cpu:>8.2f} {count / wall:>9.0f}  {ratio:.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
