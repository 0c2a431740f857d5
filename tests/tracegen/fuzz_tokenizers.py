#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares the ids of random strings with those of the library `tokenizers`; not part of CI.

  cmake --build build/dev --target kvspan_tokenize_lines
  python3 tests/tracegen/fuzz_tokenizers.py [--strings N] [--seed S] [--unassigned] FOLDER...

FOLDER holds a tokenizer.json; none: all of tests/data/tracegen/tokenizers, their GGUF files and
variations, and the bundled model. Characters are drawn from Unicode 14, which PCRE2 10.42 knows;
--unassigned draws from all planes, where younger versions of Unicode make a difference.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import unicodedata

from tokenizers import Tokenizer, normalizers, pre_tokenizers

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT / "tests/data/tracegen/tokenizers"
PROGRAM = ROOT / "build/dev/tests/kvspan_tokenize_lines"
SPACES = " \t\n\r\v\f\x1c\x1f\x85\xa0\u1680\u180e\u2003\u2028\u2029\u202f\u205f\u3000\u200b\ufeff"
WORDS = [
    "'s",
    "'S",
    "'ll",
    "'VE",
    "\u2019s",
    "word",
    "norm",
    "<|end|>",
    "<|wide|>",
    "<s>",
    "the",
    "The",
    "ing",
    "<0x0A>",
    "\u2581",
    "\r\n",
    "\n\n",
    "  ",
    "e\u0301",
    "123",
    "00000",
    "://",
    "_",
    "'",
]


def assigned():
    """Characters of which all libraries have the same opinion."""
    # Unicode 15, 15.1 and 16 added or filled these blocks.
    young = [
        (0x1D2C0, 0x1D2D3),
        (0x11F00, 0x11F5F),
        (0x1E4D0, 0x1E4FF),
        (0x31350, 0x323AF),
        (0x2EBF0, 0x2EE5D),
        (0x11B00, 0x11B09),
        (0x1E030, 0x1E08F),
        (0x10EFD, 0x10EFF),
    ]
    nfkd = normalizers.NFKD()
    signs = pre_tokenizers.Punctuation()

    def known(c):
        sign = unicodedata.category(c)[0] == "P" or c in "$+<=>^`|~"
        return (
            unicodedata.category(c) not in ("Cn", "Cs")
            and not any(a <= ord(c) <= b for a, b in young)
            and nfkd.normalize_str(c) == unicodedata.normalize("NFKD", c)
            and (len(signs.pre_tokenize_str("a" + c)) == 2) == sign
        )

    return [c for c in map(chr, range(0x110000)) if not 0xD800 <= ord(c) < 0xE000 and known(c)]


def string(rng, characters):
    out = []
    for _ in range(rng.randrange(1, 24)):
        kind = rng.randrange(7)
        if kind == 0:
            out.append(rng.choice(SPACES) * rng.randrange(1, 4))
        elif kind == 1:
            out.append(rng.choice(WORDS))
        elif kind == 2:
            out.append("".join(rng.choice("0123456789") for _ in range(rng.randrange(1, 13))))
        elif kind == 3:
            out.append(rng.choice(characters))
        elif kind == 4:
            out.append("".join(chr(rng.randrange(0x21, 0x7F)) for _ in range(rng.randrange(1, 6))))
        elif kind == 5:
            out.append(rng.choice(characters[:1500]) * rng.randrange(1, 3))
        else:
            out.append(
                "".join(rng.choice("etaoin shrdlu ETA") for _ in range(rng.randrange(1, 12)))
            )
    return "".join(out)


def ours(path, strings):
    run = subprocess.run(
        [PROGRAM, path],
        input="".join(json.dumps(s) + "\n" for s in strings),
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        sys.exit(f"{path}: {run.stderr}")
    return [json.loads(line) for line in run.stdout.splitlines()]


def compare(name, path, reference, strings):
    wrong = 0
    for text, got in zip(strings, ours(path, strings)):
        want = reference.encode(text, add_special_tokens=False).ids
        if got != want:
            wrong += 1
            if wrong <= 3:
                at = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), -1)
                print(f"  {ascii(text)}\n    ours {got[at:at + 8]}, tokenizers {want[at:at + 8]}")
    print(f"{name}: {len(strings)} strings, {wrong} differ", flush=True)
    return wrong


def cases(folder):
    if (DATA / "expected.json").exists() and not folder:
        from make_tokenizer_fixtures import gguf_tokenizer

        for path in sorted(DATA.glob("*/tokenizer.json")):
            reference = Tokenizer.from_file(str(path))
            yield path.parent.name, path.parent, reference
            file = DATA / f"{path.parent.name}.gguf"
            if file.exists():
                yield file.name, file, gguf_tokenizer(path.parent.name, reference)
        for variation in json.loads((DATA / "expected.json").read_text())["variations"]:
            state = json.loads((DATA / variation["base"] / "tokenizer.json").read_text())
            state.update(variation["change"])
            with tempfile.TemporaryDirectory() as made:
                (pathlib.Path(made) / "tokenizer.json").write_text(json.dumps(state))
                yield json.dumps(variation["change"])[:70], made, Tokenizer.from_str(
                    json.dumps(state)
                )
        folder = [ROOT / "traces/minimind2-small"]
    for one in folder:
        yield str(one), one, Tokenizer.from_file(str(pathlib.Path(one) / "tokenizer.json"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--strings", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--unassigned", action="store_true")
    parser.add_argument("folder", nargs="*")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    characters = (
        [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
        if options.unassigned
        else assigned()
    )
    wrong = 0
    for name, path, reference in cases(options.folder):
        strings = [string(rng, characters) for _ in range(options.strings)]
        wrong += compare(name, path, reference, strings)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
