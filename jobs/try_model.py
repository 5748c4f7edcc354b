"""Score a few documents for one query, without Spark.

python -m jobs.try_model --model.name DIR "query" "doc 1" "doc 2" ...
"""

import itertools
import math
import sys
from collections.abc import Sequence
from functools import partial
from typing import Final

import numpy as np

from jobs.config import Config
from jobs.output.tracking.client import fetch_model
from jobs.runtime.command import Command
from jobs.runtime.errors import DONE, RefusedError
from jobs.scoring.models import rendering, resolve_model
from jobs.scoring.onnx_export import for_backend, refuse_missing_packages
from jobs.scoring.stage import make_spec, resolve_precision
from udfs.devices import DeviceError, TaskSlot, has_gpu
from udfs.forward.base import ModelError
from udfs.scorers.base import OK
from udfs.scorers.cross_encoder import Scorer

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
    model = config.model
    if len(texts) < 2:
        raise RefusedError(
            f'{len(texts)} texts given, at least 2 are needed: "query" "document" ...'
        )
    if not all(text.strip() for text in texts):
        raise RefusedError("a text is blank; leave it out")
    if model.backend in ("tokenizer", "stub", "remote"):
        raise RefusedError(f"model.backend={model.backend} runs no model; use torch or onnxruntime")
    original = resolve_model(model, partial(fetch_model, config.mlflow.tracking_uri))
    refuse_missing_packages(model.backend)
    checkpoint = for_backend(model, original)
    precision = resolve_precision(model, gpu=has_gpu())
    spec = make_spec(model, config.batching, checkpoint, precision)
    query, *docs = texts
    try:
        scores = Scorer.load(checkpoint.path, spec, TaskSlot()).score(
            [rendering(model, checkpoint).query_instruction + query] * len(docs),
            [model.doc_instruction + doc for doc in docs],
        )
    except (ModelError, DeviceError, ValueError) as error:
        raise RefusedError(f"model.name={model.name}: {error}") from error
    sys.stdout.write(f"{'logit':>8}  {'probability':<{_BAR + 7}}  tokens  document\n")
    for row in np.argsort(-scores.logit, kind="stable"):  # NaN, where there is none, comes last
        logit, bar = float(scores.logit[row]), f"{'could not be scored':<{_BAR + 7}}"
        if scores.status[row] == OK:
            share = 0.5 + 0.5 * math.tanh(logit / 2)
            bar = f"{'█' * round(share * _BAR):<{_BAR}} {share:6.4f}"
        note = " (cut)" if scores.truncated[row] else ""
        line = f"{logit:>8.3f}  {bar}  {scores.n_tokens[row]:>6}  {docs[row][:60]}{note}\n"
        sys.stdout.write(line)
    sys.stdout.write(f"{checkpoint.architecture}, {spec.precision}\n")
    return DONE


def split_texts(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tell `--section.key value` from the texts that stand alone."""
    options: list[str] = []
    texts: list[str] = []
    queue = iter(words)
    for word in queue:
        if not word.startswith("--"):
            texts.append(word)
            continue
        options.append(word)
        if "=" not in word and word not in ("--help", "--help-all"):
            options += itertools.islice(queue, 1)
    return options, texts


if __name__ == "__main__":
    sys.exit(main())
