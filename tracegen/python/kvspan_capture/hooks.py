# SPDX-License-Identifier: Apache-2.0
"""Finds the attention of a transformers model and watches its calls.

Since version 4.48 an attention module of transformers looks up, at each call, a function by the name
of the attention implementation: in ALL_ATTENTION_FUNCTIONS, or (eager) the function
eager_attention_forward of its own file. Both are globals of the file in which the module's forward is
defined. While a capture lasts they are replaced there by wrappers, which run what was asked for and
then show the call to the capture. So the implementation that the user chose stays the one that runs,
and models that are not captured pass through.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import typing

import torch

from .errors import CaptureError

FUNCTIONS = "ALL_ATTENTION_FUNCTIONS"
EAGER = "eager_attention_forward"
ROTARY = "apply_rotary_pos_emb"

# (module, layer, query, key, value, output, keyword arguments) of an attention call.
Observer = typing.Callable[..., None]


def _forward(module: torch.nn.Module) -> typing.Any:
    """The function with the body of the forward method, without decorators or instance wrappers."""
    return inspect.unwrap(type(module).forward)


def find_attention(model: torch.nn.Module) -> dict[torch.nn.Module, int]:
    """The attention modules of a decoder and the model's index of each. Errors: CaptureError."""
    found: dict[torch.nn.Module, int] = {}
    for module in model.modules():
        code = getattr(_forward(module), "__code__", None)
        layer = getattr(module, "layer_idx", None)
        if code is None or layer is None or not {FUNCTIONS, EAGER} & set(code.co_names):
            continue
        if layer in found.values():
            raise CaptureError(
                f"{type(model).__name__}: two attention modules with layer_idx {layer}; expected a "
                "decoder-only model"
            )
        found[module] = layer
    if not found:
        raise CaptureError(
            f"{type(model).__name__}: no attention that goes through the attention interface of "
            "transformers (4.48 or later); expected modules with layer_idx that use it"
        )
    return dict(sorted(found.items(), key=lambda item: item[1]))


class _Functions:
    """ALL_ATTENTION_FUNCTIONS with wrapped entries."""

    def __init__(self, original: typing.Any, wrap: typing.Callable) -> None:
        self._original = original
        self._wrap = wrap

    def __getitem__(self, name: str) -> typing.Callable:
        return self._wrap(self._original[name])

    def __contains__(self, name: str) -> bool:
        return name in self._original

    def get(self, name: str, default: typing.Any = None) -> typing.Any:
        return self[name] if name in self._original else default

    def get_interface(self, name: str, default: typing.Callable) -> typing.Callable:
        # An eager default is the wrapped global already: it is not wrapped twice.
        function = self._original.get_interface(name, default)
        return function if function is default else self._wrap(function)

    def __getattr__(self, name: str) -> typing.Any:
        return getattr(self._original, name)


@contextlib.contextmanager
def watched(
    modules: typing.Mapping[torch.nn.Module, int],
    on_call: Observer,
    on_rotary: typing.Callable[[torch.Tensor], None],
) -> typing.Iterator[None]:
    """Shows each attention call of `modules` to on_call, and the queries before each rotation, [1,
    query_heads, R, dim], to on_rotary (where the model uses the usual function for it)."""

    def wrap(function: typing.Callable) -> typing.Callable:
        @functools.wraps(function)
        def attention(
            module: torch.nn.Module,
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            *args: typing.Any,
            **kwargs: typing.Any,
        ) -> typing.Any:
            result = function(module, query, key, value, *args, **kwargs)
            if module in modules:
                on_call(module, modules[module], query, key, value, result[0], kwargs)
            return result

        return attention

    def wrap_rotary(function: typing.Callable) -> typing.Callable:
        @functools.wraps(function)
        def rotary(query: torch.Tensor, *args: typing.Any, **kwargs: typing.Any) -> typing.Any:
            on_rotary(query)
            return function(query, *args, **kwargs)

        return rotary

    wrappers = {
        FUNCTIONS: lambda original: _Functions(original, wrap),
        EAGER: wrap,
        ROTARY: wrap_rotary,
    }
    files = {id(f.__globals__): f.__globals__ for f in map(_forward, modules)}
    with contextlib.ExitStack() as stack:
        for names in files.values():
            for name, wrapper in wrappers.items():
                if name in names:
                    stack.callback(names.__setitem__, name, names[name])
                    names[name] = wrapper(names[name])
        yield
