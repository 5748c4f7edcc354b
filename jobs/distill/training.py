"""Train a cross-encoder on lists of documents with scores and labels.

Needs sentence-transformers and datasets (the extra `train`), no Spark and no configuration: it runs
wherever the lists and a model folder are.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.cross_encoder import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
)
from transformers import EarlyStoppingCallback

from jobs.distill.evaluator import METRIC, ListEvaluator
from jobs.distill.folders import save
from jobs.distill.losses import MixedLoss
from udfs.checkpoint import digest_of

_BUCKETS: Final = 40  # batches that are sorted by length together
_FREE: Final = ("report_to", "workers")  # settings that may change when a training goes on
Curve = list[dict[str, float]]  # step and nDCG@10 of the held-out lists


class OtherRunError(Exception):
    """The checkpoints found are of other settings or lists."""


@dataclass(frozen=True)
class Settings:
    """How to train."""

    losses: Mapping[str, float] = field(default_factory=lambda: {"listwise_kl": 1.0})
    scale: float = 1.0  # of the teacher's scores
    max_length: int = 256  # tokens of a pair
    lists: int = 16  # of a step, shared out to the processes
    processes: int = 1
    rate: float = 5e-5
    weight_decay: float = 0.01
    epochs: float = 1.0
    evaluations: int = 10
    patience: int = 0  # evaluations without progress until it ends; 0: never
    workers: int = 0  # processes that tokenise
    seed: int = 7
    weights: str = "fp32"  # see `save`
    cpu: bool = False  # also where there is a GPU
    report_to: tuple[str, ...] = ()


@dataclass(frozen=True)
class Training:
    """One training, as each of its processes is told; all of them see the same files."""

    start: Path  # model folder
    lists: str  # Parquet
    out: Path  # gets `checkpoints` and `model`
    settings: Settings
    server: str = ""  # MLflow's, if another process has opened the run
    run_id: str = ""


def run(work: Training) -> Curve:
    """Train, alone or as one of the processes that torch has started, and save the best model."""
    for place in (work.start, work.lists, work.out):
        if not Path(place).exists():
            raise FileNotFoundError(f"{place} is not on this machine; use a shared file system")
    if work.run_id:
        os.environ.update(MLFLOW_TRACKING_URI=work.server, MLFLOW_RUN_ID=work.run_id)
    # Early stopping leaves no other sign that there is nothing to go on with.
    done = work.out / "checkpoints" / "curve.json"
    if done.exists() and (work.out / "model").exists():
        ended: Curve = json.loads(done.read_text())
        return ended
    lists = pd.read_parquet(work.lists)
    student, curve = train(work.start, lists, work.out / "checkpoints", work.settings)
    if os.environ.get("RANK", "0") == "0":
        save(student, work.out / "model", work.settings.weights)
        _write(done, curve)
    return curve


def _write(path: Path, content: object) -> None:
    """Write JSON, whole or not at all."""
    beside = path.with_name(f".{path.name}")
    beside.write_text(json.dumps(content))
    beside.replace(path)


def make_dataset(lists: pd.DataFrame) -> Dataset:
    """Return query, docs, scores, labels (NaN where unknown) and the longest document's length."""
    columns: dict[str, Any] = {
        "query": list(lists["query"]),
        "docs": list(map(list, lists["docs"])),
    }
    for name in ("scores", "labels"):
        values = lists[name] if name in lists else [None] * len(lists)
        columns[name] = [
            [math.nan] * len(docs) if row is None else [float(value) for value in row]
            for row, docs in zip(values, columns["docs"], strict=True)
        ]
    columns["length"] = [max(map(len, docs)) for docs in columns["docs"]]
    return Dataset.from_dict(columns)


class ListCollator:
    """Makes a batch of lists: tokens of all pairs, and targets float32[2, lists, documents]."""

    valid_label_columns = ("label",)

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        """Cut pairs at `max_length` tokens."""
        self.tokenizer, self.max_length = tokenizer, max_length

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return `tokens`, with a mask of the documents that are there, and `label`."""
        width = max(len(row["docs"]) for row in rows)
        there = torch.zeros(len(rows), width, dtype=torch.bool)
        targets = torch.full((2, len(rows), width), torch.nan)
        for at, row in enumerate(rows):
            there[at, : len(row["docs"])] = True
            for kind, name in enumerate(("scores", "labels")):
                targets[kind, at, : len(row["docs"])] = torch.tensor(row[name])
        queries = [row["query"] for row in rows for _ in row["docs"]]
        docs = [doc for row in rows for doc in row["docs"]]
        tokens = self.tokenizer(
            queries, docs, padding=True, truncation="longest_first", max_length=self.max_length,
            return_tensors="pt",
        )  # fmt: skip
        return {"tokens": {**tokens, "there": there}, "label": targets}


class LengthSampler(DefaultBatchSampler):
    """Batches of lists of like length, so that little is padded; in random order."""

    def __init__(self, dataset: Dataset, *args: Any, **kwargs: Any) -> None:
        """Take what CrossEncoderTrainer gives."""
        super().__init__(dataset, *args, **kwargs)
        self.lengths = np.array(dataset["length"])

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the same batches for the same seed and epoch."""
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self.lengths))
        batches: list[list[int]] = []
        for start in range(0, len(order), _BUCKETS * self.batch_size):
            part = order[start : start + _BUCKETS * self.batch_size]
            part = part[np.argsort(self.lengths[part], kind="stable")]
            ends = range(0, len(part), self.batch_size)
            batches += [part[end : end + self.batch_size].tolist() for end in ends]
        yield from (batches[i] for i in rng.permutation(len(batches)))


def train(
    start: Path,
    lists: pd.DataFrame,
    work: Path,
    settings: Settings,
    adapt: Callable[[Any], None] = lambda model: None,
) -> tuple[CrossEncoder, Curve]:
    """Train on the rows whose `split` is train; keep what has the best nDCG@10 on the others.

    `lists` has query, docs, split and scores, labels or both, a value a document or None. `work`
    keeps checkpoints: a call with the same arguments goes on from the last. `adapt` may freeze
    parts of the model. Returns the model and nDCG@10 by step.

    Raises:
        OtherRunError: if `work` has checkpoints of other settings.
    """
    checkpoint = last_checkpoint(start, work, settings, lists)
    is_train = lists["split"] == "train"
    steps = math.ceil(is_train.sum() / settings.lists * settings.epochs)
    if checkpoint and (state := _final_state(Path(checkpoint), steps, settings.patience)):
        best = CrossEncoder(state["best_model_checkpoint"], model_kwargs={"dtype": torch.float32})
        return best, _curve(state["log_history"])
    model = CrossEncoder(str(start), model_kwargs={"dtype": torch.float32})
    adapt(model.model)
    dataset = make_dataset(lists[is_train])
    collator: Any = ListCollator(model.tokenizer, settings.max_length)
    trainer = CrossEncoderTrainer(
        model=model, args=_arguments(work, settings, steps), train_dataset=dataset,
        evaluator=ListEvaluator(lists[~is_train], settings.max_length),
        loss=MixedLoss(model, settings.losses, settings.scale),
        data_collator=collator,
        callbacks=[EarlyStoppingCallback(settings.patience)] if settings.patience else None,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=checkpoint)
    return model, _curve(trainer.state.log_history)


def _curve(history: Sequence[Mapping[str, Any]]) -> Curve:
    rows = [row for row in history if f"eval_{METRIC}" in row]
    return [{"step": row["step"], METRIC: row[f"eval_{METRIC}"]} for row in rows]


def _arguments(work: Path, settings: Settings, steps: int) -> CrossEncoderTrainingArguments:
    every = max(1, steps // settings.evaluations)
    with_gpu = torch.cuda.is_available() and not settings.cpu
    return CrossEncoderTrainingArguments(
        output_dir=str(work), max_steps=steps,
        per_device_train_batch_size=settings.lists // settings.processes,
        learning_rate=settings.rate, warmup_steps=max(1, steps // 15), lr_scheduler_type="cosine",
        weight_decay=settings.weight_decay, bf16=with_gpu,
        # Or processes on CPUs do not find each other.
        use_cpu=settings.cpu or (settings.processes > 1 and not with_gpu),
        batch_sampler=LengthSampler, dataloader_num_workers=settings.workers,
        dataloader_pin_memory=with_gpu, remove_unused_columns=False,
        eval_strategy="steps", eval_steps=every, save_strategy="steps", save_steps=every,
        save_total_limit=2, load_best_model_at_end=True, metric_for_best_model=f"eval_{METRIC}",
        greater_is_better=True, logging_steps=max(1, steps // 50), logging_nan_inf_filter=False,
        seed=settings.seed, report_to=list(settings.report_to) or "none", disable_tqdm=True,
        restore_callback_states_from_checkpoint=True,  # the count of early stopping
    )  # fmt: skip


def last_checkpoint(start: Path, work: Path, settings: Settings, lists: pd.DataFrame) -> str | None:
    """Return the last complete checkpoint, None if there is none; note what the run is of."""
    note, content = work / "settings.json", hashlib.sha256(lists.to_json().encode()).hexdigest()
    made_of = {"model": digest_of(start), "lists": content}
    ours = json.loads(json.dumps({**asdict(settings), **made_of}))
    for name in _FREE:
        del ours[name]
    if not note.exists():  # or another process may be reading it
        work.mkdir(parents=True, exist_ok=True)
        _write(note, ours)
    theirs = json.loads(note.read_text())
    if others := [name for name in ours if theirs.get(name) != ours[name]]:
        raise OtherRunError(
            f"has checkpoints of a training with other {', '.join(others)}; choose another folder, "
            "or set output.overwrite"
        )
    done = [state.parent for state in work.glob("checkpoint-*/trainer_state.json") if _ended(state)]
    return str(max(done, key=lambda path: int(path.name.split("-")[1]))) if done else None


def _final_state(checkpoint: Path, steps: int, patience: int) -> dict[str, Any] | None:
    """Return the state of a training that has ended there, though its process died, else None.

    CrossEncoderTrainer would go on from it.
    """
    state: dict[str, Any] = json.loads((checkpoint / "trainer_state.json").read_text())
    stopping = state["stateful_callbacks"].get("EarlyStoppingCallback", {"attributes": {}})
    without = stopping["attributes"].get("early_stopping_patience_counter", 0)
    return state if state["global_step"] >= steps or 0 < patience <= without else None


def _ended(state: Path) -> bool:
    """Whether a checkpoint is complete: its state is written last."""
    try:
        return bool(json.loads(state.read_text()))
    except ValueError:  # of a run that was killed
        return False
