#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs `kvspan eval` and kvpress on one model, one set of prompts, one grid of methods and budgets.

Every cell of kvpress runs as its users run it: a prefill of the prompt within the press's context, then
greedy decoding from what it left. kvspan does the grid in one command. Compared are the answers, token
by token as text; the entries that are left of the first prompt, through `kvspan capture` and `kvspan
run --lifetimes`; and the seconds of both. README.md says how to run it.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import time

import torch
import transformers
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

import kvpress

WINDOW = 16  # SnapKV's, smaller than the smallest budget

# kvpress's name, its press, kvspan's specification that does the same.
METHODS = [
    ("StreamingLLM", kvpress.StreamingLLMPress, "streaming_llm"),
    ("Knorm", kvpress.KnormPress, "knorm"),
    ("KeyDiff", kvpress.KeyDiffPress, "keydiff"),
    ("TOVA", kvpress.TOVAPress, "tova"),
    (
        "SnapKV",
        lambda r: kvpress.SnapKVPress(r, window_size=WINDOW),
        f"snapkv(window={WINDOW},kernel=5,pool=avg,order=pool_then_group)",
    ),
    ("ExpectedAttention", kvpress.ExpectedAttentionPress, "expected_attention"),
    ("CUR", kvpress.CURPress, "cur"),
    ("Cap", kvpress.CapPress, "cap"),
]
# Methods that evict in decode as well, where their presses do not: the entries at the prompt's end can
# be the same, the answers need not.
DECODE_ON = {"StreamingLLM", "TOVA"}


def with_budget(spec, percent):
    return f"{spec[:-1]},budget={percent}%)" if spec.endswith(")") else f"{spec}(budget={percent}%)"


class Kvpress:
    def __init__(self, folder, bos):
        self.first = [] if bos == "none" else [int(bos)]
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        self.end = self.tokenizer.eos_token_id

    def ids(self, text):
        return torch.tensor([self.first + self.tokenizer(text, add_special_tokens=False).input_ids])

    def prefill(self, ids, press):
        """Logits after the prompt, and the cache as the press left it."""
        cache = DynamicCache()
        if press is None:
            out = self.model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
        else:
            with press(self.model):
                out = self.model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
        return out.logits[0, -1], cache

    def answer(self, ids, press, tokens):
        logits, cache = self.prefill(ids, press)
        said = [int(logits.argmax())]
        while len(said) < tokens and said[-1] != self.end:
            position = torch.tensor([[ids.shape[1] + len(said) - 1]])
            out = self.model(
                input_ids=torch.tensor([[said[-1]]]), past_key_values=cache, position_ids=position
            )
            said.append(int(out.logits[0, -1].argmax()))
        if said[-1] == self.end:
            said.pop()
        return self.tokenizer.decode(said)

    def kept(self, ids, press, full):
        """[layers][kv_heads] indices of the keys that are left, found by their bits among `full`."""
        _, cache = self.prefill(ids, press)
        out = []
        for whole, left in zip(full.layers, cache.layers):
            out.append([])
            for keys, some in zip(whole.keys[0], left.keys[0]):
                places = {}
                for i, key in enumerate(keys.numpy()):
                    places.setdefault(key.tobytes(), []).append(i)
                out[-1].append(sorted(places[key.tobytes()].pop(0) for key in some.numpy()))
        return out


def press_of(make, n, percent):
    budget = n * percent // 100
    return make(1 - (budget + 0.5) / n)  # which leaves int(n (1 - r)) = budget


def run(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def identical_sets(other, args, prompt, work):
    """Of the first prompt: {(method, percent): (identical sets, sets, entries that differ)}."""
    text = work / "prompt.txt"
    text.write_text(prompt["prompt"])
    trace = work / "trace.safetensors"
    ids = other.ids(prompt["prompt"])
    n = ids.shape[1]
    run([args.kvspan, "capture", "--model", args.model, "--text", str(text), "--bos", args.bos,
         "--prompt", str(n), "--generate", "1", "--out", str(trace), "--quiet"])
    cells = [(name, make, spec, p) for name, make, spec in METHODS for p in args.budgets]
    lifetimes = work / "lifetimes.safetensors"
    command = [args.kvspan, "run", str(trace), "--fidelity", "none", "--no-chart", "--quiet",
               "--lifetimes", str(lifetimes)]
    for _, _, spec, percent in cells:
        command += ["--policy", with_budget(spec, percent)]
    run(command)
    _, full = other.prefill(ids, None)
    found = {}
    with safe_open(lifetimes, "np") as file:
        for r, (name, make, _, percent) in enumerate(cells):
            death = file.get_tensor(f"runs.{r}.death")
            same = sets = differ = 0
            for layer, heads in enumerate(other.kept(ids, press_of(make, n, percent), full)):
                for head, theirs in enumerate(heads):
                    ours = [i for i in range(n) if death[layer, head, i] > n]
                    same += ours == theirs
                    sets += 1
                    differ += len(set(ours) ^ set(theirs)) // 2
            found[name, percent] = (same, sets, differ)
    return found


def children_seconds():
    times = os.times()
    return times.children_user + times.children_system


@dataclasses.dataclass
class Seconds:
    wall: float = 0
    cpu: float = 0

    def of(self, work):
        wall, cpu = time.monotonic(), time.process_time()
        out = work()
        self.wall += time.monotonic() - wall
        self.cpu += time.process_time() - cpu
        return out


def prompts_of(args):
    if args.prompts:
        lines = pathlib.Path(args.prompts).read_text().splitlines()
        return [json.loads(line) for line in lines[: args.count]]
    words = pathlib.Path(args.text).read_text().split()
    out = []
    for i in range(args.count):
        part = words[i * args.words : (i + 1) * args.words]
        out.append({"prompt": " ".join(part), "answers": [words[(i + 1) * args.words]]})
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kvspan", required=True)
    parser.add_argument("--model", required=True, help="Hugging Face folder; both programs read it")
    parser.add_argument("--prompts", help="samples of kvspan eval, a line each")
    parser.add_argument("--text", help="in place of them: a text, of which each prompt is a part")
    parser.add_argument("--words", type=int, default=300, help="of such a part")
    parser.add_argument("--bos", default="none", help="a token id before each prompt")
    parser.add_argument("--work", default="beside-kvpress")
    parser.add_argument("--count", type=int, default=2, help="prompts")
    parser.add_argument("--budgets", default="5,10,20,40", help="per cent of the prompt")
    parser.add_argument("--generate", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of both programs")
    args = parser.parse_args()
    args.budgets = [int(b) for b in args.budgets.split(",")]
    work = pathlib.Path(args.work)
    work.mkdir(exist_ok=True)
    prompts = prompts_of(args)
    for prompt in prompts:
        prompt.update(generate=args.generate, reference="")  # answers alone, as kvpress gives them
    samples = work / "samples.jsonl"
    samples.write_text("".join(json.dumps(p) + "\n" for p in prompts))

    torch.set_num_threads(args.threads)
    transformers.logging.disable_progress_bar()
    torch.set_grad_enabled(False)
    other = Kvpress(args.model, args.bos)
    print(f"kvpress {importlib.metadata.version('kvpress')}, torch {torch.__version__}, transformers "
          f"{transformers.__version__}; {args.threads} threads")

    out = work / "eval.json"
    command = [args.kvspan, "eval", "--model", args.model, "--bos", args.bos, "--task", str(samples),
               "--samples", "0", "--no-timeline", "--quiet", "--threads", str(args.threads),
               "--out", str(out)]
    for _, _, spec in METHODS:
        for percent in args.budgets:
            command += ["--policy", with_budget(spec, percent)]
    begin = time.monotonic()
    run(command)
    ours = Seconds(time.monotonic() - begin, children_seconds())
    results = json.loads(out.read_text())["results"]

    theirs = Seconds()
    same = {}
    right = {"ours": 0, "theirs": 0}
    for prompt, result in zip(prompts, results):
        ids = other.ids(prompt["prompt"])
        assert ids.shape[1] == result["sample"]["prompt_tokens"], "tokens differ"
        runs = {r["label"]: r["eval"]["answer"] for r in result["runs"]}
        full = theirs.of(lambda: other.answer(ids, None, args.generate))
        same.setdefault(("full", 100), []).append(full == runs["full"])
        for name, make, spec in METHODS:
            for percent in args.budgets:
                press = press_of(make, ids.shape[1], percent)
                said = theirs.of(lambda: other.answer(ids, press, args.generate))
                answer = runs[with_budget(spec, percent)]
                same.setdefault((name, percent), []).append(said == answer)
                right["ours"] += any(a in answer for a in prompt["answers"])
                right["theirs"] += any(a in said for a in prompt["answers"])
    kept = identical_sets(other, args, prompts[0], work)

    print("| method | budget | same answers | identical sets of the first prompt | entries |")
    print("|---|---|---|---|---|")
    for (name, percent), answers in same.items():
        sets = kept.get((name, percent))
        told = f"{sets[0]} of {sets[1]} | {sets[2]}" if sets else "- | -"
        note = " (kvspan's evicts on)" if name in DECODE_ON else ""
        print(f"| {name}{note} | {percent} % | {sum(answers)} of {len(answers)} | {told} |")
    cells = len(prompts) * (1 + len(METHODS) * len(args.budgets))
    print(f"\n{cells} cells. kvspan, all of its process: {ours.cpu:.1f} s of CPU time, {ours.wall:.1f} s on the "
          f"clock. kvpress, without loading: {theirs.cpu:.1f} s, {theirs.wall:.1f} s: "
          f"{theirs.cpu / ours.cpu:.1f} and {theirs.wall / ours.wall:.1f} times as long. "
          f"Right answers: kvspan {right['ours']}, kvpress {right['theirs']}.")


if __name__ == "__main__":
    main()
