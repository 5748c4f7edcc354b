from __future__ import annotations

from dataclasses import fields, replace

import pytest

from udfs.spec import PassageSpec, Prompt, RemoteSpec, ScorerSpec

SPEC = ScorerSpec(model_path="/models/m", model_digest="d" * 64)
CHANGES = {
    "model_path": "/elsewhere", "model_digest": "e" * 64, "max_length": 256,
    "truncation": "passage", "precision": "bf16", "attention": "eager",
    "backend": "onnxruntime", "runtime": "onnxruntime 1.31.1",
    "trust_remote_code": True, "device": "cpu", "max_tokens": 8192, "max_pairs": 7, "window": 9,
    "batch_timeout": 5.0, "remote": RemoteSpec("cohere", "", "m", "probability"),
    "passages": PassageSpec(8, 4),
    "prompt": Prompt((), "{query}", (), "{document}", (), "yes"), "label": 0, "modular": True,
}  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in fields(ScorerSpec)])
def test_the_fingerprint_moves_with_what_changes_a_score_and_with_nothing_else(name: str) -> None:
    moved = replace(SPEC, **{name: CHANGES[name]}).fingerprint() != SPEC.fingerprint()
    assert moved == (
        name not in ("model_path", "device", "max_tokens", "max_pairs", "window", "batch_timeout")
    )


def test_the_fingerprint_is_the_same_in_every_process() -> None:
    """Python's own hash() is salted per process; a store keyed by it would never be hit again."""
    assert SPEC.fingerprint() == "411a1fd764bd120062aa8ac5adc4f2d4"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"truncation": "first"}, "longest_first, passage"),
        ({"precision": "int4"}, "fp32, bf16, fp16, int8"),
        ({"precision": "int8"}, "precision=int8 is none of backend=torch; use one of fp32, bf16"),
        ({"backend": "tensorrt"}, "torch, onnxruntime, tokenizer, stub"),
        ({"max_length": 0}, "max_length=0 is below 1"),
        ({"max_length": 8192}, "max_length=8192 exceeds max_tokens=4096; raise one or lower"),
    ],
)
def test_a_value_no_scorer_could_serve_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(SPEC, **change)
