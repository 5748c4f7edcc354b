"""Train a smaller cross-encoder on lists of documents with a teacher's scores, or labels.

python -m jobs.distill --distill.lists LISTS --model.name DIR --output.path OUT

On one machine, on its GPU if it has one; `distill.processes` shares the work, on a Spark cluster
with `distill.cluster`. Writes OUT/model. The same command goes on from the last checkpoint if it
was stopped. With MLflow its curves are in a run, and the model, if `distill.register_as` names it,
in the registry.
"""

import importlib.util
import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Final

import pandas as pd

from jobs.config import Config, DistillConfig
from jobs.output.tracking.client import TrackingError, fetch_model, refuse_tracking
from jobs.runtime.command import Command
from jobs.runtime.errors import DONE, NOT_TRACKED, RefusedError
from jobs.scoring.models import resolve_model

COMMAND: Final = Command(
    name="python -m jobs.distill",
    about="Train a smaller cross-encoder on lists with a teacher's scores, or labels.",
    require=("distill.lists", "model.name", "output.path"),
    sections="distill model output mlflow spark",
)
_PACKAGES: Final = ("sentence_transformers", "datasets", "accelerate")


@COMMAND
def main(config: Config) -> int:
    """Refuse all that can be refused, then train, save and say what came of it."""
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise RefusedError(
            f"jobs.distill needs {', '.join(missing)}; pip install 'spark-rerank[train]'"
        )
    from jobs.distill import training
    from jobs.distill.launch import launch, prepare

    options, out = config.distill, Path(str(config.output.path)).absolute()
    if options.register_as and not config.mlflow.enabled:
        raise RefusedError(
            f"distill.register_as={options.register_as} needs MLflow; set mlflow.enabled"
        )
    for key, path in (("distill.lists", options.lists), ("output.path", config.output.path)):
        if "://" in str(path):
            raise RefusedError(f"{key}={path} has to be a local path; mount it, or copy it")
    tasks, lists = prepare(config), read_lists(options)
    model = resolve_model(config.model, partial(fetch_model, config.mlflow.tracking_uri))
    if not model.plain:
        raise RefusedError(
            f"model.name={config.model.name}: jobs.distill trains classifiers with one logit; name "
            "such a model"
        )
    if unknown := [n for n in options.layers if n >= training.count_layers(model.path)]:
        raise RefusedError(f"distill.layers={unknown[0]}: {config.model.name} has fewer layers")
    refuse_tracking(config.mlflow)
    start = training.shorten(model.path, options.layers, out) if options.layers else model.path
    work = training.Training(
        start.absolute(), str(Path(str(options.lists)).absolute()), out, _settings(config),
        options.weights,
    )  # fmt: skip
    try:
        training.last_checkpoint(start, out / "checkpoints", work.settings, lists)
    except training.OtherRunError as error:
        raise RefusedError(f"output.path={out}: {error}") from None
    with _tracked(config, out) as run_id:
        curve = launch(work, config, tasks, run_id)
        card = model_card(str(config.model.name), model.digest, lists, options, curve)
        (out / "model" / "README.md").write_text(card, encoding="utf-8")
        best = max(curve, key=lambda point: point["ndcg@10"])
        sys.stdout.write(
            f"held-out nDCG@10 {best['ndcg@10']:.4f} at step {best['step']:.0f} "
            f"({curve[0]['ndcg@10']:.4f} at the first measurement)\n{out / 'model'}\n"
        )
        return _register(options.register_as, run_id, out / "model")


def _settings(config: Config) -> Any:
    from jobs.distill.training import Settings

    options = config.distill
    return Settings(
        losses={str(name): weight for name, weight in options.losses.items()},
        scale=options.score_scale, lists=options.batch, processes=options.processes,
        max_length=config.model.max_length, rate=options.rate, epochs=options.epochs,
        evaluations=options.evaluations, patience=options.patience, workers=options.workers,
        seed=options.seed, report_to=("mlflow",) if config.mlflow.enabled else (),
    )  # fmt: skip


def _tracked(config: Config, out: Path) -> AbstractContextManager[str]:
    """Return the context of the MLflow run; of none if MLflow, which takes seconds, is off."""
    if not config.mlflow.enabled:
        return nullcontext("")
    from jobs.output.tracking.registry import training_run

    return training_run(config.mlflow, out / "checkpoints" / "mlflow_run")


def _register(name: str, run_id: str, folder: Path) -> int:
    """Register the model if a name is given; return an exit code."""
    if not name:
        return DONE
    from jobs.output.tracking.registry import register

    try:
        sys.stdout.write(f"{register(name, run_id, folder)}\n")
    except TrackingError as error:
        sys.stderr.write(
            f"{folder} is complete, but distill.register_as={name} failed: {error}\n"
            "run the same command again to register it\n"
        )
        return NOT_TRACKED
    return DONE


def read_lists(options: DistillConfig) -> pd.DataFrame:
    """Read and check the lists."""
    name = f"distill.lists={options.lists}"
    try:
        lists = pd.read_parquet(str(options.lists))
    except (OSError, ValueError) as error:
        raise RefusedError(f"{name} cannot be read ({type(error).__name__})") from None
    values = [column for column in ("scores", "labels") if column in lists]
    missing = [column for column in ("query", "docs", "split") if column not in lists]
    if missing or not values:
        raise RefusedError(f"{name} lacks {', '.join(missing) or 'scores and labels'}")
    lacking = lists["query"].map(_no_text) | lists["docs"].map(_no_texts)
    if lacking.any():
        raise RefusedError(f"{name}: {lacking.sum()} rows have no query, or a doc that is no text")
    for column in values:
        odd = [
            v is not None and len(v) != len(d)
            for v, d in zip(lists[column], lists["docs"], strict=True)
        ]
        if any(odd):
            raise RefusedError(f"{name}: {sum(odd)} rows have not as many {column} as docs")
    is_train = lists["split"] == "train"
    if not is_train.any() or "labels" not in lists or lists["labels"][~is_train].isna().all():
        raise RefusedError(f"{name} needs rows of the split train, and others with labels")
    for loss in options.losses:
        column = "scores" if loss in ("listwise_kl", "margin_mse") else "labels"
        if column not in values:
            raise RefusedError(f"distill.losses={loss} needs {column}, which {name} lacks")
    return lists


def _no_text(value: object) -> bool:
    return not (isinstance(value, str) and value.strip())


def _no_texts(docs: Sequence[object] | None) -> bool:
    return docs is None or not len(docs) or any(map(_no_text, docs))


def model_card(
    start: str,
    digest: str,
    lists: pd.DataFrame,
    options: DistillConfig,
    curve: list[dict[str, float]],
) -> str:
    """Describe the model: what it came from, what it saw, how it did."""
    counts = lists["split"].value_counts().to_dict()
    rows = "\n".join(f"| {p['step']:.0f} | {p['ndcg@10']:.4f} |" for p in curve)
    return (
        f"# A distilled reranker\n\nA cross-encoder trained by jobs.distill from `{start}` "
        f"({digest[:12]}). It returns one logit a pair; rank by it.\n\n"
        f"Lists by split: {json.dumps(counts)}; pairs: {lists['docs'].map(len).sum()}.\n\n"
        f"```\n{options.model_dump_json(indent=1)}\n```\n\n"
        f"| step | nDCG@10, held out |\n| --- | --- |\n{rows}\n"
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
