"""The kernels, compiled.

They are given raw addresses and check nothing: call them through `matrix` and `layers`, which do.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from udfs.int16.attention import add_attention
from udfs.int16.linear import add_linear
from udfs.int16.rows import add_layer_norm, add_quantise


class Kernels:
    """The compiled functions.

    Addresses are those of the first row; ld: elements from one row to the next. M, K, N and what is
    in a head are 1 at least, K and N multiples of 16, M of 6 where a weight is. Nothing overlaps
    with what is written. All release the GIL.
    """

    def __init__(self) -> None:
        """Compile, in a third of a second."""
        module = ir.Module()
        module.triple = llvm.get_default_triple()
        add_linear(module, "linear")
        add_linear(module, "linear_gelu", gelu=True)
        add_linear(module, "linear_plus", plus=True)
        add_quantise(module, "quantise")
        add_layer_norm(module, "layer_norm")
        add_attention(module, "attention")
        self._engine = _compiled(module)
        at, n = ctypes.c_void_p, ctypes.c_int64
        linear = [at, n, at, at, at, at, at, n, n, n, n]
        #: int16 x [M, K], ldx, scales [M], packed weight, its scales [N], bias [N],
        #: -> float32 [M, N], ld, M, K, N
        self.linear = self._function("linear", linear)
        #: the same, followed by exact GELU
        self.linear_gelu = self._function("linear_gelu", linear)
        #: the same as `linear`, then float32 [M, N] to add, ld
        self.linear_plus = self._function("linear_plus", [*linear, at, n])
        #: float32 [M, K], ld -> int16 [M, K], ld, scales [M], M, K
        self.quantise = self._function("quantise", [at, n, at, n, at, n, n])
        #: float32 [M, K], ld, weight [K], bias [K], epsilon
        #: -> float32 [M, K], ld, int16 [M, K], ld, scales [M], M, K
        self.layer_norm = self._function(
            "layer_norm", [at, n, at, at, ctypes.c_float, at, n, at, n, at, n, n]
        )

        #: queries float32, ld, int64 [B] their first row, int64 [B] how many; keys float32,
        #: values float32, ld of both, int64 [B] first row, int64 [B] how many; -> float32, ld;
        #: float32 [(2 S + 6) P + 102] for work, factor, B, heads, S: size of a head. P: the longest
        #: pair's keys, rounded up to 16, which are read; five more rows of queries are read, and of
        #: results written, than there are: pairs have to come in the order of their rows.
        self.attention = self._function(
            "attention",
            [at, n, at, at, at, at, n, at, at, at, n, at, ctypes.c_float, n, n, n],
        )

    def _function(self, name: str, arguments: Sequence[Any]) -> Callable[..., None]:
        return ctypes.CFUNCTYPE(None, *arguments)(self._engine.get_function_address(name))


@cache
def kernels() -> Kernels:
    """The functions, compiled once in a process."""
    return Kernels()


def _compiled(module: ir.Module) -> Any:
    """An engine, for this very CPU, that owns the code of a module."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    return engine
