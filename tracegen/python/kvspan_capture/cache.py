# SPDX-License-Identifier: Apache-2.0
"""What a model's own cache holds of a token, which is not always the K and V that attention reads."""

from __future__ import annotations

import typing

import torch


def cached_elements(cache: typing.Any, layer: int) -> int | None:
    """Elements of K and V a token in one layer of a cache of transformers, of one sequence; 0 where
    the layer has no entry of its own, None where the cache does not say."""
    if cache is None:
        return None
    layers = getattr(cache, "layers", None)
    if layers is None:  # transformers before 4.54
        both = [getattr(cache, name, None) for name in ("key_cache", "value_cache")]
        if any(one is None for one in both):
            return None
        if layer >= len(both[0]):
            return 0
        keys, values = both[0][layer], both[1][layer]
    else:
        if layer >= len(layers):
            return 0
        keys = getattr(layers[layer], "keys", False)
        values = getattr(layers[layer], "values", False)
        if keys is None and values is None:  # a layer that reads the entries of another
            return 0
    if not isinstance(keys, torch.Tensor) or not isinstance(values, torch.Tensor):
        return None
    if keys.dim() != 4 or keys.numel() == 0:
        return None
    # [1, heads, tokens, dim]; the two may differ in heads and dim (a latent and its rotated part).
    return sum(one.numel() // one.shape[-2] for one in (keys, values) if one.numel())


def latent_elements(config: typing.Any) -> int | None:
    """The same for a latent (MLA) by its configuration, for a pass without a cache."""
    rank = getattr(config, "kv_lora_rank", None)
    rope = getattr(config, "qk_rope_head_dim", None)
    return rank + rope if isinstance(rank, int) and isinstance(rope, int) else None
