"""Which kind of scorer a model folder holds, by what its files say."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

Kind = Literal["classifier", "modular", "llm"]

_CLASSIFIER: Final = "ForSequenceClassification"
_CAUSAL: Final = "ForCausalLM"
_ENCODER: Final = ("Model", "ForMaskedLM", "ForPreTraining")
_LOGIT_SCORE: Final = "LogitScore"
#: Modules of sentence-transformers that can stand between a transformer and its scores.
HEADS: Final = ("Pooling", "Dense", "LayerNorm")
_LISTWISE: Final = re.compile(
    r"JinaForRanking|jina-reranker-v3|rank[-_]?(zephyr|vicuna)|lit5", re.IGNORECASE
)


class Module(NamedTuple):
    """A module of a folder that sentence-transformers saved."""

    name: str  # its class
    path: str  # below the folder

    def files(self, folder: Path) -> Iterator[Path]:
        """List the files that decide what it computes."""
        inside = folder / self.path
        if self.path and inside.resolve().is_relative_to(folder.resolve()):
            yield from (inside / n for n in ("config.json", "model.safetensors"))


class Head(NamedTuple):
    """What a folder's score is computed by."""

    kind: Kind
    label: int | None = None  # whose logit it is; None: there is only one


def architecture_of(config: Mapping[str, Any]) -> str:
    """Return the class that config.json names, or `none`."""
    return str((config.get("architectures") or ["none"])[0])


def modules_behind(path: Path) -> list[Module]:
    """Return the modules that sentence-transformers' CrossEncoder runs after the transformer.

    It ignores modules.json of other models where the transformer has a head.
    """
    try:
        config, saved, listed = (
            json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            for file in map(
                path.joinpath, ("config.json", "config_sentence_transformers.json", "modules.json")
            )
        )
        if architecture_of(config).endswith(_CLASSIFIER) and (
            saved.get("model_type") != "CrossEncoder"
        ):
            return []
        found = [Module(str(m["type"]).rpartition(".")[2], str(m["path"])) for m in listed]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return []
    return [module for module in found if module.name != "Transformer"]


def is_encoder(path: Path) -> bool:
    """Tell whether a folder holds an encoder without a head that scores pairs."""
    try:
        config, saved = (
            json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            for file in map(path.joinpath, ("config.json", "config_sentence_transformers.json"))
        )
        return (
            architecture_of(config).endswith(_ENCODER) and saved.get("model_type") != "CrossEncoder"
        )
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def find_head(
    path: Path, config: Mapping[str, Any], shapes: Mapping[str, list[int]], kind: str, label: str,
    errors: list[str],
) -> Head:  # fmt: skip
    """Return what computes the score; errors tell why nothing does, for one reason.

    `kind` and `label` are the user's: `auto` and empty where the folder decides.
    """
    architecture = architecture_of(config)
    modules = [module.name for module in modules_behind(path)]
    hub = [part for part in path.parts if part.startswith("models--")]
    names = [architecture, str(config.get("_name_or_path")), path.name, *hub]
    if _LISTWISE.search(" ".join(names)):
        errors.append(
            f"{architecture} in {path} ranks a list as a whole: the score of a document depends on "
            "the others, and cannot be kept or compared by pair; name a pointwise reranker"
        )
        return Head("llm")
    by_prompt = modules == [_LOGIT_SCORE] or (not modules and architecture.endswith(_CAUSAL))
    if kind == "llm" or (kind == "auto" and by_prompt):
        if label:
            errors.append(f"model.label={label} is for classifiers, {architecture} has no labels")
        return Head("llm")
    if architecture.startswith("XLNet"):
        errors.append(
            f"{architecture} scores by the last position, which is padding beside a longer pair; "
            "name another model"
        )
    if modules and kind != "classifier":
        return Head("modular", _module_label(path, modules, label, errors))
    if not architecture.endswith(_CLASSIFIER):
        errors.append(
            f"config.json names the architecture {architecture}; a cross-encoder is a "
            f"...{_CLASSIFIER} with one label, or a ...{_CAUSAL}; name such a model"
        )
        return Head("classifier")
    return Head("classifier", _classifier_label(config, shapes, label, errors))


def _module_label(path: Path, modules: list[str], label: str, errors: list[str]) -> int | None:
    if {*modules} <= {*HEADS} and (width := _scores(path)):
        return _find_label([str(n) for n in range(width)], label, errors)
    unknown = [name for name in modules if name not in HEADS] or modules
    errors.append(
        f"modules.json of {path} adds {' and '.join(unknown)} to the transformer, which is not "
        f"supported; name a cross-encoder with {_LOGIT_SCORE}, or with Pooling before Dense and "
        "LayerNorm that give scores"
    )
    return None


def _classifier_label(
    config: Mapping[str, Any], shapes: Mapping[str, list[int]], label: str, errors: list[str]
) -> int | None:
    """Return the label that scores.

    transformers fills a head that is missing with random numbers and scores at random, with one
    line of warning (FlagEmbedding#798). A head ends in a matrix with one row for each label.
    """
    names = config.get("id2label") or {}
    count = len(names) or int(config.get("num_labels", 2))
    labels = [str(names.get(str(n), n)) for n in range(count)]
    before = len(errors)
    found = _find_label(labels, label, errors)
    heads = (s[0] == count for name, s in shapes.items() if len(s) == 2 and "embed" not in name)
    if len(errors) == before and shapes and not any(heads):
        logits = "one logit" if count == 1 else f"{count} logits"
        errors.append(
            f"the weights have no classification head with {logits} (this is an encoder, not a "
            "cross-encoder); name a reranker checkpoint"
        )
    return found


def _find_label(labels: list[str], wanted: str, errors: list[str]) -> int | None:
    """Return the index of a label by its name or index; None where there is only one."""
    if len(labels) == 1 and wanted in ("", "0", *labels):
        return None
    if wanted in labels:
        return labels.index(wanted)
    if wanted.isdigit() and int(wanted) < len(labels):
        return int(wanted)
    shown = ", ".join(f"{n} ({name})".removesuffix(f" ({n})") for n, name in enumerate(labels))
    said = f"model.label={wanted} is none of them" if wanted else "a score is the logit of one"
    errors.append(f"the model has {len(labels)} labels, and {said}; set model.label: {shown}")
    return None


def _scores(path: Path) -> int:
    """Return how many scores the last module gives."""
    try:
        file = path / modules_behind(path)[-1].path / "config.json"
        last = json.loads(file.read_text(encoding="utf-8"))
        return int(last["out_features"]) if last.get("module_output_name") == "scores" else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0
