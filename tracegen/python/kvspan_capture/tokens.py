# SPDX-License-Identifier: Apache-2.0
"""Token ids, their text, and the negative log-likelihood of each next token, as they pass by."""

from __future__ import annotations

import typing

import numpy as np
import torch

_BLOCK_ROWS = 64  # logits rows that are widened to fp32 at a time


class TokenRecorder:
    """Watches the ids that enter a model and the logits that leave it."""

    def __init__(self) -> None:
        self._ids: list[np.ndarray] = []
        self._nll: list[np.ndarray] = []
        self._rows = 0  # of the last pass
        self._last: torch.Tensor | None = None  # log-probabilities after the last row
        self._complete = True

    def on_ids(self, ids: torch.Tensor) -> None:
        """ids [1, R] of a pass, before it runs."""
        ids = ids.detach().reshape(-1)
        if self._last is not None and self._rows:
            self._nll.append(-self._last[ids[:1].to(self._last.device)].cpu().numpy())
        elif self._ids:
            self._complete = False
        self._last = None
        self._rows = len(ids)
        self._ids.append(ids.cpu().numpy().astype(np.int32))

    def on_logits(self, logits: torch.Tensor) -> None:
        """logits [1, R, vocabulary] of the pass; fewer rows than R make nll incomplete."""
        logits = logits.detach()[0]
        if len(logits) != self._rows:
            self._complete = False
        for begin in range(0, len(logits) if self._complete else 0, _BLOCK_ROWS):
            block = torch.log_softmax(logits[begin : begin + _BLOCK_ROWS].float(), -1)
            following = self._ids[-1][begin + 1 : begin + 1 + len(block)]
            chosen = torch.from_numpy(following.astype(np.int64)).to(block.device)[:, None]
            self._nll.append(-block[: len(following)].gather(1, chosen)[:, 0].cpu().numpy())
        self._last = torch.log_softmax(logits[-1].float(), -1)

    def ids(self, tokens: int) -> np.ndarray | None:
        """I32 [tokens], or None if other than these entered the model."""
        ids = np.concatenate(self._ids) if self._ids else np.empty(0, np.int32)
        return ids if len(ids) == tokens else None

    def nll(self, tokens: int) -> np.ndarray | None:
        """F32 [tokens], nats; the last value is 0. None if logits of a row were not seen."""
        if not self._complete or self.ids(tokens) is None:
            return None
        nll = np.concatenate([*self._nll, np.zeros(1)]).astype(np.float32)
        return nll if len(nll) == tokens and np.isfinite(nll).all() else None


def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE writes a byte as a printable character: itself, or one from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


def token_pieces(tokenizer: typing.Any, ids: typing.Iterable[int]) -> list[bytes]:
    """The bytes of each token as they stand in the text; an added token gives its name, an id
    outside the vocabulary nothing.

    tokenizer  of transformers
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    byte_level = backend is not None and '"ByteLevel"' in backend.to_str()
    added = {id_: str(token) for id_, token in tokenizer.added_tokens_decoder.items()}
    table = _byte_of_character()
    known: dict[int, bytes] = {}

    def piece(id_: int) -> bytes:
        token = tokenizer.convert_ids_to_tokens(id_)
        if id_ in added or token is None:
            return added.get(id_, "").encode()
        if byte_level:
            return bytes(table[character] for character in token)
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return token.replace("\u2581", " ").encode()

    pieces = []
    for id_ in map(int, ids):
        if id_ not in known:
            known[id_] = piece(id_)
        pieces.append(known[id_])
    return pieces


def text_tensors(tokenizer: typing.Any, ids: np.ndarray) -> dict[str, tuple[str, np.ndarray]]:
    """token_text U8 [bytes] and token_text_offsets I64 [tokens + 1]."""
    pieces = token_pieces(tokenizer, ids)
    offsets = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
    text = np.frombuffer(b"".join(pieces), np.uint8)
    return {"token_text_offsets": ("I64", offsets), "token_text": ("U8", text)}
