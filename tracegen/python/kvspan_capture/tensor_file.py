# SPDX-License-Identifier: Apache-2.0
"""A safetensors file that is sized beforehand, filled in any order, and trimmed at the end.

    | 8 bytes: length of the header | header, JSON, padded with spaces | tensors |

The header is written last, into room that was left for it. The file has a name of its own until it
is complete; a capture that is interrupted leaves nothing under the final name.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import struct
import typing

import numpy as np

from .errors import CaptureError

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1}
_COPY_BYTES = 1 << 24


class TensorSpec(typing.NamedTuple):
    """A tensor of planned shape; the extent of `token_axis` may turn out smaller."""

    name: str
    dtype: str  # a key of ITEM_BYTES
    shape: tuple[int, ...]
    token_axis: int = 0


class TensorFile:
    """Errors: OSError of the file system (disk full is found when the file is made), CaptureError."""

    def __init__(
        self, path: pathlib.Path, specs: typing.Sequence[TensorSpec], header_bytes: int
    ) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        self._specs = list(specs)
        self._data = -(-header_bytes // 64) * 64  # where the tensors begin
        self._offset: dict[str, int] = {}
        end = self._data
        for spec in specs:
            self._offset[spec.name] = end
            end += math.prod(spec.shape) * ITEM_BYTES[spec.dtype]
        self._row_bytes = {
            spec.name: math.prod(spec.shape[1:]) * ITEM_BYTES[spec.dtype] for spec in specs
        }
        self._file = open(self._partial, "w+b")
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), 0, end)
            else:
                self._file.truncate(end)
        except BaseException:
            self.discard()
            raise

    def write(self, name: str, row: int, data: np.ndarray) -> None:
        """Writes the bytes of `data` to `name`[row:], row an index of the outermost axis."""
        self._file.seek(self._offset[name] + row * self._row_bytes[name])
        self._file.write(memoryview(np.ascontiguousarray(data)).cast("B"))

    def add(self, name: str, row: int, data: np.ndarray) -> None:
        """`name`[row] += data; F32, zero before the first call."""
        self._file.seek(self._offset[name] + row * self._row_bytes[name])
        sum_ = np.frombuffer(self._file.read(data.nbytes), np.float32).reshape(data.shape)
        self.write(name, row, sum_ + data)

    def finish(
        self,
        tokens: int,
        metadata: typing.Mapping[str, str],
        small: typing.Mapping[str, tuple[str, np.ndarray]],
    ) -> None:
        """Cuts each token axis to `tokens`, appends the `small` tensors {name: (dtype, values)},
        writes the header and gives the file its name."""
        header: dict[str, typing.Any] = {"__metadata__": dict(metadata)}
        end = self._data

        def enter(name: str, dtype: str, shape: typing.Sequence[int], begin: int) -> None:
            offsets = [begin - self._data, end - self._data]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}

        for spec in self._specs:
            begin = end
            end = self._trim(spec, tokens, begin)
            shape = list(spec.shape)
            shape[spec.token_axis] = tokens
            enter(spec.name, spec.dtype, shape, begin)
        self._file.seek(end)
        for name, (dtype, values) in small.items():
            begin = end
            end += values.nbytes
            self._file.write(np.ascontiguousarray(values).tobytes())
            enter(name, dtype, values.shape, begin)
        text = json.dumps(header, separators=(",", ":")).encode()
        room = self._data - 8
        if len(text) > room:
            raise CaptureError(
                f"{self._path}: header of {len(text)} bytes; expected {room} or less"
            )
        self._file.seek(0)
        self._file.write(struct.pack("<Q", room) + text.ljust(room))
        self._file.truncate(end)
        self._file.close()
        os.replace(self._partial, self._path)

    def discard(self) -> None:
        """Removes what was written."""
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def _trim(self, spec: TensorSpec, tokens: int, to: int) -> int:
        """Moves what is kept of a tensor down to offset `to`, never up; returns where it ends."""
        source = self._offset[spec.name]
        inner = math.prod(spec.shape[spec.token_axis + 1 :]) * ITEM_BYTES[spec.dtype]
        stride, keep = spec.shape[spec.token_axis] * inner, tokens * inner
        for _ in range(math.prod(spec.shape[: spec.token_axis])):
            if source != to:
                for done in range(0, keep, _COPY_BYTES):
                    self._file.seek(source + done)
                    block = self._file.read(min(_COPY_BYTES, keep - done))
                    self._file.seek(to + done)
                    self._file.write(block)
            source += stride
            to += keep
        return to
