# SPDX-License-Identifier: Apache-2.0
"""Captures one text with one model: python -m kvspan_capture --model PATH --text FILE ..."""

from __future__ import annotations

import argparse
import contextlib
import math
import pathlib
import sys
import time
import typing

import torch

from .trace_capture import Capture, Span, capture
from .errors import CaptureError


def _span(text: str) -> Span:
    name, _, bounds = text.rpartition("=")
    begin, _, end = bounds.partition(":")
    if not name or not begin.isdecimal() or not end.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}; expected NAME=BEGIN:END, in tokens")
    return name, int(begin), int(end)


def _layers(text: str) -> list[int]:
    try:
        return [int(layer) for layer in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; expected layers such as 0,4,8") from None


def _arguments(argv: typing.Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="kvspan_capture", description=__doc__)
    add = parser.add_argument
    add("--model", required=True, help="folder or hub name of a model, or a .gguf file")
    add("--text", required=True, type=pathlib.Path, help="UTF-8 text")
    add("--out", required=True, type=pathlib.Path, help="trace to write")
    add("--prompt", type=int, help="prompt tokens (default: all but --generate)")
    add("--generate", type=int, default=0, metavar="M", help="tokens after the prompt, greedy")
    add("--teacher", "--teacher-forced", action="store_true", help="they are those of the text")
    add("--bos", default="auto", help="auto (as the tokenizer does by itself), none, or a token id")
    add("--chunk", type=int, default=512, help="rows a pass of the prompt, at most")
    add("--emit", choices=("qkv", "scores"), default="qkv")
    add("--dtype", choices=("f16", "bf16", "f32"), default="f16", help="of the trace")
    add("--keys", "--top-k", type=int, default=64, help="probabilities a row of a score trace")
    add("--column-mass", action="store_true", help="of each pass of the prompt, in a score trace")
    add("--layers", type=_layers, metavar="0,4,..", help="layers to store (default: all)")
    add("--span", type=_span, action="append", default=[], metavar="NAME=BEGIN:END")
    add("--spans", type=_span, nargs="+", action="extend", dest="span", help="the older form")
    add("--attention", default="sdpa", help="implementation of transformers: eager, sdpa, ...")
    add("--compute", default="float32", help="dtype in which the model runs")
    add("--device", default="cpu")
    add("--licence", default="", help="of model and text, for the trace's metadata")
    return parser.parse_args(argv)


def _load(options: argparse.Namespace) -> tuple[typing.Any, typing.Any]:
    """Model and tokenizer. Errors: whatever transformers throws."""
    import transformers

    path = pathlib.Path(options.model)
    name, extra = options.model, {}
    if path.suffix == ".gguf":
        name, extra = str(path.parent), {"gguf_file": path.name}
    dtype = getattr(torch, options.compute, None)
    if not isinstance(dtype, torch.dtype):
        raise CaptureError(f"--compute is '{options.compute}'; expected such as float32, bfloat16")
    tokenizer = transformers.AutoTokenizer.from_pretrained(name, **extra)
    transformers.utils.logging.disable_progress_bar()
    # The argument's name in transformers 5; the old one is understood by all of 4.
    extra["dtype" if transformers.__version__ >= "5" else "torch_dtype"] = dtype
    model = transformers.AutoModelForCausalLM.from_pretrained(
        name, attn_implementation=options.attention, **extra
    )
    return model.to(options.device).eval(), tokenizer


def _token_ids(options: argparse.Namespace, tokenizer: typing.Any) -> list[int]:
    text = options.text.read_text(encoding="utf-8")
    if options.bos != "auto" and options.bos != "none" and not options.bos.isdecimal():
        raise CaptureError(f"--bos is '{options.bos}'; expected auto, none or a token id")
    ids = list(tokenizer(text, add_special_tokens=options.bos == "auto")["input_ids"])
    return [int(options.bos)] + ids if options.bos.isdecimal() else ids


@torch.no_grad()
def _check_bos(
    options: argparse.Namespace, model: typing.Any, bos: int | None, ids: list[int]
) -> None:
    """Errors: CaptureError where a bos in front of the first 64 tokens turns predictions that are
    worse than guessing (a mean nll above ln of the vocabulary) into better ones."""
    read = ids[:63]
    if options.bos != "auto" or bos is None or ids[0] == bos or len(read) < 7:
        return

    def loss(tokens: list[int], first: int) -> float:
        inputs = torch.tensor([tokens], device=model.device)
        logits = model(input_ids=inputs, use_cache=False).logits[0, first - 1 : -1].float()
        return float(torch.nn.functional.cross_entropy(logits, inputs[0, first:]))

    guessing = math.log(model.get_input_embeddings().weight.shape[0])
    without = loss(read, 1)
    if without <= guessing:
        return
    with_bos = loss([bos, *read], 2)
    if with_bos < guessing:
        raise CaptureError(
            f"without its bos, the model is worse than guessing: a mean nll of {without:.2f} over "
            f"the first {len(read) - 1} tokens, {with_bos:.2f} with token {bos} in front, and "
            f"{guessing:.2f} if it took all tokens for alike; expected --bos {bos}, or --bos none to "
            "capture it as it is"
        )


def _pass_ends(begin: int, end: int, chunk: int) -> list[int]:
    """Ends of the passes over rows [begin, end)."""
    return [*range(begin + chunk, end, chunk), end] if begin < end else []


class _Sequence:
    """A sequence that a model reads pass by pass."""

    def __init__(self, model: typing.Any, tokens: int) -> None:
        self._model, self._tokens = model, tokens
        self._cache: typing.Any = None
        self._rows = 0
        self._start = time.monotonic()
        self.next_token = -1  # the most likely one

    @torch.no_grad()
    def read(self, ids: typing.Sequence[int]) -> None:
        inputs = torch.tensor([ids], device=self._model.device)
        output = self._model(input_ids=inputs, past_key_values=self._cache, use_cache=True)
        self._cache = output.past_key_values
        self.next_token = int(output.logits[0, -1].argmax())
        before, self._rows = self._rows, self._rows + len(ids)
        if 10 * before // self._tokens != 10 * self._rows // self._tokens:
            seconds = time.monotonic() - self._start
            print(f"{self._rows} of {self._tokens} tokens, {seconds:.1f} s", file=sys.stderr)


def _run(options: argparse.Namespace) -> Capture:
    if options.generate < 0 or options.chunk < 1:
        raise CaptureError("--generate and --chunk; expected at least 0 and 1")
    model, tokenizer = _load(options)
    ids = _token_ids(options, tokenizer)
    _check_bos(options, model, tokenizer.bos_token_id, ids)
    forced = options.generate if options.teacher else 0
    prompt = len(ids) - forced if options.prompt is None else options.prompt
    if not 1 <= prompt <= len(ids) - forced:
        raise CaptureError(
            f"{options.text}: {len(ids)} tokens; expected --prompt of 1 to {len(ids) - forced}"
        )
    tokens = prompt + options.generate
    passes = _pass_ends(0, prompt, options.chunk)
    metadata = {"text": options.text.name, "licence": options.licence}
    trace = capture(
        model,
        options.out,
        tokens=tokens,
        prompt_tokens=prompt,
        layers=options.layers,
        emit=options.emit,
        dtype=options.dtype,
        keys=options.keys,
        column_mass=passes if options.column_mass else (),
        tokenizer=tokenizer,
        spans=options.span,
        metadata={key: value for key, value in metadata.items() if value},
    )
    stops = getattr(model.generation_config, "eos_token_id", None)
    stops = {*stops} if isinstance(stops, (list, tuple)) else {stops}
    with trace:
        sequence = _Sequence(model, tokens)
        ends = passes + _pass_ends(prompt, prompt + forced, options.chunk)
        for begin, end in zip([0, *ends], ends):
            sequence.read(ids[begin:end])
        for row in range(prompt + forced, tokens):
            if sequence.next_token in stops:
                trace.notes.append(f"the model ended its answer after {row - prompt} tokens")
                break
            sequence.read([sequence.next_token])
    return trace


def main(argv: typing.Sequence[str] | None = None) -> int:
    """Exit codes as kvspan: 0 ok, 2 arguments, 3 what the model, text or attention does not allow."""
    options = _arguments(argv)
    try:
        trace = _run(options)
    except KeyboardInterrupt:
        print("kvspan_capture: interrupted; nothing was written", file=sys.stderr)
        return 1
    except (CaptureError, OSError, ValueError, KeyError, ImportError) as error:
        text = " ".join(str(error).split())
        print(f"kvspan_capture: {text}", file=sys.stderr)
        return 3
    for note in trace.notes:
        print(f"note: {note}")
    perplexity = ""
    if trace.mean_nll is not None:
        perplexity = f", mean nll {trace.mean_nll:.4f}, perplexity {math.exp(trace.mean_nll):.3f}"
    size = options.out.stat().st_size / 2**20
    print(f"{options.out}: {trace.tokens} tokens, {size:.1f} MiB{perplexity}")
    return 0


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
