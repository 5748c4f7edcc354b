from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    GPT2Config,
    ModernBertConfig,
    PreTrainedConfig,
    T5Config,
)

from tests.conftest import SENTENCES
from udfs.checkpoint import digest_of
from udfs.devices import DeviceError, TaskSlot
from udfs.encoding.pairs import EncodedPairs, PairEncoder
from udfs.forward.base import BatchOutput, LogitModel, ModelError, load_model
from udfs.scorers.base import NONFINITE, OK, OUT_OF_MEMORY
from udfs.scorers.cross_encoder import Scorer, check_model
from udfs.spec import Precision, ScorerSpec

QUERIES = [SENTENCES[i % 3] for i in range(25)]
DOCS = [SENTENCES[i % 8] * (1 + i % 4) for i in range(25)]


def spec(folder: Path, **changes: object) -> ScorerSpec:
    return ScorerSpec(str(folder), "", **{"max_length": 64, **changes})  # type: ignore[arg-type]


class Lengths:
    """A model whose logit is the row's token count; it remembers the sizes of its batches."""

    def __init__(self, capacity: int = 10**9, broken: frozenset[int] = frozenset()) -> None:
        self.capacity, self.broken, self.sizes = capacity, broken, list[int]()

    def forward(self, batch: EncodedPairs) -> BatchOutput:
        lengths = batch.lengths
        self.sizes.append(len(lengths) * int(lengths.max()))
        if self.sizes[-1] > self.capacity:
            raise torch.OutOfMemoryError("no memory left")
        values: NDArray[np.float32] = np.where(
            np.isin(lengths, list(self.broken)), np.nan, lengths
        ).astype(np.float32)
        return BatchOutput(values, lengths.max() - lengths)


def scorer(folder: Path, model: Lengths, **changes: object) -> Scorer:
    given = spec(folder, **changes)
    return Scorer(PairEncoder(folder, given), lambda _: model, given)


def test_scores_come_back_in_the_order_of_the_rows(tiny_bert: Path) -> None:
    scores = scorer(tiny_bert, Lengths(), max_tokens=200).score(QUERIES, DOCS)
    np.testing.assert_array_equal(scores.logit, scores.n_tokens.astype(np.float32))
    assert (scores.status == OK).all()


def test_texts_that_spell_out_the_end_are_scored_apart(tiny_xlmr: Path, tmp_path: Path) -> None:
    """BART wants as many </s> in each row of a batch."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_xlmr)
    torch.manual_seed(3)
    config = BartConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1, num_labels=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64,
        decoder_ffn_dim=64, max_position_embeddings=128, eos_token_id=2, pad_token_id=1,
        bos_token_id=0, decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    docs = [f"{doc}</s>" if at % 3 == 1 else doc for at, doc in enumerate(DOCS)]
    real = Scorer.load(tmp_path, spec(tmp_path), TaskSlot(cpus=1))
    scores = real.score(QUERIES, docs)
    assert (scores.status == OK).all()
    alone = [real.score([query], [doc]).logit[0] for query, doc in zip(QUERIES, docs, strict=True)]
    np.testing.assert_allclose(scores.logit, alone, atol=1e-5)


@pytest.mark.parametrize("size", [0, 1, 4, 5])
def test_no_pairs_one_pair_a_full_batch_and_one_more(tiny_model: Path, size: int) -> None:
    """A batch of one was once squeezed to a scalar elsewhere (SPARK-42250, SPARK-43298)."""
    real = Scorer.load(tiny_model, spec(tiny_model, max_pairs=4), TaskSlot(cpus=1))
    scores = real.score(QUERIES[:size], DOCS[:size])
    assert scores.logit.shape == (size,)
    assert np.isfinite(scores.logit).all()


@pytest.mark.parametrize("max_tokens", [64, 256, 4096])
def test_a_row_scores_the_same_alone_and_in_any_batch(tiny_model: Path, max_tokens: int) -> None:
    one_by_one = Scorer.load(tiny_model, spec(tiny_model, max_pairs=1), TaskSlot(cpus=1))
    batched = Scorer.load(tiny_model, spec(tiny_model, max_tokens=max_tokens), TaskSlot(cpus=1))
    np.testing.assert_allclose(
        batched.score(QUERIES, DOCS).logit, one_by_one.score(QUERIES, DOCS).logit, atol=1e-4
    )


def test_out_of_memory_halves_the_batch_and_every_row_is_scored(tiny_bert: Path) -> None:
    model = Lengths(capacity=130)
    scores = scorer(tiny_bert, model, max_tokens=1000).score(QUERIES, DOCS)
    assert (scores.status == OK).all()
    assert max(model.sizes) > 130, "the fault never fired"


def test_a_pair_that_never_fits_is_marked_and_the_rest_scored(tiny_bert: Path) -> None:
    scores = scorer(tiny_bert, Lengths(capacity=60), max_tokens=1000).score(QUERIES, DOCS)
    too_long = scores.n_tokens > 60
    assert too_long.any()
    assert (scores.status[too_long] == OUT_OF_MEMORY).all()
    assert np.isnan(scores.logit[too_long]).all()
    assert (scores.status[~too_long] == OK).all()


def test_memory_that_others_hold_ends_the_task_and_rejects_no_pair(tiny_bert: Path) -> None:
    """Two workers share a GPU: a pair once lost its score because the other had taken it all."""
    crowded = scorer(tiny_bert, Lengths(capacity=7), max_tokens=1000)
    with pytest.raises(DeviceError, match="a pair of 8 tokens: other processes hold it"):
        crowded.score(QUERIES, DOCS)


def test_a_cpu_without_memory_is_a_device_without_memory(tiny_bert: Path) -> None:
    """torch has no error class for it: this is the true error of an allocation that is too big."""

    class Greedy(Lengths):
        def forward(self, batch: EncodedPairs) -> BatchOutput:
            if len(batch.lengths) * batch.lengths.max() > self.capacity:
                torch.empty(1 << 48)
            return super().forward(batch)

    scores = scorer(tiny_bert, Greedy(capacity=60), max_tokens=1000).score(QUERIES, DOCS)
    too_long = scores.n_tokens > 60
    assert too_long.any() and not too_long.all()
    assert (scores.status == np.where(too_long, OUT_OF_MEMORY, OK)).all()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError(
            "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"
        ),
        MemoryError(),
    ],
)
def test_every_form_of_no_memory_is_recovered_from(tiny_bert: Path, error: Exception) -> None:
    class Full(Lengths):
        def forward(self, batch: EncodedPairs) -> BatchOutput:
            if len(batch.lengths) > 3:
                raise error
            return super().forward(batch)

    full = scorer(tiny_bert, Full(), max_tokens=1000)
    assert (full.score(QUERIES, DOCS).status == OK).all()
    assert full.halvings > 0


def test_a_batch_is_made_while_the_one_before_it_is_computed(tiny_bert: Path) -> None:
    events: list[str] = []

    class Later(Lengths):
        def forward(self, batch: EncodedPairs) -> BatchOutput:
            found, number = super().forward(batch), len(self.sizes)
            logits = np.full_like(found.logits, np.nan)

            def wait() -> float:
                events.append(f"read {number}")
                logits[:] = found.logits
                return 40.0

            events.append(f"start {number}")
            return BatchOutput(logits, found.padding, wait)

    scores = scorer(tiny_bert, Later(), max_pairs=9).score(QUERIES, DOCS)
    assert events == ["start 1", "start 2", "read 1", "start 3", "read 2", "read 3"]
    np.testing.assert_array_equal(scores.logit, scores.n_tokens.astype(np.float32))
    assert scores.device_ms.sum() == pytest.approx(120.0, rel=1e-5)


def test_only_memory_errors_are_retried(tiny_bert: Path) -> None:
    class Broken(Lengths):
        def forward(self, batch: EncodedPairs) -> BatchOutput:
            raise RuntimeError("device-side assert")

    with pytest.raises(RuntimeError, match="device-side"):
        scorer(tiny_bert, Broken()).score(QUERIES, DOCS)


def test_a_logit_that_is_no_number_is_marked_not_invented(tiny_bert: Path) -> None:
    """A failed document given 0.0 would outrank every negative logit."""
    scores = scorer(tiny_bert, Lengths(broken=frozenset({64}))).score(QUERIES, DOCS)
    lost = scores.n_tokens == 64
    assert lost.any()
    assert (scores.status[lost] == NONFINITE).all()
    assert np.isnan(scores.logit[lost]).all()
    assert np.isfinite(scores.logit[~lost]).all()


def test_rows_lost_in_half_precision_are_scored_again_in_float32(tiny_bert: Path) -> None:
    given = spec(tiny_bert, precision="fp16")
    models = {
        "fp16": Lengths(broken=frozenset({64})),
        "fp32": load_model(tiny_bert, given, TaskSlot(cpus=1), "fp32"),
    }
    scorer = Scorer(PairEncoder(tiny_bert, given), models.__getitem__, given)
    mixed = scorer.score(QUERIES, DOCS)
    real = Scorer.load(tiny_bert, spec(tiny_bert), TaskSlot(cpus=1)).score(QUERIES, DOCS)
    lost = mixed.n_tokens == 64
    assert scorer.rescored == lost.mean() > 0
    assert (mixed.status == OK).all()
    np.testing.assert_allclose(mixed.logit[lost], real.logit[lost], atol=1e-4)


def test_float32_without_memory_is_tried_once(tiny_bert: Path) -> None:
    """Each window with a row to rescue once read all weights again, to fail again."""
    given, loaded = spec(tiny_bert, precision="fp16"), []

    def load(precision: Precision) -> LogitModel:
        loaded.append(precision)
        if precision == "fp32":
            raise MemoryError
        return Lengths(broken=frozenset({64}))

    scorer = Scorer(PairEncoder(tiny_bert, given), load, given)
    for _ in range(2):
        scores = scorer.score(QUERIES, DOCS)
        assert (scores.status[scores.n_tokens == 64] == NONFINITE).all()
    assert loaded == ["fp16", "fp32"]


def test_device_time_is_shared_out_by_tokens(tiny_bert: Path) -> None:
    scores = scorer(tiny_bert, Lengths(), max_tokens=10**6).score(QUERIES, DOCS)
    per_token = scores.device_ms / scores.n_tokens
    np.testing.assert_allclose(per_token, per_token[0], rtol=1e-4)


def test_bf16_keeps_logits_apart(tiny_bert: Path) -> None:
    """With the head in bf16 as well, 64 pairs kept only about ten values."""
    half = Scorer.load(tiny_bert, spec(tiny_bert, precision="bf16"), TaskSlot(cpus=1))
    full = Scorer.load(tiny_bert, spec(tiny_bert), TaskSlot(cpus=1))
    queries = [f"{SENTENCES[i % 8]} {i}" for i in range(64)]
    docs = [SENTENCES[(i * 5) % 8] for i in range(64)]
    rounded, exact = half.score(queries, docs).logit, full.score(queries, docs).logit
    assert len(np.unique(rounded)) > 0.9 * len(np.unique(exact))


def test_a_model_that_is_not_the_one_the_driver_saw_is_not_loaded(
    tiny_bert: Path, tmp_path: Path
) -> None:
    """Another machine's folder of that name, or one that changed since the driver hashed it."""
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    given = ScorerSpec(str(folder), digest_of(folder), max_length=64)
    Scorer.load(folder, given, TaskSlot(cpus=1))
    weights = folder / "model.safetensors"
    flipped = bytearray(weights.read_bytes())
    flipped[-1] ^= 1
    weights.write_bytes(flipped)
    with pytest.raises(ModelError, match="copy the folder anew"):
        Scorer.load(folder, given, TaskSlot(cpus=1))


def test_weights_that_change_in_place_after_loading_change_no_score(
    tiny_bert: Path, tmp_path: Path
) -> None:
    """Mapped memory would follow the file: `cat new > model.safetensors` during a job."""
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    for precision in ("fp32", "bf16"):
        real = Scorer.load(folder, spec(folder, precision=precision), TaskSlot(cpus=1))
        before = real.score(QUERIES, DOCS).logit
        with (folder / "model.safetensors").open("r+b") as stream:
            size = stream.seek(0, 2)
            stream.seek(size // 2)
            stream.write(bytes(size - size // 2))
        np.testing.assert_array_equal(real.score(QUERIES, DOCS).logit, before)
        shutil.copytree(tiny_bert, folder, dirs_exist_ok=True)


def test_the_head_keeps_its_float32_weights_in_half_precision(
    tiny_bert: Path, tmp_path: Path
) -> None:
    """Loaded in bf16 first, a weight of 0.3 became 0.30078."""
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"] = torch.zeros_like(weights["classifier.weight"])
    weights["classifier.bias"] = torch.tensor([0.3])
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    half = Scorer.load(folder, spec(folder, precision="bf16"), TaskSlot(cpus=1))
    assert half.score(["fleas"], ["dogs"]).logit[0] == np.float32(0.3)


def other_model(tiny_bert: Path, folder: Path, config: PreTrainedConfig) -> Path:
    """A random model of another architecture with the tokenizer of the tiny BERT."""
    shutil.copytree(tiny_bert, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.manual_seed(3)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


T5 = T5Config(
    vocab_size=500, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, num_labels=1,
    pad_token_id=0, eos_token_id=3, decoder_start_token_id=0,
)  # fmt: skip
MODERNBERT = ModernBertConfig(
    vocab_size=500, hidden_size=32, intermediate_size=48, num_hidden_layers=3, pad_token_id=0,
    num_attention_heads=2, max_position_embeddings=128, local_attention=16, num_labels=1,
)  # fmt: skip
GPT2 = GPT2Config(vocab_size=500, n_positions=128, n_embd=32, n_layer=2, n_head=2, num_labels=1)


def test_an_architecture_that_is_not_packed_scores_in_bf16(tiny_bert: Path, tmp_path: Path) -> None:
    """T5 reads the weight of a layer that packing took away."""
    folder = other_model(tiny_bert, tmp_path / "t5", T5)
    exact, half = (
        Scorer.load(folder, spec(folder, precision=precision), TaskSlot(cpus=1)).score(
            QUERIES, DOCS
        )
        for precision in ("fp32", "bf16")
    )
    assert (half.status == OK).all()
    np.testing.assert_allclose(half.logit, exact.logit, atol=0.1)


def test_modernbert_scores_as_transformers_does(tiny_bert: Path, tmp_path: Path) -> None:
    """gte-reranker-modernbert and Ettin: padded, as it unpads with a package of its own only."""
    folder = other_model(tiny_bert, tmp_path / "modernbert", MODERNBERT)
    scores = Scorer.load(folder, spec(folder, max_tokens=500), TaskSlot(1)).score(QUERIES, DOCS)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for at in range(0, len(DOCS), 5):
        inputs = tokenizer(
            QUERIES[at], DOCS[at], truncation=True, max_length=64, return_tensors="pt"
        )
        inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            assert scores.logit[at] == pytest.approx(model(**inputs).logits.item(), abs=1e-5)


def test_the_driver_finds_out_whether_an_architecture_can_score(
    tiny_model: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    check_model(tiny_model, spec(tiny_model, precision="bf16"))
    check_model(other_model(tiny_bert, tmp_path / "t5", T5), spec(tmp_path / "t5"))
    folder = other_model(tiny_bert, tmp_path / "gpt2", GPT2)
    with pytest.raises(ModelError, match=r"cannot score a pair .*padding token"):
        check_model(folder, spec(folder))
    check_model(folder, spec(folder, max_pairs=1))


def test_no_padding_token_is_needed_where_nothing_is_padded(
    tiny_bert: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    check_model(folder, spec(folder))
    with_token, without = (
        Scorer.load(path, spec(path), TaskSlot(cpus=1)).score(QUERIES, DOCS)
        for path in (tiny_bert, folder)
    )
    np.testing.assert_array_equal(with_token.logit, without.logit)
