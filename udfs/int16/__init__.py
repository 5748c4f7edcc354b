"""Cross-encoders in 16-bit integers, for CPUs that have AVX2 and nothing newer.

Such a CPU has no instruction for bf16, but one that multiplies sixteen 16-bit integers and adds
their products in pairs (`vpmaddwd`): twice the multiplications of a float32 instruction, on half
the memory. Rows of activations and columns of weights are scaled so that their norms are below
46341, the root of 2^31. By the inequality of Cauchy and Schwarz no sum of their products, nor any
part of one, then leaves 32 bits, whatever the numbers are: the sum is exact, and all that is lost
is the rounding of each number to one part in 46341 of its row's norm. In bf16 each number is
rounded to one part in 256 of itself. On TREC DL19 logits are within 0.002 of float32's.

Everything else is float32: embeddings, LayerNorm, GELU, attention and the classification head. The
kernels are written in LLVM's intermediate language and compiled by llvmlite when a model is loaded,
in a fraction of a second. Each row is computed alike wherever it lies, so that what the encoder
makes of a pair does not depend on its batch, nor on the number of threads.

It pays on AVX2 without AVX-512, 1.4 to 1.6 times float32's speed there. With AVX-512 float32 has as
many multiplications a cycle as these kernels; where there is bf16 in hardware, that is faster.

From the bottom up: `limits` (numbers the others share), `ir` (a builder of LLVM's instructions),
`linear`, `rows` and `attention` (the kernels), `kernels` (compiled), `matrix` (memory they may
touch), `layers` (packed weights), `encoder` (layers over tokens), `model` (ids -> logits).
"""

from __future__ import annotations

from functools import cache

from udfs.int16.limits import unsupported

__all__ = ["lacking", "unsupported"]


@cache
def lacking() -> str | None:
    """What this machine lacks to compute in int16, with the remedy; None if it lacks nothing."""
    try:
        import llvmlite.binding as llvm
    except ImportError:
        return "int16 needs llvmlite, which is not installed; pip install 'spark-rerank[int16]'"
    try:
        features = llvm.get_host_cpu_features()
    except RuntimeError:  # LLVM cannot tell on this kind of processor
        features = {}
    if features.get("avx2") and features.get("fma"):
        return None
    return "int16 needs a CPU with AVX2 and FMA, and this one has none; use model.precision=fp32"
