"""The small cross-encoder: its vocabulary, its first weights, its tokenizer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertTokenizer
from transformers import BertForSequenceClassification as Model

from train_demo_model.pools import CJK, Pool
from train_demo_model.recipes import CHINESE, FFN, KEEP_LAYERS, VOCAB
from train_demo_model.teacher import Teacher

PLAIN = re.compile(r"(##)?[\u0020-\u024f\u0370-\u03ff\u2010-\u2044€°′″]")


def choose_vocabulary(teacher: Teacher, english: Pool, chinese: Pool) -> list[str]:
    """Special tokens, single Latin and Greek characters, Chinese characters, frequent pieces."""
    old = teacher.tokenizer.get_vocab()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    single = [t for t in sorted(old, key=old.__getitem__) if PLAIN.fullmatch(t)]
    counts: Counter[str] = Counter()
    for text in [*english.texts, *(q.text for q in english.queries)]:
        counts.update(teacher.tokenizer.tokenize(text))
    total = sum(counts.values())
    latin = [t for t in old if re.fullmatch(r"(##)?[a-z0-9]{2,}", t)]
    # The old vocabulary is ordered by frequency in general text: its rank stands for that.
    share = {t: 0.3 * counts[t] / total + 0.07 / (old[t] + 100) for t in latin}
    wanted = re.compile(r"[\u4e00-\u9fff\u3000-\u30ff，！？：；（）]")
    every = (*chinese.texts, *(q.text for q in chinese.queries))
    seen = Counter(c for text in every for c in wanted.findall(text))
    common = [c for c, _ in seen.most_common(CHINESE)]
    words = sorted(latin, key=lambda t: -share[t])
    return [*special, *dict.fromkeys([*single, *common, *words])][:VOCAB]


def busiest(teacher: Teacher, sample: Sequence[str]) -> dict[int, torch.Tensor]:
    """Return the feed-forward neurons of the kept layers that weigh most on the sample."""
    layers = teacher.model.encoder.layer
    use = {k: torch.zeros(layers[k].intermediate.dense.out_features) for k in KEEP_LAYERS}

    def record(k: int, out: torch.Tensor) -> None:
        use[k] += out.float().abs().sum((0, 1))

    hooks = [
        layers[k].intermediate.register_forward_hook(lambda _m, _i, out, k=k: record(k, out))
        for k in KEEP_LAYERS
    ]
    teacher.encode(sample)
    for hook in hooks:
        hook.remove()
    weigh = {k: use[k] * layers[k].output.dense.weight.norm(dim=0) for k in KEEP_LAYERS}
    return {k: w.topk(FFN).indices.sort().values for k, w in weigh.items()}


def shrink(teacher: Teacher, vocabulary: list[str], sample: Sequence[str]) -> Model:
    """Copy the kept layers, the busiest feed-forward neurons and the kept embeddings."""
    state = {k: v for k, v in teacher.model.state_dict().items() if "encoder" not in k}
    for new, (k, keep) in enumerate(busiest(teacher, sample).items()):
        layer = dict(teacher.model.encoder.layer[k].state_dict())
        layer["output.dense.weight"] = layer["output.dense.weight"][:, keep]
        for name in ("intermediate.dense.weight", "intermediate.dense.bias"):
            layer[name] = layer[name][keep]
        state |= {f"encoder.layer.{new}.{n}": v for n, v in layer.items()}
    old = teacher.tokenizer.get_vocab()
    table = state["embeddings.word_embeddings.weight"]
    known = table[[i for t, i in old.items() if CJK.match(t)]]
    fresh = known.mean(0) + torch.randn(len(vocabulary), table.shape[1]) * known.std(0)
    rows = [table[old[t]] if t in old else fresh[i] for i, t in enumerate(vocabulary)]
    state["embeddings.word_embeddings.weight"] = torch.stack(rows)
    model = Model(make_config(len(vocabulary)))
    assert not model.bert.load_state_dict(state, strict=False).missing_keys
    return model


def make_config(vocabulary: int) -> BertConfig:
    """Describe the student."""
    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=384,
        num_hidden_layers=len(KEEP_LAYERS),
        num_attention_heads=12,
        intermediate_size=FFN,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label={0: "relevance"},
        label2id={"relevance": 0},
    )


class Encoder:
    """Turns texts into batches; keeps token ids, since every text is used many times."""

    def __init__(self, vocabulary: list[str]) -> None:
        """Make the tokenizer."""
        table = {t: i for i, t in enumerate(vocabulary)}
        self.tokenizer = BertTokenizer(vocab=table, do_lower_case=True, model_max_length=512)
        self.kept: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        """Token ids without special tokens."""
        if text not in self.kept:
            self.kept[text] = self.tokenizer.encode(text[:2000], add_special_tokens=False)
        return self.kept[text]

    def batch(self, texts: Sequence[tuple[str, ...]], limit: int) -> dict[str, torch.Tensor]:
        """Pad single texts or pairs; a query keeps 48 tokens, the rest is cut at the end."""
        rows = []
        for first, *second in texts:
            row = [(2, 0), *((i, 0) for i in self.ids(first)[: 48 if second else limit - 2])]
            row.append((3, 0))
            for text in second:
                row += [*((i, 1) for i in self.ids(text)[: limit - len(row) - 1]), (3, 1)]
            rows.append(row)
        width = max(map(len, rows))
        both = torch.tensor([row + [(0, 0)] * (width - len(row)) for row in rows])
        ids, types = both[..., 0].contiguous(), both[..., 1].contiguous()
        return {"input_ids": ids, "token_type_ids": types, "attention_mask": (ids != 0).long()}

    def score(self, model: Model, pairs: Sequence[tuple[str, str]], limit: int) -> torch.Tensor:
        """One logit a pair, run in small batches of like length."""
        lengths = np.array([min(limit, len(self.ids(q)) + len(self.ids(t)) + 3) for q, t in pairs])
        order = np.argsort(lengths, kind="stable")
        logits = []
        for part in np.array_split(order, max(1, lengths.sum() // 3000)):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                output = model(**self.batch([pairs[i] for i in part], limit))
            logits.append(output.logits[:, 0].float())
        return torch.cat(logits)[torch.from_numpy(np.argsort(order))]


def save(model: Model, tokenizer: BertTokenizer, folder: Path) -> None:
    """Write half-precision weights and the tokenizer."""
    half = Model(make_config(model.config.vocab_size))
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
