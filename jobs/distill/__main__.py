"""Train a smaller cross-encoder on lists of documents with a teacher's scores, or labels.

python -m jobs.distill --distill.lists LISTS --model.name DIR --output.path OUT

On one machine, on its GPU if it has one; `distill.processes` shares the work, on a Spark cluster
with `distill.cluster`. Writes OUT/model. The same command goes on from the last checkpoint if it
was stopped. With MLflow its curves are in a run, and the model, if `distill.register_as` names it,
in the registry.
"""

import importlib.util
import json
import shutil
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final

import pandas as pd

from jobs.config import Config, DistillConfig, OutputConfig
from jobs.output.tracking.client import TrackingError, fetch_model, refuse_tracking
from jobs.runtime.command import Command
from jobs.runtime.errors import DONE, NOT_TRACKED, RefusedError
from jobs.scoring.models import find_model, resolve_model
from udfs.checkpoint import code_in, digest_of
from udfs.kinds import is_encoder

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
    refuse_tracking(config.mlflow)
    start, digest = find_start(config, out, lists)
    work = training.Training(
        start.absolute(), str(Path(str(options.lists)).absolute()), out, _settings(config)
    )
    _refuse_other_run(work, lists, config.output)
    try:
        with _tracked(config, out) as run_id:
            if not run_id:
                work = replace(work, settings=replace(work.settings, report_to=()))
            curve = launch(work, config, tasks, run_id)
            card = model_card(str(config.model.name), digest, lists, options, curve)
            (out / "model" / "README.md").write_text(card, encoding="utf-8")
            best = max(curve, key=lambda point: point["ndcg@10"])
            sys.stdout.write(
                f"held-out nDCG@10 {best['ndcg@10']:.4f} at step {best['step']:.0f} "
                f"({curve[0]['ndcg@10']:.4f} at the first measurement)\n{out / 'model'}\n"
            )
            if run_id:
                _complete(options.register_as, run_id, out / "model", curve)
    except TrackingError as error:
        sys.stderr.write(
            f"{out / 'model'} is complete, but MLflow has not all of it: {error}\n"
            "run the same command again, which trains no more\n"
        )
        return NOT_TRACKED
    return DONE


def _complete(name: str, run_id: str, folder: Path, curve: list[dict[str, float]]) -> None:
    from jobs.output.tracking.registry import log_curve, register

    log_curve(run_id, curve)
    if name:
        sys.stdout.write(f"{register(name, run_id, folder)}\n")


def find_start(config: Config, out: Path, lists: pd.DataFrame) -> tuple[Path, str]:
    """Return the model to start from, OUT/start if it has to be made, and the named one's digest.

    Raises:
        RefusedError: for what cannot be trained.
    """
    from jobs.distill import folders

    model, layers = config.model, config.distill.layers
    unmet = ("trust_remote_code", "query_instruction", "doc_instruction", "template", "label")
    if ignored := [key for key in unmet if getattr(model, key)]:
        raise RefusedError(f"model.{ignored[0]}: jobs.distill has no use for it; leave it out")
    fetch = partial(fetch_model, config.mlflow.tracking_uri)
    plain = model.model_copy(update={"query_instruction": ""})  # also where it has a prompt
    folder = find_model(model, fetch)
    digest, headless = digest_of(folder), is_encoder(folder)
    if code := code_in(folder):
        raise RefusedError([f"model.name={model.name}: {said}" for said in code])
    if not headless and not resolve_model(plain, fetch).plain:
        raise RefusedError(
            f"model.name={model.name}: jobs.distill trains encoders, and classifiers with one "
            "logit; name such a model"
        )
    try:
        count = folders.count_layers(folder)
        wrong = [layer for layer in layers if layer >= count or layers.count(layer) > 1]
        if wrong:
            raise RefusedError(
                f"distill.layers={wrong[0]}: {model.name} has {count} layers; name some of 0 to "
                f"{count - 1}, each once"
            )
        seen, texts = config.distill.vocabulary == "seen", None
        if seen:
            known = lists[lists["split"] == "train"]
            texts = chain(known["query"], chain.from_iterable(known["docs"]))
        if headless or layers or seen:
            folder = folders.make_start(folder, layers, config.distill.seed, out, texts)
    except (ValueError, OSError, RuntimeError) as error:
        said = str(error).strip().splitlines()[0]
        raise RefusedError(
            f"model.name={model.name} cannot be made a classifier ({said}); name an encoder that "
            "transformers has a ...ForSequenceClassification for, with weights in safetensors"
        ) from None
    return resolve_model(plain.model_copy(update={"name": str(folder)}), fetch).path, digest


def _refuse_other_run(work: Any, lists: pd.DataFrame, config: OutputConfig) -> None:
    from jobs.distill import training

    folder = work.out / "checkpoints"
    try:
        training.last_checkpoint(work.start, folder, work.settings, lists)
    except training.OtherRunError as error:
        if not config.overwrite:
            raise RefusedError(f"output.path={work.out}: {error}") from None
        # What tells the trainings apart goes last.
        for path in sorted(folder.iterdir(), key=lambda path: path.name == "settings.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        training.last_checkpoint(work.start, folder, work.settings, lists)


def _settings(config: Config) -> Any:
    from jobs.distill.training import Settings

    options = config.distill
    return Settings(
        losses={str(name): weight for name, weight in options.losses.items()},
        scale=options.score_scale, lists=options.batch, processes=options.processes,
        max_length=config.model.max_length, rate=options.rate, epochs=options.epochs,
        evaluations=options.evaluations, patience=options.patience, workers=options.workers,
        seed=options.seed, weights=options.weights, cpu=config.model.device == "cpu",
        report_to=("mlflow",) if config.mlflow.enabled else (),
    )  # fmt: skip


def _tracked(config: Config, out: Path) -> AbstractContextManager[str]:
    """Return the context of the MLflow run; of none if MLflow, which takes seconds, is off."""
    if not config.mlflow.enabled:
        return nullcontext("")
    from jobs.output.tracking.registry import training_run

    return training_run(config.mlflow, out / "checkpoints" / "mlflow_run")


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
        raise RefusedError(
            f"{name} lacks {', '.join(missing) or 'scores and labels'}; jobs.export writes all of "
            "it with export.format=labeled-list"
        )
    lacking = lists["query"].map(_no_text) | lists["docs"].map(_no_texts)
    if lacking.any():
        raise RefusedError(
            f"{name}: {lacking.sum()} rows have no query, or a doc that is no text; leave them out"
        )
    for column in values:
        odd = [
            v is not None and len(v) != len(d)
            for v, d in zip(lists[column], lists["docs"], strict=True)
        ]
        if any(odd):
            raise RefusedError(
                f"{name}: {sum(odd)} rows have not as many {column} as docs; leave them out"
            )
    is_train = lists["split"] == "train"
    if not is_train.any() or "labels" not in lists or lists["labels"][~is_train].isna().all():
        raise RefusedError(
            f"{name} needs rows of the split train, and others with labels; in jobs.export "
            "export.held_out is the share of the others"
        )
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
