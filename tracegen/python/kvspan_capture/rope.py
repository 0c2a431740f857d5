# SPDX-License-Identifier: Apache-2.0
"""The rotary embedding, as the metadata of a trace describe it.

What the configuration says is written only if it explains what the model did: a query is rotated
here by the described embedding and compared with the query that the attention received.
"""

from __future__ import annotations

import json
import math
import typing

import numpy as np

_TYPES = ("default", "linear", "llama3", "yarn")  # those that the reader of traces knows


class Rotation(typing.NamedTuple):
    """One row's queries before and after the model rotated them, and the row's position."""

    before: np.ndarray  # [query_heads, rotated part of head_dim, or all of it], fp32
    after: np.ndarray  # [query_heads, head_dim], fp32
    position: int
    tolerance: float  # relative error that the arithmetic of the model explains


def inverse_frequencies(theta: float, dim: int, scaling: typing.Mapping) -> np.ndarray:
    """Radians per position [dim / 2]. Source: transformers, modeling_rope_utils."""
    frequencies = theta ** (-np.arange(0, dim, 2) / dim)
    kind = scaling.get("rope_type", "default")
    if kind == "default":
        return frequencies
    factor = scaling["factor"]
    if kind == "linear":
        return frequencies / factor
    context = scaling["original_max_position_embeddings"]
    if kind == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = context * frequencies / (2 * math.pi)
        kept = np.clip((turns - low) / (high - low), 0, 1)
    else:
        fast, slow = scaling.get("beta_fast") or 32, scaling.get("beta_slow") or 1
        low, high = (
            dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))
            for turns in (fast, slow)
        )
        if scaling.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        kept = 1 - np.clip((np.arange(dim // 2) - low) / max(high - low, 0.001), 0, 1)
    return frequencies * (kept + (1 - kept) / factor)


def _explains(rotation: Rotation, frequencies: np.ndarray, layout: str) -> bool:
    """Whether rotating `before` gives `after`, up to a factor common to all (that of YaRN)."""
    dim = 2 * len(frequencies)
    part = rotation.before.shape[-1]
    if dim > part:
        return False
    half = layout == "half"
    first = slice(0, dim // 2) if half else slice(0, dim, 2)
    second = slice(dim // 2, dim) if half else slice(1, dim, 2)
    angle = rotation.position * frequencies
    x, y = rotation.before[:, first], rotation.before[:, second]
    ours = np.empty_like(rotation.before[:, :dim])
    ours[:, first] = x * np.cos(angle) - y * np.sin(angle)
    ours[:, second] = y * np.cos(angle) + x * np.sin(angle)
    theirs = rotation.after[:, :dim]
    factor = (ours * theirs).sum() / max((ours * ours).sum(), 1e-30)
    error = np.linalg.norm(factor * ours - theirs)
    rest = np.linalg.norm(rotation.before[:, dim:] - rotation.after[:, dim:part])
    return factor > 0 and max(error, rest) <= rotation.tolerance * np.linalg.norm(rotation.after)


def _settings(config: typing.Any, layer: int) -> dict[str, typing.Any]:
    """rope_theta and scaling of one layer: rope_parameters (transformers 5, perhaps by the type of
    the layer), or rope_theta and rope_scaling (4)."""
    settings = getattr(config, "rope_parameters", None)
    if settings is None:
        settings = dict(getattr(config, "rope_scaling", None) or {})
        settings["rope_theta"] = getattr(config, "rope_theta", None)
    kinds = getattr(config, "layer_types", None)
    if kinds and isinstance(settings.get(kinds[layer]), dict):
        settings = settings[kinds[layer]]
    settings = {key: value for key, value in settings.items() if value is not None}
    settings.setdefault("rope_type", settings.pop("type", "default"))
    settings.setdefault(
        "original_max_position_embeddings", getattr(config, "max_position_embeddings", None)
    )
    return settings


def describe(
    config: typing.Any, rotations: typing.Mapping[int, Rotation | None], head_dim: int
) -> tuple[dict[str, str], str]:
    """Metadata of the rotary embedding that all layers share, or none and the reason.

    rotations  of each layer that is stored; None: it did not use the usual function
    """
    settings = [_settings(config, layer) for layer in rotations]
    if not any("rope_theta" in one for one in settings):
        return {}, ""  # a model without rotary embedding
    omitted = "the rotary embedding is omitted: "
    if any(one != settings[0] for one in settings):
        return {}, omitted + "it differs among the layers; capture layers of one kind"
    scaling = settings[0]
    theta, kind = scaling.pop("rope_theta"), scaling["rope_type"]
    if kind not in _TYPES:
        return {}, omitted + f"rope_type '{kind}'; expected one of {', '.join(_TYPES)}"
    checks = list(rotations.values())
    if any(one is None or one.position == 0 for one in checks):
        return {}, omitted + "not every layer showed a query before its rotation"
    partial = scaling.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None))
    dim = int(head_dim * (partial or 1.0))
    frequencies = inverse_frequencies(theta, dim, scaling)
    for layout in ("half", "interleaved"):
        if all(_explains(one, frequencies, layout) for one in checks):
            found = {"rope_theta": repr(float(theta)), "rope_dim": str(dim), "rope_layout": layout}
            if kind != "default":
                found["rope_scaling"] = json.dumps(scaling)
            return found, ""
    return {}, omitted + "the configuration does not explain how the queries were rotated"
