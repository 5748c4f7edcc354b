"""A GPU gives the scores that transformers gives in fp32 on a CPU."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import kendalltau

from tests.conftest import SENTENCES
from tests.gpu.conftest import FIRST_ID, Model, write_model
from udfs.forward.transformers import PaddedModel
from udfs.forward.unpadded import UnpaddedModel
from udfs.limits import peak
from udfs.scorers.base import OK

LENGTHS = [*range(1, 40), 63, 64, 65, 127, 128, 129, 255, 256, 300, 511, 512]


@pytest.fixture(scope="module")
def expected(model: Model) -> NDArray[np.float32]:
    """float32[N]: the logits of transformers, pair by pair."""
    from transformers import AutoModelForSequenceClassification

    reference = AutoModelForSequenceClassification.from_pretrained(model.path).eval()
    padded = PaddedModel(reference, torch.device("cpu"))
    pairs = model.pairs(LENGTHS)
    return np.concatenate([padded.forward(pairs.take([row])).logits for row in range(len(LENGTHS))])


@pytest.mark.parametrize(
    ("precision", "attention", "how", "tolerance"),
    [
        ("fp32", "auto", PaddedModel, 1e-4),
        ("fp16", "auto", UnpaddedModel, 0.02),
        ("fp16", "eager", PaddedModel, 0.02),
        ("bf16", "auto", UnpaddedModel, 0.15),
    ],
)
def test_logits_are_those_of_transformers(
    model: Model, expected: NDArray[np.float32], precision: str, attention: str, how: type,
    tolerance: float,
) -> None:  # fmt: skip
    scorer = model.scorer(precision, attention=attention)
    assert type(scorer._model) is how
    scores = scorer.score_encoded(model.pairs(LENGTHS))
    assert (scores.status == OK).all()
    np.testing.assert_allclose(scores.logit, expected, atol=tolerance)
    assert kendalltau(scores.logit, expected).statistic > (0.9 if precision == "bf16" else 0.97)


def test_texts_that_are_cut_score_the_same(model: Model) -> None:
    queries = [SENTENCES[n % 3] for n in range(200)]
    docs = [SENTENCES[n % 8][: 10 + n] for n in range(200)]
    on_gpu = model.scorer("fp16", max_length=96).score(queries, docs)
    on_cpu = model.scorer("fp32", device="cpu", max_length=96).score(queries, docs)
    assert on_gpu.truncated.any() and not on_gpu.truncated.all()
    np.testing.assert_allclose(on_gpu.logit, on_cpu.logit, atol=0.02)


def test_a_pair_scores_the_same_in_any_batch(model: Model) -> None:
    pairs = model.pairs(LENGTHS)
    alone = model.scorer(max_pairs=1).score_encoded(pairs)
    together = model.scorer().score_encoded(pairs)
    np.testing.assert_allclose(together.logit, alone.logit, atol=0.01)


def test_starting_a_batch_does_not_wait_for_the_gpu(model: Model) -> None:
    forward, pairs = model.scorer()._model, model.pairs([100] * 160)
    wait = forward.forward(pairs).wait
    assert wait is not None
    wait()
    torch.cuda.set_sync_debug_mode("error")
    try:
        outputs = [forward.forward(pairs) for _ in range(4)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    times = [output.wait() for output in outputs if output.wait]
    assert len(times) == 4 and min(times) > 0
    for output in outputs[1:]:
        np.testing.assert_array_equal(output.logits, outputs[0].logits)


def test_rows_that_overflow_in_fp16_are_scored_again(tiny_xlmr: Path, tmp_path: Path) -> None:
    def overflow(model: torch.nn.Module) -> None:
        with torch.no_grad():
            model.roberta.embeddings.word_embeddings.weight[FIRST_ID] = 1e5  # type: ignore[union-attr,operator,index]

    model = write_model(tiny_xlmr, tmp_path / "model", overflow)
    pairs = model.pairs([50] * 300)
    hit = (pairs.ids.reshape(300, 50) == FIRST_ID).any(1)
    assert 0 < hit.sum() < 300
    scorer = model.scorer("fp16")
    scores = scorer.score_encoded(pairs)
    assert (scores.status == OK).all()
    assert scorer.rescored == hit.mean()
    exact = model.scorer("fp32").score_encoded(pairs)
    np.testing.assert_allclose(scores.logit[hit], exact.logit[hit], atol=1e-4)


def _score_often(model: Model, batches: int) -> NDArray[np.float32]:
    scorer = model.scorer("fp16", max_tokens=2048, max_length=512)
    draw = np.random.default_rng(1)
    lengths = [draw.integers(5, 200, 20).tolist() for _ in range(batches)]
    pairs = (model.pairs(each, seed) for seed, each in enumerate(lengths))
    return np.concatenate([scorer.score_encoded(each).logit for each in pairs])


def test_two_processes_on_one_gpu_score_as_one_does(model: Model) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        serial = pool.apply(_score_often, (model, 500))
        both = [pool.apply_async(_score_often, (model, 500)) for _ in range(2)]
        for result in both:
            np.testing.assert_array_equal(result.get(), serial)


def test_memory_of_the_process_is_more_than_its_tensors(model: Model) -> None:
    model.scorer().score_encoded(model.pairs([100] * 160))
    held = peak().device_mb
    assert held is not None
    assert held >= torch.cuda.max_memory_reserved() / 2**20
    assert held < torch.cuda.get_device_properties(0).total_memory / 2**20
