# SPDX-License-Identifier: Apache-2.0
"""The capture of one sequence: from attention calls to a trace (traces/README.md)."""

from __future__ import annotations

import contextlib
import json
import math
import operator
import pathlib
import sys
import typing

import numpy as np
import torch

from . import hooks, rope
from .attention import AttentionCall, output_error, probabilities
from .cache import cached_elements, latent_elements
from .errors import CaptureError
from .tensor_file import TensorFile, TensorSpec
from .tokens import TokenRecorder, text_tensors

Span = tuple[str, int, int]  # name, begin, end (exclusive), in tokens

_DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
_SCORE_BLOCK_BYTES = 1 << 26  # of fp32 probabilities that are held at a time
_ROW_BLOCK_BYTES = 1 << 26  # of q, k or v that are copied at a time
_CHECKED_ROWS = 8  # of a pass of several rows, spread over it
_DECODE_CHECK = 64  # of single rows, every so many are checked
_PROVENANCE = ("model", "source", "text", "licence")


def _bytes_of(tensor: torch.Tensor) -> np.ndarray:
    """A contiguous tensor on the CPU as bytes (numpy has no bfloat16)."""
    return tensor.contiguous().cpu().view(torch.uint8).numpy()


def _tolerance(dtype: torch.dtype) -> float:
    """Relative error of an output that was computed in `dtype`, against fp32."""
    return 1e-3 if dtype in (torch.float32, torch.float64) else 5e-2


class Capture:
    """See capture(). After the block: `tokens`, `mean_nll` (nats, None without logits) and `notes`,
    what the trace lacks and why."""

    def __init__(
        self,
        model: torch.nn.Module,
        path: str | pathlib.Path,
        *,
        tokens: int,
        prompt_tokens: int,
        layers: typing.Iterable[int] | None,
        emit: str,
        dtype: str,
        keys: int,
        column_mass: typing.Sequence[int],
        tokenizer: typing.Any,
        spans: typing.Sequence[Span],
        metadata: typing.Mapping[str, str],
    ) -> None:
        self.path = pathlib.Path(path)
        self.tokens = 0
        self.mean_nll: float | None = None
        self.notes: list[str] = []
        self._model = model
        self._most_tokens = _positive("tokens", tokens)
        self._prompt_tokens = _positive("prompt_tokens", prompt_tokens)
        if prompt_tokens > tokens:
            raise CaptureError(f"prompt_tokens is {prompt_tokens}; expected at most {tokens}")
        if emit not in ("qkv", "scores"):
            raise CaptureError(f"emit is {emit!r}; expected 'qkv' or 'scores'")
        expected = list(_DTYPES) if emit == "qkv" else ["f16", "f32"]
        if dtype not in expected:
            raise CaptureError(f"dtype of {emit} is {dtype!r}; expected {' or '.join(expected)}")
        self._scores = emit == "scores"
        self._dtype = dtype
        self._top_k = min(_positive("keys", keys), tokens)
        self._passes = list(column_mass)
        if self._passes and not self._scores:
            raise CaptureError("column_mass with emit='qkv'; expected it with emit='scores'")
        if self._passes and (
            self._passes != sorted({*self._passes}) or self._passes[-1] != prompt_tokens
        ):
            raise CaptureError(
                f"column_mass is {self._passes}; expected ascending pass ends up to {prompt_tokens}"
            )
        for name, begin, end in spans:
            if not 0 <= begin < end:
                raise CaptureError(f"span {name!r} is [{begin}, {end}); expected 0 <= begin < end")
        self._spans = list(spans)
        unknown = [key for key in metadata if key not in _PROVENANCE]
        if unknown:
            raise CaptureError(f"metadata {unknown}; expected keys among {list(_PROVENANCE)}")
        self._metadata = dict(metadata)
        self._tokenizer = tokenizer
        self._modules = hooks.find_attention(model)
        self._layers = self._choose(layers)
        self._rows = dict.fromkeys(self._layers, 0)  # seen so far, of each layer
        self._recorder = TokenRecorder()
        self._file: TensorFile | None = None
        self._shared: dict[str, typing.Any] = {}  # what must be the same in all layers
        self._windows: dict[int, int] = {}
        self._called: set[int] = set()  # layers whose attention was called in this pass
        self._cached: dict[int, int] = {}  # elements a token in the model's own cache
        self._sinks: dict[int, np.ndarray] = {}
        self._rotations: dict[int, rope.Rotation] = {}
        self._before_rotation: torch.Tensor | None = None
        self._stack = contextlib.ExitStack()

    def _choose(self, layers: typing.Iterable[int] | None) -> list[int]:
        known = list(self._modules.values())
        chosen = known if layers is None else sorted({*map(operator.index, layers)})
        if not chosen or not {*chosen} <= {*known}:
            raise CaptureError(f"layers are {chosen}; expected some of {known}")
        self._modules = {m: layer for m, layer in self._modules.items() if layer in chosen}
        return chosen

    # ---- While the model runs --------------------------------------------------------------------

    def __enter__(self) -> Capture:
        if not self.path.parent.is_dir():
            raise CaptureError(f"{self.path}: no folder {str(self.path.parent)!r} to write to")
        embedding = self._model.get_input_embeddings()
        handles = [
            embedding.register_forward_pre_hook(lambda _, args: self._recorder.on_ids(args[0])),
            self._model.register_forward_hook(self._on_output),
        ]
        handles += [
            module.register_forward_pre_hook(lambda *_, layer=layer: self._called.discard(layer))
            for module, layer in self._modules.items()
        ]
        for handle in handles:
            self._stack.callback(handle.remove)
        self._stack.enter_context(hooks.watched(self._modules, self._on_call, self._on_rotary))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: typing.Any) -> None:
        self._stack.close()
        try:
            if kind is None:
                self._finish()
        finally:
            if self._file is not None:
                self._file.discard()

    def _on_output(self, _: torch.nn.Module, __: typing.Any, output: typing.Any) -> None:
        logits = getattr(output, "logits", None)
        if logits is not None and self._rows[self._layers[0]]:
            self._recorder.on_logits(logits)
        cache = output.get("cache") or output.get("past_key_values")
        for layer in self._layers:
            elements = cached_elements(cache, layer)
            if elements is not None:
                self._cached.setdefault(layer, elements)

    def _on_rotary(self, query: torch.Tensor) -> None:
        self._before_rotation = query.detach()

    @torch.compiler.disable
    @torch.no_grad()
    def _on_call(
        self,
        module: torch.nn.Module,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        output: torch.Tensor,
        options: typing.Mapping[str, typing.Any],
    ) -> None:
        if layer in self._called:
            raise CaptureError(
                f"layer {layer}: two attentions in one pass; expected one a layer, which is what a "
                "trace can say"
            )
        self._called.add(layer)
        if query.shape[0] != 1:
            raise CaptureError(f"a batch of {query.shape[0]} sequences; expected one sequence")
        sinks = options.get("s_aux")
        scale = options.get("scaling")
        call = AttentionCall(
            layer=layer,
            query=query[0],
            key=key[0],
            value=value[0],
            output=output[0],
            scale=float(query.shape[-1] ** -0.5 if scale is None else scale),
            softcap=float(options.get("softcap") or 0),
            window=int(options.get("sliding_window", getattr(module, "sliding_window", 0)) or 0),
            sinks=None if sinks is None else sinks.reshape(-1),
            first=self._rows[layer],
        )
        self._check(call)
        if self._file is None:
            self._file = self._make_file(module, call)
        if call.first <= 1:
            self._note_layer(call)
        self._before_rotation = None
        if self._scores:
            self._write_scores(self._file, call)
        else:
            self._write_rows(self._file, call)
        self._rows[layer] += call.rows

    def _check(self, call: AttentionCall) -> None:
        """Refuses what a trace cannot say, or the file has no room for."""
        where = f"layer {call.layer}, rows [{call.first}, {call.first + call.rows})"
        rows, keys = call.first + call.rows, call.key.shape[1]
        if rows > self._most_tokens:
            raise CaptureError(f"{where}: more than the {self._most_tokens} tokens announced")
        least = min(rows, call.window - 1 + call.rows) if call.window else rows
        if not least <= keys <= rows:
            raise CaptureError(
                f"{where}: {keys} keys; expected {least}: one sequence from its beginning on, with "
                "a dynamic cache that nothing else cuts or fills"
            )
        shape = {
            "query_heads": call.query.shape[0],
            "kv_heads": call.key.shape[0],
            "head_dim": call.query.shape[2],
            "v_head_dim": call.value.shape[2],
            "score_scale": call.scale,
            "logit_softcap": call.softcap,
        }
        self._shared = self._shared or shape
        if shape != self._shared:
            name = next(name for name in shape if shape[name] != self._shared[name])
            raise CaptureError(
                f"{where}: {name} is {shape[name]}, that of the layer before {self._shared[name]}; "
                "expected the same in all layers of a trace (choose layers=)"
            )
        if call.rows == 1 and call.first % _DECODE_CHECK != 0:
            return
        checked = torch.linspace(0, call.rows - 1, min(call.rows, _CHECKED_ROWS)).long()
        error = output_error(call, checked.to(call.query.device))
        if not error <= _tolerance(call.query.dtype):
            raise CaptureError(
                f"{where}: the attention recomputed from q, k and v differs from the model's by "
                f"{error:.2g} (relative); this model, its padding or its implementation of attention "
                "does something that a trace cannot say"
            )

    def _note_layer(self, call: AttentionCall) -> None:
        """What the metadata say of a layer; of the first pass that has more than row 0."""
        self._windows[call.layer] = call.window
        if call.sinks is not None:
            self._sinks[call.layer] = call.sinks.detach().float().cpu().numpy()
        before, last = self._before_rotation, call.first + call.rows - 1
        if (
            before is not None
            and before.dim() == 4
            and before.shape[:3] == (1, *call.query.shape[:2])
        ):
            self._rotations[call.layer] = rope.Rotation(
                before=before[0, :, -1].float().cpu().numpy(),
                after=call.query[:, -1].float().cpu().numpy(),
                position=last,
                tolerance=2e-7 * last
                + (1e-3 if call.query.dtype in (torch.float32, torch.float64) else 2e-2),
            )

    # ---- Into the file ---------------------------------------------------------------------------

    def _make_file(self, module: torch.nn.Module, call: AttentionCall) -> TensorFile:
        self._config = getattr(module, "config", self._model.config)
        tokens, name = self._most_tokens, self._dtype.upper()
        heads, kv_heads = call.query.shape[0], call.key.shape[0]
        specs = []
        for i in range(len(self._layers)):
            if self._scores:
                shape = (tokens, heads, self._top_k)
                specs += [
                    TensorSpec(f"layers.{i}.scores.lse", "F32", shape[:2]),
                    TensorSpec(f"layers.{i}.scores.index", "I32", shape),
                    TensorSpec(f"layers.{i}.scores.prob", name, shape),
                ]
                if self._passes:
                    shape = (len(self._passes), heads, tokens)
                    specs.append(TensorSpec(f"layers.{i}.scores.column_mass", "F32", shape, 2))
            else:
                specs += [
                    TensorSpec(f"layers.{i}.q", name, (tokens, heads, call.query.shape[2])),
                    TensorSpec(f"layers.{i}.k", name, (tokens, kv_heads, call.key.shape[2])),
                    TensorSpec(f"layers.{i}.v", name, (tokens, kv_heads, call.value.shape[2])),
                ]
        user_text = json.dumps([self._metadata, self._spans, self._passes])
        return TensorFile(self.path, specs, 2 * len(user_text) + 256 * len(specs) + (1 << 16))

    def _narrow(self, call: AttentionCall, what: str, block: torch.Tensor) -> torch.Tensor:
        """`block` in the type of the trace. Errors: CaptureError on what is not finite there."""
        narrow = block.to(_DTYPES[self._dtype])
        if not bool(torch.isfinite(narrow).all()):
            largest = float(block.abs().max())
            hint = "" if self._scores or self._dtype == "bf16" else "; dtype='bf16' holds more"
            raise CaptureError(
                f"layer {call.layer}: {what} holds {largest:.6g}; expected finite values of "
                f"{self._dtype}{hint if math.isfinite(largest) else ''}"
            )
        return narrow

    def _write_rows(self, file: TensorFile, call: AttentionCall) -> None:
        stored = self._layers.index(call.layer)
        new = call.key.shape[1] - call.rows
        for name, heads in (
            ("q", call.query),
            ("k", call.key[:, new:]),
            ("v", call.value[:, new:]),
        ):
            rows = heads.transpose(0, 1)  # [R, heads, dim]
            step = max(1, _ROW_BLOCK_BYTES // (4 * rows[0].numel()))
            for begin in range(0, call.rows, step):
                block = self._narrow(call, name, rows[begin : begin + step])
                file.write(f"layers.{stored}.{name}", call.first + begin, _bytes_of(block))

    def _write_scores(self, file: TensorFile, call: AttentionCall) -> None:
        prefix = f"layers.{self._layers.index(call.layer)}.scores."
        heads, keys = call.query.shape[0], call.key.shape[1]
        step = max(1, _SCORE_BLOCK_BYTES // (4 * heads * keys))
        for begin in range(0, call.rows, step):
            rows = torch.arange(begin, min(begin + step, call.rows), device=call.query.device)
            prob, lse = probabilities(call, rows)
            top, index = prob.topk(min(self._top_k, keys), -1)
            index = torch.where(top > 0, index + call.first_key, -1).int()
            pad = (0, self._top_k - top.shape[-1])
            top = torch.nn.functional.pad(self._narrow(call, "prob", top), pad)
            index = torch.nn.functional.pad(index, pad, value=-1)
            row = call.first + begin
            for name, block in (("prob", top), ("index", index), ("lse", lse)):
                file.write(prefix + name, row, _bytes_of(block.transpose(0, 1)))
            for i, end in enumerate(self._passes):
                start = self._passes[i - 1] if i else 0
                part = prob[:, max(start - row, 0) : max(end - row, 0)]
                if part.shape[1]:
                    mass = torch.zeros(heads, self._most_tokens)
                    mass[:, call.first_key : call.first_key + keys] = part.sum(1).cpu()
                    file.add(prefix + "column_mass", i, mass.numpy())

    # ---- The end ---------------------------------------------------------------------------------

    def _finish(self) -> None:
        counts = {*self._rows.values()}
        if self._file is None:
            raise CaptureError("the model did not run; expected a forward pass or generate()")
        if len(counts) != 1:
            raise CaptureError(f"rows of the layers are {self._rows}; expected the same in all")
        self.tokens = tokens = counts.pop()
        if tokens < self._prompt_tokens:
            raise CaptureError(f"{tokens} rows arrived; expected {self._prompt_tokens}, the prompt")
        small: dict[str, tuple[str, np.ndarray]] = {}
        ids, nll = self._recorder.ids(tokens), self._recorder.nll(tokens)
        if tokens < self._most_tokens:
            hint = "; generate() does not read the last token that it makes: max_new_tokens=m + 1"
            self.notes.append(
                f"{tokens} of the {self._most_tokens} tokens announced arrived"
                + (hint if tokens + 1 == self._most_tokens else "")
            )
        if ids is None:
            self.notes.append("token_ids is omitted: ids of other tokens, or none, were seen")
        elif self._tokenizer is not None:
            small |= text_tensors(self._tokenizer, ids)
        if nll is None:
            self.notes.append("nll is omitted: the logits of every row are needed for it")
        else:
            self.mean_nll = float(nll[:-1].mean()) if tokens > 1 else None
            small["nll"] = ("F32", nll)
        if ids is not None:
            small["token_ids"] = ("I32", ids)
        for i, layer in enumerate(self._layers):
            if layer in self._sinks:
                small[f"layers.{i}.sink_logits"] = ("F32", self._sinks[layer])
            if self._scores:
                small[f"layers.{i}.scores.rows"] = ("I32", np.arange(tokens, dtype=np.int32))
        # Widest items first: token_text, of any length, would leave what follows misaligned.
        order = sorted(small, key=lambda name: -small[name][1].itemsize)
        self._file.finish(tokens, self._describe(tokens), {name: small[name] for name in order})

    def _describe(self, tokens: int) -> dict[str, str]:
        """The metadata."""
        from . import __version__

        shared, config = self._shared, self._config
        transformers = getattr(sys.modules.get("transformers"), "__version__", "?")
        implementation = getattr(config, "_attn_implementation", None)
        weight = next(self._model.parameters())
        fields: dict[str, typing.Any] = {
            "format": "kvspan.trace",
            "version": 1,
            "layers": len(self._layers),
            "model_layers": getattr(config, "num_hidden_layers", self._layers[-1] + 1),
            "layer_ids": json.dumps(self._layers),
            **{name: value for name, value in shared.items() if name != "logit_softcap"},
            "tokens": tokens,
            "prompt_tokens": self._prompt_tokens,
            "model": pathlib.Path(getattr(config, "_name_or_path", "")).name
            or type(self._model).__name__,
            "source": f"transformers {transformers}, {implementation} attention, "
            f"{str(weight.dtype).removeprefix('torch.')}, {weight.device.type}",
            "created_by": f"kvspan_capture {__version__}",
            **self._metadata,
        }
        if shared["logit_softcap"]:
            fields["logit_softcap"] = shared["logit_softcap"]
        windows = [self._windows[layer] for layer in self._layers]
        if any(windows):
            fields["sliding_window"] = json.dumps(windows)
        fields |= self._describe_cache()
        if self._passes:
            fields["passes"] = json.dumps(self._passes)
        if self._tokenizer is not None:
            fields["special_ids"] = json.dumps(sorted({*self._tokenizer.all_special_ids}))
        spans = [(name, begin, min(end, tokens)) for name, begin, end in self._spans]
        for name, begin, _ in spans:
            if begin >= tokens:
                self.notes.append(f"span {name!r} is omitted: it begins at {begin} of {tokens}")
        kept = [dict(name=n, begin=b, end=e) for n, b, e in spans if b < tokens]
        if kept:
            fields["spans"] = json.dumps(kept)
        rotations = {layer: self._rotations.get(layer) for layer in self._layers}
        rotary, note = rope.describe(config, rotations, shared["head_dim"])
        if note:
            self.notes.append(note)
        return {name: str(value) for name, value in (fields | rotary).items()}

    def _describe_cache(self) -> dict[str, str]:
        """cache_elements, where the model's own cache holds something else than what is stored."""
        shared = self._shared
        stored = shared["kv_heads"] * (shared["head_dim"] + shared["v_head_dim"])
        latent = latent_elements(self._config)
        elements = [self._cached.get(layer, latent or stored) for layer in self._layers]
        if elements == [stored] * len(elements):
            return {}
        own = f"{min(elements)}" + (f" to {max(elements)}" if len({*elements}) > 1 else "")
        self.notes.append(
            f"the model's own cache holds {own} elements a token and layer; K and V are stored as "
            f"attention reads them, {stored}: bytes of a replay are those of K and V"
        )
        return {"cache_elements": json.dumps(elements if len({*elements}) > 1 else elements[0])}


def _positive(name: str, value: int) -> int:
    if operator.index(value) < 1:
        raise CaptureError(f"{name} is {value}; expected at least 1")
    return operator.index(value)


def capture(
    model: torch.nn.Module,
    path: str | pathlib.Path,
    *,
    tokens: int,
    prompt_tokens: int,
    layers: typing.Iterable[int] | None = None,
    emit: str = "qkv",
    dtype: str = "f16",
    keys: int = 64,
    top_k: int | None = None,
    column_mass: typing.Sequence[int] = (),
    tokenizer: typing.Any = None,
    spans: typing.Sequence[Span] = (),
    metadata: typing.Mapping[str, str] | None = None,
) -> Capture:
    """Writes the attention of whatever `model` does inside a with block to a trace.

        with capture(model, "out.safetensors", tokens=n + m, prompt_tokens=n):
            model.generate(ids, max_new_tokens=m + 1)  # the last one that it makes is never read

    model          of transformers 4.48 or later, a decoder; one sequence, from its beginning on, in
                   as many passes as you like (with a dynamic cache)
    tokens         most rows that will arrive; the trace ends with the last one that did
    prompt_tokens  where the prompt ends
    layers         the model's indices; None: all
    emit           "qkv": q and k after the rotation, and v, one per KV head;
                   "scores": of each row the `keys` largest probabilities and the log-sum-exp
    dtype          "f16", "bf16" (qkv only) or "f32" of q, k, v or of the probabilities
    column_mass    pass ends, the last one prompt_tokens: with emit="scores", also the probability
                   that each key received from the rows of each pass
    top_k          the older name of `keys`
    tokenizer      of transformers: records the text of each token and the ids of special tokens
    spans          (name, begin, end), named token ranges
    metadata       any of model, source, text, licence

    Errors: CaptureError; then, and on any exception inside the block, no file is written.
    """
    return Capture(
        model,
        path,
        tokens=tokens,
        prompt_tokens=prompt_tokens,
        layers=layers,
        emit=emit,
        dtype=dtype,
        keys=keys if top_k is None else top_k,
        column_mass=column_mass,
        tokenizer=tokenizer,
        spans=spans,
        metadata=metadata or {},
    )
