"""A model in memory once, however many workers score with it.

The driver leaves a wish in the workers' environment, `udfs.daemon` loads what it names, and the
workers, forked from it, find the weights in memory that they share.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from udfs import worker
from udfs.devices import TaskSlot, common_precision, describe, may_have_gpu
from udfs.spec import Precision, ScorerSpec

#: Name of the variable that holds the wish.
WISH: Final = "SPARK_RERANK_MODEL"
# A process that has threads must not be forked: what it loads is to score with one, and
# transformers is told to read weights without more.
_SLOT: Final = TaskSlot(cpus=1)
_ONE_READER: Final = "HF_DEACTIVATE_ASYNC_LOAD"


def can_share(spec: ScorerSpec, cpus: int) -> bool:
    """Whether a daemon can load the model for tasks of so many cores.

    ONNX Runtime has threads from its start, CUDA does not survive a fork, archives are unpacked for
    workers alone, and nobody knows what code that comes with a model does.
    """
    on_cpu = spec.device != "cuda" and cpus == _SLOT.cpus
    in_folder = Path(spec.model_path).is_absolute()
    return spec.backend == "torch" and on_cpu and in_folder and not spec.trust_remote_code


def wish(draft: ScorerSpec, precision: Precision | None) -> str:
    """What to load, for the variable.

    Args:
        draft: the scorer, but for its precision and how texts are made.
        precision: of the scorer; None: what the machine is best at.
    """
    return json.dumps({**asdict(draft.for_loading()), "precision": precision})


def load_wished() -> None:
    """Load what this process's environment wishes for, if anything, and leave no thread behind.

    Nothing on a machine that may have a GPU, as asking torch for one must not come before a fork.
    Whatever goes wrong is left to the workers: they load the model themselves and tell why that
    fails.
    """
    given = os.environ.get(WISH)
    if not given or may_have_gpu():
        return
    os.environ[_ONE_READER] = "1"
    with suppress(Exception):
        values = json.loads(given)
        wanted: Precision | None = values.pop("precision")
        draft = ScorerSpec(**values)
        device = describe(draft, _SLOT)
        precision = wanted or common_precision([device])
        worker.get_scorer(replace(draft, precision=precision), _SLOT)
    del os.environ[_ONE_READER]
