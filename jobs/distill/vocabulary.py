"""Leave out the pieces of a multilingual vocabulary that the texts at hand never need.

Of bge-reranker-v2-m3's 568 million weights 256 million are embeddings of 250,002 pieces.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoTokenizer

from jobs.runtime.errors import RefusedError

_BATCH: Final = 4096  # texts
_SHORT: Final = re.compile(r"(##|▁)?.?|<0x[0-9A-F]{2}>", re.DOTALL)  # a character, or a byte
_IDS: Final = ("pad", "bos", "eos", "cls", "sep", "mask", "unk")


def prune(model: Any, tokenizer: Any, texts: Iterable[str], folder: Path) -> Any:
    """Keep the pieces that texts are cut into, single characters and added tokens, at their order.

    The texts are cut as before, others into shorter pieces. Changes the model; returns the new
    tokenizer, which is written into `folder`.

    Raises:
        RefusedError: for a vocabulary of another type than Unigram and WordPiece, whose pieces may
            be left out one by one; or one whose ids the model does not fit.
    """
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    kind, vocabulary = whole["model"]["type"], whole["model"]["vocab"]
    if kind not in ("Unigram", "WordPiece"):
        raise RefusedError(
            f"distill.vocabulary=seen: {kind} makes pieces of each other, so none can be left out; "
            "set it to whole"
        )
    if kind == "Unigram":
        pieces = {at: text for at, (text, _) in enumerate(vocabulary)}
        unknown = whole["model"]["unk_id"]
    else:
        pieces = {at: text for text, at in vocabulary.items()}
        unknown = vocabulary.get(whole["model"]["unk_token"])
    needed = {token["id"] for token in whole["added_tokens"]} | _seen(tokenizer, texts)
    needed |= {unknown} - {None}
    needed |= {at for at, text in pieces.items() if _SHORT.fullmatch(text)}
    old = sorted(needed)
    new = {before: after for after, before in enumerate(old)}
    if kind == "Unigram":
        whole["model"]["vocab"] = [vocabulary[at] for at in old if at in pieces]
        whole["model"]["unk_id"] = new.get(unknown)
    else:
        whole["model"]["vocab"] = {pieces[at]: new[at] for at in old if at in pieces}
    for token in whole["added_tokens"]:
        token["id"] = new[token["id"]]
    _renumber(whole["post_processor"], new)
    whole["truncation"] = whole["padding"] = None
    _shrink(model, old, new)
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings.pop("added_tokens_decoder", None)  # by their former ids
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # all of it is in tokenizer.json
    settings["model_input_names"] = tokenizer.model_input_names
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return AutoTokenizer.from_pretrained(folder)


def _seen(tokenizer: Any, texts: Iterable[str]) -> set[int]:
    encoder, found = tokenizer.backend_tokenizer, set()
    encoder.no_truncation()
    encoder.no_padding()
    for batch in _batches(texts):
        for encoding in encoder.encode_batch(batch, add_special_tokens=False):
            found.update(encoding.ids)
    return found


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    yield batch


def _renumber(processor: Any, new: dict[int, int]) -> None:
    """Change the ids of the special tokens that a post-processor puts between texts."""
    for part in (processor or {}).get("processors", [processor or {}]):
        for token in part.get("special_tokens", {}).values():
            token["ids"] = [new[at] for at in token["ids"]]
        for name in ("sep", "cls"):
            if name in part:
                part[name] = [part[name][0], new[part[name][1]]]


def _shrink(model: Any, old: list[int], new: dict[int, int]) -> None:
    config, before = model.config, model.get_input_embeddings()
    padding = config.pad_token_id
    if padding is not None and new.get(padding) != padding:  # positions may start behind it
        raise RefusedError(
            f"distill.vocabulary=seen: the id {padding} of the padding would change, and positions "
            "may start behind it; set it to whole"
        )
    if old[-1] >= before.num_embeddings:
        raise RefusedError(
            f"distill.vocabulary=seen: the model has {before.num_embeddings} embeddings, and its "
            f"tokenizer the id {old[-1]}; set it to whole, or mend the model"
        )
    after = torch.nn.Embedding(len(old), before.embedding_dim, before.padding_idx)
    after.weight.data = before.weight.data[torch.tensor(old)].clone()
    model.set_input_embeddings(after)
    config.vocab_size = len(old)
    for name in (f"{part}_token_id" for part in _IDS):
        if (at := getattr(config, name, None)) is not None:
            setattr(config, name, new.get(at))
