#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/data/tracegen/tokenizers: tiny BPE tokenizers with the ids that `tokenizers` gives.

  python3 tests/tracegen/make_tokenizer_fixtures.py     (needs tokenizers, transformers, gguf)

Each NAME/tokenizer.json is trained on traces/texts; NAME.gguf is the same tokenizer. expected.json
holds the torture texts and, for each tokenizer and each variation of one, their ids; chat.json holds
conversations as transformers renders them. Every file is a function of this script alone.
"""

import contextlib
import json
import pathlib
import shutil

import gguf
from chat_templates import CHAT_TEMPLATES
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "tests/data/tracegen/tokenizers"
VOCABULARY = 520
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
MARKER = "\u2581"

TORTURE = [
    "",
    " ",
    "Hello, world! The quick brown fox.",
    " leading and trailing  ",
    "don't DON'T we'll WE'LL I'm I'M it'S they'Re he'd '\u017f 's's can''t l'eau",
    "1 12 123 1234 12345 123456 1234567 12345678 123456789 1234567890 12345678901 123456789012",
    "x1y22z333 3.14159e-10 0x1F \u0661\u0662\u0663 \u2167 \u00bd \u00b2 \u0be7",
    "a\tb\u000bc\u000cd\u001ce\u0085f\u00a0g\u1680h\u180ei\u2003j\u2028k\u2029l\u202fm\u205fn\u3000o"
    "\u200bp\u200cq\u200dr\ufeffs",
    "line\nline\r\nline\r\rline\n\n\nline \n \n  line\t\n\tline\n",
    "     many     spaces" + " " * 20 + "x" + " " * 7,
    "\n" * 9 + "x" + "\r\n" * 5,
    "e\u0301 \u00e9 a\u0308\u0323 \u1e69 s\u0323\u0307 \u212b \u2126 \u0344 \u1100\u1161\u11a8 \uac01",
    "\ufb01 \u2460 \u33c7 \uff21\uff22 \u00a8 \u1e9b\u0323 \ufdfa",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002 \u3053\u3093\u306b\u3061\u306f \ud55c\uad6d\uc5b4 \u4e00\u4e8c 3",
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea "
    "\u2764\ufe0f \U0001f44d\U0001f3fd",
    "\u05e9\u05dc\u05d5\u05dd \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u202eabc\u202c "
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\ud7ff\ue000\uffff\U00010000\U0010ffff\u0000nul\u0000\u007f\u0080",
    "\ufeffBOM at the start",
    'int main(void) {\n\tfor (int i = 0; i < n; ++i)\n\t\tprintf("%d\\n", a[i]);\n}\n// ----',
    "https://example.org/a?b=c&d=%20#e user@host $100 50% #tag @name __init__ snake_case CamelCase",
    "!!! ... ---- \u2014 \u201cquoted\u201d \u2018it\u2019s\u2019 \u00ab\u00bb \u20ac\u00a3 \u221e\u2260",
    "a<|end|>b <|end|> c  <|wide|>  d\n<|wide|>\ne <|end|><|end|>  <|end|>",
    "<|end|>start and end<|wide|>",
    "word aword wordb a word, word word_ \u00e9word word\u0301 norm enorm Norm no\u0301rm",
    "<|en d|> <|end| <|<|end|>|> <s> </s> <unk> <0x0A> \u2581 \u2581\u2581x \u2581 y",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa thethethethe",
    "She sells sea shells; the BTREE's cursor moves. It is a truth universally acknowledged",
]


def texts():
    for name in ("sherlock-excerpt.txt", "code-excerpt.c"):
        yield (ROOT / "traces/texts" / name).read_text(encoding="utf-8")[:20000]
    yield "\n".join(TORTURE[4:14])  # so that digits, CJK and white space are merged as well


def added():
    return [
        AddedToken("<|end|>", special=True, normalized=False),
        AddedToken("<|wide|>", special=True, normalized=False, lstrip=True, rstrip=True),
        AddedToken("word", special=False, normalized=False, single_word=True),
        AddedToken("norm", special=False, normalized=True),
    ]


def train(tokenizer, byte_level, special=(), alphabet=()):
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        show_progress=False,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if byte_level else list(alphabet),
        limit_alphabet=VOCABULARY if byte_level else 90,
    )
    tokenizer.train_from_iterator(texts(), trainer)


def byte_level(stage, normalizer=None, **model):
    tokenizer = Tokenizer(models.BPE(**model))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = stage
    tokenizer.decoder = decoders.ByteLevel()
    train(tokenizer, True)
    tokenizer.add_tokens(added())
    return tokenizer


def split(regex):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def with_bos(tokenizer, bos):
    tokenizer.add_special_tokens([AddedToken(bos, special=True, normalized=False)])
    template = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos} $B",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), template])
    return tokenizer


def all_merges(vocab, scores):
    """Merges as a conversion from sentencepiece has them: all ways to cut each token."""
    merges = []
    for piece in sorted(scores, key=lambda p: -scores[p]):
        cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        cuts = [c for c in cuts if c[0] in scores and c[1] in scores]
        merges += sorted(cuts, key=lambda c: (vocab[c[0]], vocab[c[1]]))
    return merges


def sentencepiece():
    """Like Llama 2: byte tokens, then merges by score; the text's spaces become markers."""
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    train(trained, False, alphabet=MARKER)
    pieces = sorted(trained.get_vocab(), key=trained.token_to_id)
    pieces = pieces[: VOCABULARY - 150]
    vocab = {p: i for i, p in enumerate(special + pieces)}
    scores = {p: -float(i) for i, p in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab, all_merges(vocab, scores), unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(MARKER), normalizers.Replace(" ", MARKER)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(MARKER, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in special[:3]]
    )
    tokenizer.add_tokens(added()[:1])
    return with_bos(tokenizer, "<s>")


def metaspace():
    """Without byte tokens; merges cross spaces, as the pre-tokenizer does not split."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
            pre_tokenizers.Split(Regex(r"[^\n]{1,24}"), "isolated"),
        ]
    )
    train(trained, False, special=["<unk>"], alphabet=MARKER)
    tokenizer.model = trained.model
    tokenizer.add_tokens(added())
    return tokenizer


def tokenizers():
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return {
        "gpt2": byte_level(plain),
        "llama3": with_bos(byte_level(split(LLAMA3), ignore_merges=True), "<|begin_of_text|>"),
        "qwen2": byte_level(split(QWEN2), normalizers.NFC()),
        "smollm": byte_level(
            pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
        ),
        "sentencepiece": sentencepiece(),
        "metaspace": metaspace(),
    }


def variations():
    """Of `base`: what is written over it."""

    def stage(*members):
        return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": list(members)}}

    def cut(pattern, behavior, invert=False):
        return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}

    out = []
    for behavior in ("Isolated", "Removed", "Contiguous", "MergedWithPrevious", "MergedWithNext"):
        out.append(("metaspace", stage(cut({"Regex": r"\s|[a-e]"}, behavior))))
        out.append(("metaspace", stage(cut({"String": "l"}, behavior, True))))
        out.append(("metaspace", stage({"type": "Punctuation", "behavior": behavior})))
    for scheme in ("always", "first", "never"):
        for cuts in (True, False):
            out.append(
                (
                    "metaspace",
                    stage(
                        {
                            "type": "Metaspace",
                            "replacement": MARKER,
                            "prepend_scheme": scheme,
                            "split": cuts,
                        }
                    ),
                )
            )
    out += [
        ("metaspace", stage({"type": "Whitespace"})),
        ("metaspace", stage({"type": "WhitespaceSplit"})),
        ("metaspace", stage({"type": "Digits", "individual_digits": False})),
        ("metaspace", stage({"type": "WhitespaceSplit"}, cut({"Regex": r"x*"}, "Isolated"))),
        ("metaspace", stage(cut({"Regex": r"\w+|[^\w\s]|\d"}, "MergedWithNext"))),
        (
            "metaspace",
            {
                "normalizer": {
                    "type": "Sequence",
                    "normalizers": [
                        {"type": "NFKC"},
                        {"type": "Strip", "strip_left": True, "strip_right": True},
                        {"type": "Replace", "pattern": {"Regex": "[aeiou]{2}"}, "content": "oo"},
                    ],
                }
            },
        ),
        ("metaspace", {"normalizer": {"type": "NFD"}}),
        ("metaspace", {"normalizer": {"type": "NFKD"}}),
        (
            "sentencepiece",
            {
                "normalizer": None,
                "pre_tokenizer": {
                    "type": "Metaspace",
                    "replacement": MARKER,
                    "prepend_scheme": "always",
                },
            },
        ),
        (
            "sentencepiece",
            {"normalizer": {"type": "Strip", "strip_left": False, "strip_right": True}},
        ),
        (
            "gpt2",
            {
                "pre_tokenizer": {
                    "type": "ByteLevel",
                    "add_prefix_space": True,
                    "trim_offsets": True,
                    "use_regex": True,
                }
            },
        ),
        (
            "gpt2",
            {
                "pre_tokenizer": {
                    "type": "ByteLevel",
                    "add_prefix_space": False,
                    "trim_offsets": True,
                    "use_regex": False,
                }
            },
        ),
        ("llama3", {"normalizer": {"type": "Prepend", "prepend": "norm "}}),
    ]
    return out


PRES = {"gpt2": "gpt-2", "llama3": "llama-bpe", "qwen2": "qwen2", "smollm": "smollm"}


def write_gguf(name, tokenizer, path):
    state = json.loads(tokenizer.to_str())
    tokens = tokenizer.get_vocab(with_added_tokens=True)
    listed = sorted(tokens, key=tokens.get)
    by_content = {t["content"]: t for t in state["added_tokens"]}
    kinds = []
    for token in listed:
        if token in by_content:
            kinds.append(
                gguf.TokenType.CONTROL
                if by_content[token]["special"]
                else gguf.TokenType.USER_DEFINED
            )
        elif token.startswith("<0x") and name == "sentencepiece":
            kinds.append(gguf.TokenType.BYTE)
        else:
            kinds.append(gguf.TokenType.NORMAL)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tokenizer_model("llama" if name == "sentencepiece" else "gpt2")
    writer.add_token_list(listed)
    writer.add_token_types(kinds)
    if name == "sentencepiece":
        writer.add_token_scores([-float(i) for i in range(len(listed))])
        writer.add_unk_token_id(0)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
    else:
        writer.add_tokenizer_pre(PRES[name])
        writer.add_token_merges([" ".join(m) for m in state["model"]["merges"]])
        if name == "llama3":
            writer.add_bos_token_id(tokens["<|begin_of_text|>"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def gguf_tokenizer(name, tokenizer):
    """What a GGUF file can say of a tokenizer: it does not know lstrip, single_word, ..."""
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token.update(lstrip=False, rstrip=False, single_word=False, normalized=False)
    return Tokenizer.from_str(json.dumps(state))


def ids(tokenizer):
    return [tokenizer.encode(t, add_special_tokens=False).ids for t in TORTURE]


TURNS = [
    [("user", "  What's 2 + 2?\n")],
    [("system", " Be brief. "), ("user", "Hi")],
    [("user", "Hi"), ("assistant", "<think>\nhm\n</think>\n\nHello "), ("user", " Bye ")],
]


def chats(tokenizer):
    """What transformers makes of conversations; without "text" where it raises."""
    from transformers import PreTrainedTokenizerFast

    config = json.loads((ROOT / "traces/minimind2-small/tokenizer_config.json").read_text())
    forms = dict(CHAT_TEMPLATES, minimind=config["chat_template"])
    out = []
    for form, template in forms.items():
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=template
        )
        for turns in TURNS:
            messages = [{"role": r, "content": c} for r, c in turns]
            out.append({"form": form, "turns": turns})
            with contextlib.suppress(Exception):
                out[-1]["text"] = fast.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True
                )
    return {"templates": CHAT_TEMPLATES, "chats": out}


def dump(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=True, separators=(",", ":")) + "\n")


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    made = tokenizers()
    expected = {"texts": TORTURE, "ids": {}, "decoded": {}, "gguf": {}, "variations": []}
    for name, tokenizer in made.items():
        state = json.loads(tokenizer.to_str())
        dump(OUT / name / "tokenizer.json", state)
        expected["ids"][name] = ids(tokenizer)
        expected["decoded"][name] = [
            tokenizer.decode(i, skip_special_tokens=False) for i in expected["ids"][name][2:4]
        ]
        if name != "metaspace":
            write_gguf(name, tokenizer, OUT / f"{name}.gguf")
            expected["gguf"][name] = ids(gguf_tokenizer(name, tokenizer))
    for base, change in variations():
        state = dict(json.loads(made[base].to_str()), **change)
        expected["variations"].append(
            {"base": base, "change": change, "ids": ids(Tokenizer.from_str(json.dumps(state)))}
        )
    dump(OUT / "expected.json", expected)
    dump(OUT / "chat.json", chats(made["sentencepiece"]))
    bundled = Tokenizer.from_file(str(ROOT / "traces/minimind2-small/tokenizer.json"))
    dump(
        OUT / "bundled.json",
        {
            "ids": {
                p.name: bundled.encode(p.read_bytes().decode(), add_special_tokens=False).ids[:500]
                for p in sorted((ROOT / "traces/texts").iterdir())
            }
        },
    )


if __name__ == "__main__":
    main()
