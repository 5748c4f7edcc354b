"""Write a bi-encoder as a plain BertForSequenceClassification that scores a pair in one pass.

A bi-encoder reads "query: Q" and "passage: P" apart, averages the last layer of each and takes the
cosine. The network written here reads them as one input and computes the same, since

* the tokenizer's template puts <s> query: Q </q> and <d> passage: P </s> together; </q> and <d> are
  copies of </s> and <s>, and all that stands between the texts has token type 1;
* the residual stream has 24 dimensions more: six flags (a pair +v, -v each, so that the mean stays
  0: query side, passage side, and one for each of the four special tokens, which have huge norms)
  and ten that carry the mean of the content, so that LayerNorm over 408 numbers is that over 384;
* every head has two dimensions more, by which a token gives one of the other side a score of -80
  or less: attention stays within a side. The feed-forward parts set the flags anew in each layer;
* one layer more averages each side, another one compares: in each head <s> weighs <d> against </s>
  (made a fixed reference) by a twelfth of the product of the averages; the weights' sum is the
  logit.

Exact up to rounding, but for one thing: the passage's positions start behind the query.
The flags have large weights, which a training step would break; `train_content_only` of `trainable`
keeps them.
"""

from __future__ import annotations

import math

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, BertModel

HIDDEN, HEADS, HEAD, EXTRA = 384, 12, 32, 24
WIDE, WIDE_HEAD = HIDDEN + EXTRA, HEAD + 2
INNER = 1536
WIDE_INNER = INNER + 32
FLAGS = "ABCQDE"  # other tokens of the query side, of the passage side; <s>, </q>, <d>, </s>
PAIR = {name: (HIDDEN + 2 * i, HIDDEN + 2 * i + 1) for i, name in enumerate(FLAGS)}
QUERY_SIDE, PASSAGE_SIDE = "ACQ", "BDE"
# Which statistic is theirs: other, first, last token.
KIND = {"A": 0, "B": 0, "C": 1, "Q": 2, "D": 1, "E": 2}
OUT, OUT_MINUS = HIDDEN + 12, HIDDEN + 13
MEAN = slice(HIDDEN + 14, HIDDEN + 24)
MEAN_SHARE = EXTRA / 10
SIZE = 1 / 8  # of a flag behind a LayerNorm
NARROW = math.sqrt(HIDDEN / WIDE)
COLUMNS = torch.tensor([WIDE_HEAD * h + j for h in range(HEADS) for j in range(HEAD)])


class Sizes:
    """What has to be known of the bi-encoder's activations, from a few texts."""

    def __init__(self, model: BertModel, tokenizer: Tokenizer, texts: list[dict]) -> None:
        self.spread: dict[str, list[float]] = {}  # into each LayerNorm: other, first, last token
        seen: dict[str, list[Tensor]] = {}

        def watch(name: str, inputs: tuple[Tensor, ...]) -> None:
            std = inputs[0][0].std(-1, unbiased=False)
            seen.setdefault(name, []).append(torch.stack([std[1:-1].median(), std[0], std[-1]]))

        hooks = [
            module.register_forward_pre_hook(lambda _, inputs, name=name: watch(name, inputs))
            for name, module in model.named_modules()
            if isinstance(module, nn.LayerNorm)
        ]
        means: dict[bool, list[Tensor]] = {True: [], False: []}
        for row in texts:
            prefix = "query: " if row["query"] else "passage: "
            ids = tokenizer.encode(prefix + row["text"]).ids[:256]
            hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
            means[row["query"]].append(hidden.mean(0))
        for hook in hooks:
            hook.remove()
        self.spread = {n: torch.stack(v).median(0).values.tolist() for n, v in seen.items()}
        queries, passages = torch.stack(means[True]), torch.stack(means[False])
        self.average_spread = float(torch.cat([queries, passages]).std(-1, unbiased=False).mean())
        unit = [(v - v.mean(-1, keepdim=True)) / v.std(-1, unbiased=False, keepdim=True)
                for v in (queries, passages)]  # fmt: skip
        self.mean_passage = unit[1].mean(0)
        parts = unit[0][:, None] * (unit[1] - self.mean_passage)[None]
        self.part_spread = float(parts.view(*parts.shape[:2], HEADS, HEAD).sum(-1).std())


def read_flag(linear: nn.Linear, row: int, flag: str, factor: float) -> None:
    """Make an output row read `factor` where the flag is set, 0 elsewhere."""
    plus, minus = PAIR[flag]
    linear.weight[row, plus] += factor / 2 / SIZE
    linear.weight[row, minus] -= factor / 2 / SIZE


def centred(weight: Tensor, dim: int = -1) -> Tensor:
    """What a LayerNorm behind it takes away anyway is taken away at once."""
    return weight - weight.mean(dim, keepdim=True)


def keep_apart(attention: nn.Module, barriers: tuple[float, ...] = (80.0,) * HEADS) -> None:
    """Lower a token's attention to the other side, in each head by so much (80: to nothing)."""
    for head, barrier in enumerate(barriers):
        first = WIDE_HEAD * head + HEAD
        size = math.sqrt(barrier * math.sqrt(WIDE_HEAD))
        for a, b in zip(QUERY_SIDE, PASSAGE_SIDE, strict=True):
            read_flag(attention.query, first, a, size)
            read_flag(attention.key, first, b, -size)
            read_flag(attention.query, first + 1, b, size)
            read_flag(attention.key, first + 1, a, -size)


def renew_flags(inner: nn.Linear, outer: nn.Linear, sizes: dict[str, float]) -> None:
    """Have the feed-forward part take each flag away and put exactly its size, or 0, instead.

    gelu(x) - gelu(-x) = x; gelu(x - 5) - gelu(x - 9) is 0 at x = 0 and 4 from about x = 12 on.
    """
    for at, name in zip(range(INNER, INNER + 24, 4), FLAGS, strict=True):
        for unit, factor in zip(range(at, at + 4), (1.0, -1.0, 32.0, 32.0), strict=True):
            read_flag(inner, unit, name, factor)
        inner.bias[at + 2], inner.bias[at + 3] = -5.0, -9.0
        for dimension, sign in zip(PAIR[name], (1.0, -1.0), strict=True):
            outer.weight[dimension, at] -= sign * SIZE
            outer.weight[dimension, at + 1] += sign * SIZE
            outer.weight[dimension, at + 2] += sign * sizes[name] / 4
            outer.weight[dimension, at + 3] -= sign * sizes[name] / 4


def put_flag(row: Tensor, flag: str, size: float) -> None:
    plus, minus = PAIR[flag]
    row[plus] += size
    row[minus] -= size


@torch.no_grad()
def compile_model(
    model: BertModel,
    sizes: Sizes,
    old: list[int],
    query_end: int,
    open_layers: int = 0,
    barrier: float = 4.0,
) -> BertForSequenceClassification:
    """Return the network; `old` are the kept ids, </q> and <d> follow them.

    In the last `open_layers` of the bi-encoder's layers, half of the heads have a low barrier
    between query and passage, so that training can open them.
    """
    layers = model.config.num_hidden_layers
    config = BertConfig(
        vocab_size=len(old) + 2,
        hidden_size=WIDE,
        num_hidden_layers=layers + 2,
        num_attention_heads=HEADS,
        intermediate_size=WIDE_INNER,
        layer_norm_eps=model.config.layer_norm_eps,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        num_labels=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label={0: "relevance"},
        label2id={"relevance": 0},
    )
    result = BertForSequenceClassification(config).eval()
    for parameter in result.parameters():
        parameter.zero_()

    def flag_sizes(norm: str) -> dict[str, float]:
        return {name: sizes.spread[norm][KIND[name]] / 8 for name in FLAGS}

    def widen_norm(target: nn.LayerNorm, source: nn.LayerNorm, name: str, before: dict) -> None:
        target.weight[:HIDDEN], target.bias[:HIDDEN] = source.weight * NARROW, source.bias
        if not name.endswith("attention.output.LayerNorm"):
            target.weight[MEAN] = NARROW
            target.bias[MEAN] = MEAN_SHARE * float(source.bias.mean())
        for flag, (plus, minus) in PAIR.items():
            spread = sizes.spread[name][KIND[flag]]
            target.weight[plus] = target.weight[minus] = NARROW * spread * SIZE / before[flag]

    # Embeddings
    wide, narrow = result.bert.embeddings, model.embeddings
    word, place, kind = (
        wide.word_embeddings.weight,
        wide.position_embeddings.weight,
        wide.token_type_embeddings.weight,
    )
    words, places = narrow.word_embeddings.weight, narrow.position_embeddings.weight
    word[: len(old), :HIDDEN] = centred(words[torch.tensor(old)])
    word[query_end, :HIDDEN] = centred(words[2])
    # <d> stands about 8 to 20 tokens in; give it what <s> has at its place.
    word[query_end + 1, :HIDDEN] = centred(words[0] + places[0] - places[8:20].mean(0))
    place[:, :HIDDEN] = centred(places)
    kind[:, :HIDDEN] = centred(narrow.token_type_embeddings.weight[:1])
    at_first = flag_sizes("embeddings.LayerNorm")
    put_flag(kind[0], "A", at_first["A"])
    put_flag(kind[1], "B", at_first["B"])
    for token, flag, side in (
        (0, "C", "A"),
        (query_end, "Q", "B"),
        (query_end + 1, "D", "B"),
        (2, "E", "B"),
    ):
        put_flag(word[token], flag, at_first[flag])
        put_flag(word[token], side, -at_first[side])
    for table in (word, place, kind):
        table[:, MEAN] = (MEAN_SHARE / HIDDEN * (table[:, :HIDDEN] @ narrow.LayerNorm.weight))[
            :, None
        ]
    widen_norm(wide.LayerNorm, narrow.LayerNorm, "embeddings.LayerNorm", at_first)

    # The bi-encoder's layers
    for number, source in enumerate(model.encoder.layer):
        target = result.bert.encoder.layer[number]
        for part, scale in (("query", math.sqrt(WIDE_HEAD / HEAD)), ("key", 1.0), ("value", 1.0)):
            there, here = getattr(target.attention.self, part), getattr(source.attention.self, part)
            there.weight[COLUMNS, :HIDDEN] = here.weight * scale
            there.bias[COLUMNS] = here.bias * scale
        low = (barrier, 80.0) * (HEADS // 2) if number >= layers - open_layers else (80.0,) * HEADS
        keep_apart(target.attention.self, low)
        there, here = target.attention.output, source.attention.output
        there.dense.weight[:HIDDEN, COLUMNS] = centred(here.dense.weight, 0)
        there.dense.bias[:HIDDEN] = centred(here.dense.bias)
        name = f"encoder.layer.{number}.attention.output.LayerNorm"
        widen_norm(there.LayerNorm, here.LayerNorm, name, dict.fromkeys(FLAGS, SIZE))
        inner, outer = target.intermediate.dense, target.output.dense
        inner.weight[:INNER, :HIDDEN] = source.intermediate.dense.weight
        inner.bias[:INNER] = source.intermediate.dense.bias
        outer.weight[:HIDDEN, :INNER] = centred(source.output.dense.weight, 0)
        outer.bias[:HIDDEN] = centred(source.output.dense.bias)
        # The mean of the content is taken away, and what its mean will be behind the LayerNorm put
        # into the ten dimensions: the sum of the content weighted by the LayerNorm's own weights.
        gain = MEAN_SHARE / HIDDEN * source.output.LayerNorm.weight
        outer.weight[MEAN, :INNER] = (gain @ outer.weight[:HIDDEN, :INNER])[None]
        outer.bias[MEAN] = float(gain @ outer.bias[:HIDDEN])
        at = INNER + 24
        for unit, sign in ((at, 16.0), (at + 1, -16.0)):
            inner.weight[unit, :HIDDEN] = sign / HIDDEN
            outer.weight[:HIDDEN, unit] = -1 / sign
            inner.weight[unit + 2, :HIDDEN] = sign * centred(gain)
            outer.weight[MEAN, unit + 2] = 1 / sign
        name = f"encoder.layer.{number}.output.LayerNorm"
        renewed = flag_sizes(name)
        renew_flags(inner, outer, renewed)
        widen_norm(target.output.LayerNorm, source.output.LayerNorm, name, renewed)

    # One layer that averages each side
    layer = result.bert.encoder.layer[layers]
    keep_apart(layer.attention.self)
    weight = 256.0  # so that the token's own vector, which is added, does not count
    for i, column in enumerate(COLUMNS.tolist()):
        layer.attention.self.value.weight[column, i] = 1.0
        layer.attention.output.dense.weight[i, column] = weight
    dense = layer.attention.output.dense.weight
    dense[:HIDDEN] = centred(dense[:HIDDEN], 0)
    norm = layer.attention.output.LayerNorm
    norm.weight[:HIDDEN] = NARROW
    norm.weight[HIDDEN : HIDDEN + 12] = NARROW * sizes.average_spread * weight
    inner, outer = layer.intermediate.dense, layer.output.dense
    renew_flags(inner, outer, dict.fromkeys(FLAGS, SIZE))
    # </s> becomes the reference: its content is taken away and replaced by a fixed vector.
    mean = sizes.mean_passage
    fixed = mean / mean.std(unbiased=False)
    for i in range(HIDDEN):
        for unit, sign in ((2 * i, 1.0), (2 * i + 1, -1.0)):
            inner.weight[unit, i] = sign
            read_flag(inner, unit, "E", 48.0)
            inner.bias[unit] = -16.0
            outer.weight[i, unit] = -sign / 2
    at = INNER + 4 * FLAGS.index("E")
    outer.weight[:HIDDEN, at + 2] += fixed / 4
    outer.weight[:HIDDEN, at + 3] -= fixed / 4
    layer.output.LayerNorm.weight[:] = NARROW

    # One layer that compares
    layer = result.bert.encoder.layer[layers + 1]
    attention = layer.attention.self
    steepness = 0.42 / sizes.part_spread  # the weights stay where the sigmoid is nearly straight
    for i, column in enumerate(COLUMNS.tolist()):
        attention.query.weight[column, i] = steepness * math.sqrt(WIDE_HEAD)
        attention.key.weight[column, i], attention.key.bias[column] = 1.0, -mean[i]
        read_flag(attention.key, column, "E", float(mean[i] - fixed[i]))
    for head in range(HEADS):
        first = WIDE_HEAD * head + HEAD
        read_flag(attention.query, first, "C", 16.0)
        for flag in "ABCQ":
            read_flag(attention.key, first, flag, -16.0)
        read_flag(attention.key, first, "E", 0.12)
        read_flag(attention.value, first, "D", 1.0)
        for dimension, sign in ((OUT, 1.0), (OUT_MINUS, -1.0)):
            layer.attention.output.dense.weight[dimension, first] = sign
            layer.attention.output.dense.bias[dimension] = -sign * HEADS / 2
    layer.attention.output.LayerNorm.weight[:] = layer.output.LayerNorm.weight[:] = 1.0
    result.bert.pooler.dense.weight[0, OUT], result.bert.pooler.dense.weight[0, OUT_MINUS] = (
        0.08,
        -0.08,
    )
    result.classifier.weight[0, 0] = 4.0
    return result
