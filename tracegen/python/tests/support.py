# SPDX-License-Identifier: Apache-2.0
"""Tiny random models, and what the tests compare a trace with; nothing here uses kvspan_capture."""

from __future__ import annotations

import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import typing
import unittest

import numpy as np
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[3]
VOCABULARY = 97
_SIZES = dict(
    vocab_size=VOCABULARY,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=256,
    initializer_range=0.3,
    bos_token_id=1,
    eos_token_id=None,
    pad_token_id=0,
)
# Name: class, configuration, metadata that the trace must have.
MODELS: dict[str, tuple[str, dict[str, typing.Any], dict[str, str]]] = {
    "llama": ("Llama", {}, {"rope_theta": "10000.0", "rope_layout": "half", "rope_dim": "16"}),
    "qwen3": ("Qwen3", {}, {"rope_layout": "half", "rope_dim": "16"}),
    "mistral": ("Mistral", {"sliding_window": 7}, {"sliding_window": "[7, 7, 7]"}),
    "gemma2": (
        "Gemma2",
        {"sliding_window": 7, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 9},
        {
            "sliding_window": "[7, 0, 7]",
            "logit_softcap": "5.0",
            "score_scale": "0.3333333333333333",
        },
    ),
    "gpt_oss": (
        "GptOss",
        {"sliding_window": 7, "num_local_experts": 2, "num_experts_per_tok": 1},
        {"sliding_window": "[7, 0, 7]"},
    ),
}


def ids(count: int, seed: int = 0) -> torch.Tensor:
    """[1, count] random ids."""
    return torch.randint(3, VOCABULARY, (1, count), generator=torch.Generator().manual_seed(seed))


def model_of(
    family: str, attention: str = "eager", config: str = "", **settings: typing.Any
) -> typing.Any:
    """A random model in fp32. Errors: SkipTest where this transformers lacks the family."""
    config_class = getattr(transformers, config or f"{family}Config", None)
    if config_class is None:
        raise unittest.SkipTest(f"transformers {transformers.__version__} has no {family}")
    config = config_class(**{**_SIZES, **settings})
    config._attn_implementation = attention
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("sinks") or "norm" in name:  # so that they are not all alike
            torch.nn.init.normal_(parameter.data, 1.0, 0.5)
        if "q_norm" in name or "q_proj.weight" in name:  # so that attention is not flat
            parameter.data *= 4
    return model


def tiny(name: str, attention: str = "eager") -> typing.Any:
    family, settings, _ = MODELS[name]
    return model_of(family, attention, **settings)


def latent() -> typing.Any:
    """A model with MLA: a latent of 32 + 8 elements, which 4 heads share."""
    config = transformers.DeepseekV3Config(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=400,
        q_lora_rank=24,
        kv_lora_rank=32,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        n_shared_experts=1,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
    )
    torch.manual_seed(0)
    return transformers.DeepseekV3ForCausalLM(config).float().eval()


def read(path: pathlib.Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Metadata and tensors of a safetensors file."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    metadata = header.pop("__metadata__")
    types = dict(F32="f4", F16="f2", BF16="u2", I32="i4", I64="i8", U8="u1")
    tensors, end = {}, 0
    for name, entry in header.items():
        begin, stop = entry["data_offsets"]
        assert begin == end, f"{name}: a hole before it"
        array = np.frombuffer(data[8 + size + begin : 8 + size + stop], types[entry["dtype"]])
        tensors[name] = array.reshape(entry["shape"])
        end = stop
    assert 8 + size + end == len(data)
    return metadata, tensors


class Reference:
    """q, k, v of each layer, recomputed from the hidden states that enter its attention."""

    def __init__(self, model: typing.Any) -> None:
        self.qkv: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self._handles = [
            layer.self_attn.register_forward_pre_hook(self._recompute, with_kwargs=True)
            for layer in model.model.layers
        ]

    def _recompute(self, module: typing.Any, args: tuple, kwargs: dict) -> None:
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        embeddings = kwargs.get("position_embeddings") or args[1]
        heads = [
            projection(hidden).view(1, hidden.shape[1], -1, module.head_dim)
            for projection in (module.q_proj, module.k_proj, module.v_proj)
        ]
        if hasattr(module, "q_norm"):
            heads[:2] = module.q_norm(heads[0]), module.k_norm(heads[1])
        q, k, v = (x.transpose(1, 2) for x in heads)
        # The file's own function as it was imported, whatever stands there now.
        rotate = sys.modules[type(module).__module__].apply_rotary_pos_emb
        q, k = getattr(rotate, "__wrapped__", rotate)(q, k, *embeddings)
        self.qkv[module.layer_idx] = tuple(x[0].transpose(0, 1).detach().numpy() for x in (q, k, v))

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


def attention_of(metadata: dict[str, str], tensors: dict[str, np.ndarray], i: int) -> np.ndarray:
    """Probabilities [query_heads, tokens, tokens] of stored layer i in fp64, as traces/README.md
    defines them."""
    q, k = (tensors[f"layers.{i}.{name}"].astype(np.float64) for name in "qk")
    group = q.shape[1] // k.shape[1]
    logits = np.einsum("ihd,jhd->hij", q, np.repeat(k, group, 1)) * float(metadata["score_scale"])
    if "logit_softcap" in metadata:
        cap = float(metadata["logit_softcap"])
        logits = cap * np.tanh(logits / cap)
    row, key = np.arange(len(q))[:, None], np.arange(len(q))[None]
    window = json.loads(metadata.get("sliding_window", "0"))
    window = window[i] if isinstance(window, list) else window
    visible = (key <= row) & ((key > row - window) if window else True)
    weights = np.where(visible, np.exp(logits), 0)
    total = weights.sum(-1, keepdims=True)
    if f"layers.{i}.sink_logits" in tensors:
        total = total + np.exp(tensors[f"layers.{i}.sink_logits"].astype(np.float64))[:, None, None]
    return weights / total


def kvspan() -> str:
    """The program: $KVSPAN, or from a build folder of this tree. Errors: SkipTest."""
    built = sorted(ROOT.glob("build/*/cli/kvspan"))
    program = os.environ.get("KVSPAN") or (str(built[0]) if built else "")
    if not program:
        raise unittest.SkipTest("no kvspan program: build it, or set KVSPAN")
    return program


def run_kvspan(*arguments: typing.Any) -> subprocess.CompletedProcess:
    command = [kvspan(), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


class CaptureTest(unittest.TestCase):
    """A test with a folder of its own."""

    def setUp(self) -> None:
        torch.set_num_threads(1)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.path = self.folder / "trace.safetensors"

    def assert_close(self, a: typing.Any, b: typing.Any, tolerance: float) -> None:
        """max |a - b| <= tolerance max |b|"""
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        self.assertEqual(a.shape, b.shape)
        self.assertLessEqual(np.abs(a - b).max(), tolerance * np.abs(b).max())
