# SPDX-License-Identifier: Apache-2.0
"""Attention as a trace describes it: what a reader of the trace will compute."""

from __future__ import annotations

import dataclasses

import torch


@dataclasses.dataclass(frozen=True)
class AttentionCall:
    """One call of the attention of one layer: R new rows read K keys, the last R of them new.

    query [query_heads, R, head_dim], key [kv_heads, K, head_dim], value [kv_heads, K, v_head_dim],
    output [R, query_heads, v_head_dim]; query and key are post-rotary. Rows are counted from the
    beginning of the sequence.
    """

    layer: int  # the model's index
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    output: torch.Tensor
    scale: float  # on q.k before the softmax
    softcap: float  # 0: none
    window: int  # row i reads keys j with i - window < j <= i; 0: none
    sinks: torch.Tensor | None  # [query_heads], a logit beside those of the keys
    first: int  # row of query[:, 0]

    @property
    def rows(self) -> int:
        return self.query.shape[1]

    @property
    def first_key(self) -> int:
        """Position of key[:, 0]; above 0 where a sliding window dropped older keys."""
        return self.first + self.rows - self.key.shape[1]


def probabilities(call: AttentionCall, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 probabilities [query_heads, r, K] and log-sum-exp [query_heads, r], the sink logit
    included, of the rows `rows` [r] (indices into call.query)."""
    kv_heads, keys, head_dim = call.key.shape
    query = call.query[:, rows].float()
    heads = query.shape[0]
    grouped = query.reshape(kv_heads, -1, head_dim)  # the rows of a group of query heads
    logits = (grouped @ call.key.float().transpose(1, 2)).view(heads, -1, keys) * call.scale
    if call.softcap:
        logits = call.softcap * torch.tanh(logits / call.softcap)
    row = (rows + call.first)[:, None]
    key = torch.arange(call.first_key, call.first_key + keys, device=rows.device)[None]
    hidden = key > row
    if call.window:
        hidden |= key <= row - call.window
    logits.masked_fill_(hidden, -torch.inf)
    lse = torch.logsumexp(logits, -1)
    if call.sinks is not None:
        lse = torch.logaddexp(lse, call.sinks.float()[:, None])
    return logits.sub_(lse[..., None]).exp_(), lse


def output_error(call: AttentionCall, rows: torch.Tensor) -> float:
    """Relative error |ours - theirs| / |theirs| of the output recomputed for some rows."""
    prob, _ = probabilities(call, rows)
    kv_heads, keys, v_head_dim = call.value.shape
    ours = prob.view(kv_heads, -1, keys) @ call.value.float()
    ours = ours.view(prob.shape[0], -1, v_head_dim).transpose(0, 1)
    theirs = call.output[rows].float()
    return float((ours - theirs).norm() / theirs.norm().clamp_min(1e-30))
