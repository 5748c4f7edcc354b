"""The tokenizer of the compiled network: fewer pieces, and a template that puts a pair together."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer


def write_tokenizer(source: Path, pieces: list[int], out: Path) -> tuple[list[int], int]:
    """Write the pruned tokenizer; return the old ids of the kept pieces and the id of </q>."""
    whole = Tokenizer.from_file(str(source))
    data = json.loads(source.read_text(encoding="utf-8"))
    vocabulary = data["model"]["vocab"]
    old = [0, 1, 2, 3, *pieces]
    new = {o: n for n, o in enumerate(old)}
    special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "</q>": len(old), "<d>": len(old) + 1}
    data["model"]["vocab"] = [vocabulary[i] for i in old] + [["</q>", -99.0], ["<d>", -99.0]]
    data["model"]["unk_id"] = 3
    flags = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    data["added_tokens"] = [{"id": i, "content": c, **flags} for c, i in special.items()]
    inserted = {c: {"id": c, "ids": [i], "tokens": [c]} for c, i in special.items()}
    for name in ("query: ", "passage: "):
        ids = whole.encode(name, add_special_tokens=False).ids
        tokens = [vocabulary[i][0] for i in ids]
        inserted[name] = {"id": name, "ids": [new[i] for i in ids], "tokens": tokens}

    def put(name: str, kind: int) -> dict:
        return {"SpecialToken": {"id": name, "type_id": kind}}

    def text(name: str, kind: int) -> dict:
        return {"Sequence": {"id": name, "type_id": kind}}

    start = [put("<s>", 0), put("query: ", 0), text("A", 0)]
    rest = [put("</q>", 1), put("<d>", 1), put("passage: ", 1), text("B", 1), put("</s>", 1)]
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [*start, put("</s>", 0)],
        "pair": start + rest,
        "special_tokens": inserted,
    }
    data["truncation"] = data["padding"] = None
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 512,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "cls_token": "<s>",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return old, special["</q>"]
