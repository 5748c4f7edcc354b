"""Score a few documents for one query, without Spark.

python -m jobs.try_model --model.name DIR "query" "doc 1" "doc 2" ...
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import partial
from typing import Final

from jobs.config import Config
from jobs.output.tracking.runs import fetch_model
from jobs.runtime.command import Command
from jobs.runtime.errors import DONE, RefusedError
from jobs.scoring.backends import for_backend, refuse_missing_packages
from jobs.scoring.models import resolve_model
from jobs.scoring.stage import make_spec, resolve_precision
from udfs.devices import has_gpu, process_slot
from udfs.scorers.base import OK
from udfs.scorers.cross_encoder import Scorer
from udfs.spec import STAND_INS

COMMAND: Final = Command(
    name='python -m jobs.try_model "query" "doc 1" "doc 2" ...',
    about="Score documents for a query, without Spark.",
    require=("model.name",),
    sections="model batching mlflow",
)
_BAR: Final = 24  # characters


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is one of `jobs.runtime.errors`."""
    options, texts = split_texts(sys.argv[1:] if argv is None else argv)
    return COMMAND.run(options, partial(show, texts))


def show(texts: Sequence[str], config: Config) -> int:
    """Score `texts`, a query and its documents, and print them best first."""
    if len(texts) < 2:
        raise RefusedError(
            f'{len(texts)} texts given, at least 2 are needed: "query" "document" ...'
        )
    if not all(text.strip() for text in texts):
        raise RefusedError("a text is blank; leave it out")
    if config.model.backend in STAND_INS:
        raise RefusedError(
            f"model.backend={config.model.backend} runs no model; use torch or onnxruntime"
        )
    fetch = partial(fetch_model, config.mlflow.tracking_uri)
    original = resolve_model(config.model, fetch)
    refuse_missing_packages(config.model.backend)
    checkpoint = for_backend(config.model, original)
    slot = process_slot()
    precision = resolve_precision(config.model, gpu=has_gpu())
    spec = make_spec(config.model, config.batching, checkpoint, precision)
    scorer = Scorer.load(checkpoint.path, spec, slot)
    query, docs = texts[0], texts[1:]
    scores = scorer.score([query] * len(docs), docs)
    lines = [f"{'logit':>8}  {'probability':<{_BAR + 7}}  tokens  document"]
    for row in sorted(range(len(docs)), key=lambda row: -scores.logit[row]):
        failed = scores.status[row] != OK
        logit = float("nan") if failed else float(scores.logit[row])
        note = " (cut)" if scores.truncated[row] else ""
        lines.append(
            f"{logit:>8.3f}  {_bar(logit)}  {scores.n_tokens[row]:>6}  {docs[row][:60]}{note}"
        )
    sys.stdout.write("\n".join(lines) + f"\n{checkpoint.architecture}, {spec.precision}\n")
    return DONE


def split_texts(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tell `--section.key value` from the texts that stand alone."""
    options: list[str] = []
    texts: list[str] = []
    queue = iter(words)
    for word in queue:
        if not word.startswith("--"):
            texts.append(word)
        elif "=" in word or word in ("--help", "--help-all"):
            options.append(word)
        else:
            options += [word, *([value] if (value := next(queue, None)) is not None else [])]
    return options, texts


def _bar(logit: float) -> str:
    """The sigmoid as a bar and a number."""
    if math.isnan(logit):
        return f"{'could not be scored':<{_BAR + 7}}"
    share = 1.0 / (1.0 + math.exp(-max(min(logit, 700.0), -700.0)))
    return f"{'█' * round(share * _BAR):<{_BAR}} {share:6.4f}"


if __name__ == "__main__":
    sys.exit(main())
