"""Train the small embedded cross-encoder by distillation from all-MiniLM-L6-v2, on a CPU.

Stages: read the texts; choose a small vocabulary; shrink the teacher to fewer layers and a
narrower feed-forward part; repair it as a sentence encoder; train it as a cross-encoder
(English: towards the teacher's similarities and labels, Chinese: towards labels); fit a scale
and an offset into the last layer; save fp16 weights. The shipped model took five runs with one
process a core, each from the last checkpoint of the one before:

    torchrun --nproc-per-node 2 train_demo_model.py --data D --teacher T --out A --minutes 40
        (stopped after 19 minutes of the cross-encoder stage)
    torchrun --nproc-per-node 2 train_demo_model.py --data D --teacher T --out B --minutes 18
        --resume A/checkpoint
    torchrun --nproc-per-node 2 train_demo_model.py --data D --teacher T --out C --minutes 19
        --resume B/checkpoint --order-seed 107
    torchrun --nproc-per-node 2 train_demo_model.py --data D --teacher T --out E --minutes 70
        --resume C/checkpoint --order-seed 207 --long 0.25  (stopped after 37 minutes)
    torchrun --nproc-per-node 2 train_demo_model.py --data D --teacher T --out F --minutes 9
        --resume E/checkpoint --order-seed 307 --long 0.25 --rate 1.5e-4

DATA holds nfcorpus/, wikiqa/, xquad-en/, cmrc2018/ and drcd/ as their owners publish them.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from scipy import sparse
from transformers import AutoModel, AutoTokenizer, BertConfig, BertTokenizer
from transformers import BertForSequenceClassification as Model

KEEP_LAYERS = (0, 1, 3, 5)
FFN, VOCAB, CHINESE = 1024, 14_080, 3_000
SHARP, CENTRE = 20.0, 0.42  # a teacher similarity s becomes the target logit SHARP * (s - CENTRE)
TOP, GROUPS = 40, 6  # candidates mined per source; queries a step and process
LABELLED = {"wikiqa", "xquad", "zh", "zh-cloze", "zh-long"}
# Whole documents: share of each kind of query, groups a step and process, tokens a pair.
LONG_MIX = {"claim": 0.4, "title": 0.15, "topic": 0.15, "zh-long": 0.3}
LONG_GROUPS, LONG_LIMITS = 3, (192, 256, 320, 384)
POSITIVE, TEACHER, LEXICAL, RANDOM, SIBLING = range(5)
PLAN_EN = (POSITIVE, TEACHER, TEACHER, TEACHER, LEXICAL, LEXICAL, SIBLING, RANDOM)
PLAN_ZH = (POSITIVE, LEXICAL, LEXICAL, LEXICAL, LEXICAL, SIBLING, SIBLING, RANDOM)
PLAN_ZH_EASY = (POSITIVE, LEXICAL, LEXICAL, LEXICAL, SIBLING, RANDOM, RANDOM, RANDOM)
FORMS = "what is {}|{} definition|what does {} mean|define {}|{}|who is {}|what are {}"
FORMS += "|how does {} work|facts about {}|what causes {}"
CJK = re.compile(r"[\u4e00-\u9fff]")
WORD = re.compile(r"[a-z0-9]+|[\u4e00-\u9fff]")
DEFINES = re.compile(r"^(?:an? |the )?((?:[\w'-]+ ){1,4}?)(?:\([^)]*\) )?(?:is|are|was) ", re.I)
PLAIN = re.compile(r"(##)?[\u0020-\u024f\u0370-\u03ff\u2010-\u2044€°′″]")
log = logging.getLogger("train_model")


@dataclass(frozen=True)
class Recipe:
    """What differs between a first run and one that goes on from a checkpoint."""

    mix: dict[str, float]  # share of each kind of query
    limits: tuple[tuple[float, tuple[int, int, int]], ...]  # tokens a pair up to a share of time
    warm_up: int
    lexical: bool  # BM25 guides Chinese, with easier candidates up to half the time
    pseudo: float  # share of the pseudo-queries that is kept, to mine in less time


FIRST = Recipe(
    {"wikiqa": 0.19, "xquad": 0.09, "nfcorpus": 0.09, "what-is": 0.13, "keywords": 0.14,
     "sentence": 0.06, "zh": 0.24, "zh-cloze": 0.06},
    ((0.5, (56, 72, 80)), (0.85, (72, 96, 112)), (9.0, (96, 128, 192))),
    warm_up=60, lexical=False, pseudo=1.0,
)  # fmt: skip
SECOND = Recipe(
    {"wikiqa": 0.17, "xquad": 0.08, "nfcorpus": 0.06, "what-is": 0.14, "keywords": 0.13,
     "sentence": 0.04, "zh": 0.30, "zh-cloze": 0.08},
    ((0.5, (56, 72, 80)), (0.85, (72, 96, 128)), (9.0, (96, 160, 224))),
    warm_up=30, lexical=True, pseudo=0.25,
)  # fmt: skip


@dataclass
class Query:
    """One query and its candidates by source."""

    text: str
    kind: str
    positives: list[int] = field(default_factory=list)
    siblings: list[int] = field(default_factory=list)
    mined: dict[int, np.ndarray] = field(default_factory=dict)
    top_bm25: float = 1.0


@dataclass
class Pool:
    """Passages, the number of the text each was cut from, and the queries asked over them."""

    texts: list[str] = field(default_factory=list)
    source: list[int] = field(default_factory=list)
    queries: list[Query] = field(default_factory=list)
    bm25: tuple[sparse.csr_matrix, ...] = ()

    def add(self, units: Sequence[str], spans: Iterable[tuple[int, int]]) -> list[set[int]]:
        """Add spans of one text's sentences; return the passages that hold each sentence."""
        holders: list[set[int]] = [set() for _ in units]
        joint = "" if CJK.search("".join(units)) else " "
        number = self.source[-1] + 1 if self.source else 0
        for start, stop in spans:
            for i in range(start, stop):
                holders[i].add(len(self.texts))
            self.texts.append(joint.join(units[start:stop]))
            self.source.append(number)
        return holders

    def ask(self, text: str, kind: str, holders: list[set[int]], good: Sequence[int]) -> None:
        """Add a query whose answer is in the sentences `good`; the rest are its siblings."""
        positives = set().union(*(holders[i] for i in good))
        siblings = set().union(*holders) - positives
        self.queries.append(Query(text, kind, sorted(positives), sorted(siblings)))


def read_jsonl(path: Path) -> list[dict]:
    """Read one JSON object a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def sentences(text: str) -> list[str]:
    """Cut at sentence ends, Chinese or English."""
    if CJK.search(text):
        return [s for s in re.findall(r"[^。！？；]+[。！？；]?", text) if len(s) > 5]
    return [s for s in re.split(r'(?<=[.!?])\s+(?=[A-Z0-9"(])', text) if len(s) > 15]


def windows(units: Sequence[str], width: int, stride: int) -> list[tuple[int, int]]:
    """Overlapping spans of `width` sentences."""
    return [(i, min(i + width, len(units))) for i in range(0, max(1, len(units) - 1), stride)]


def untokenize(text: str) -> str:
    """Undo the Treebank spacing of the WikiQA files."""
    text = text.strip().replace("`` ", '"').replace(" ''", '"')
    text = re.sub(r" (n't|'s|'re|'ve|'ll|'d|'m)\b", r"\1", text)
    return re.sub(r"([(\[$#]) ", r"\1", re.sub(r" ([.,;:!?%)\]])", r"\1", text))


def load_wikiqa(pool: Pool, folder: Path) -> None:
    """Questions of web users, each over the sentences of one Wikipedia summary."""
    names = ("a.toks", "b.toks", "sim.txt")
    columns = [(folder / n).read_text(encoding="utf-8").splitlines() for n in names]
    grouped: dict[str, list[tuple[str, str]]] = {}
    for question, answer, label in zip(*columns, strict=True):
        grouped.setdefault(untokenize(question), []).append((untokenize(answer), label.strip()))
    for question, rows in grouped.items():
        units = [text for text, _ in rows]
        holders = pool.add(units, [(i, i + 1) for i in range(len(units))] + windows(units, 3, 2))
        pool.ask(question, "wikiqa", holders, [i for i, r in enumerate(rows) if r[1] == "1"])


def load_squad(pool: Pool, path: Path, kind: str) -> None:
    """Questions in SQuAD layout; a passage is positive when it holds the answer's sentence."""
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    for paragraph in (p for article in articles for p in article["paragraphs"]):
        units = sentences(paragraph["context"])
        spans = [(i, i + 1) for i in range(len(units))] + windows(units, 3, 2)
        if len("".join(units)) < 500:
            spans.append((0, len(units)))
        holders = pool.add(units, spans)
        for qa in paragraph["qas"]:
            answer = qa["answers"][0]["text"].strip()
            good = [i for i, s in enumerate(units) if answer in s]
            if len(good) == 1:
                pool.ask(qa["question"], kind, holders, good)


def load_nfcorpus(pool: Pool, folder: Path) -> None:
    """Abstracts as passages; titles and training queries as queries."""
    first: dict[str, int] = {}
    for doc in read_jsonl(folder / "corpus.jsonl"):
        units = [doc["title"].rstrip(".") + ".", *sentences(doc["text"])]
        first[doc["_id"]] = len(pool.texts)
        pool.add(units, windows(units, 4, 3))
        pool.queries.append(Query(doc["title"], "sentence", [first[doc["_id"]]]))
    texts = {q["_id"]: q["text"] for q in read_jsonl(folder / "queries.jsonl")}
    judged: dict[str, list[tuple[int, int]]] = {}
    for line in (folder / "qrels/train.tsv").read_text().splitlines()[1:]:
        query, doc, grade = line.split("\t")
        judged.setdefault(query, []).append((int(grade), first[doc]))
    for query, rows in judged.items():
        top = max(grade for grade, _ in rows)
        pool.queries.append(Query(texts[query], "nfcorpus", [i for g, i in rows if g == top]))


def read_long(data: Path, rng: np.random.Generator) -> tuple[Pool, Pool]:
    """Read whole abstracts and whole Chinese paragraphs, with queries over them."""
    abstracts, paragraphs = Pool(), Pool()
    place: dict[str, int] = {}
    for doc in read_jsonl(data / "nfcorpus/corpus.jsonl"):
        units = sentences(doc["text"])
        if len(units) < 3:
            continue
        place[doc["_id"]] = len(abstracts.texts)
        abstracts.add([doc["title"].rstrip(".") + ".", *units], [(0, len(units) + 1)])
        fit = [u for u in units if 6 < len(u.split()) < 32]
        for unit in rng.choice(fit, min(2, len(fit)), replace=False) if fit else ():
            abstracts.queries.append(Query(str(unit), "claim", [place[doc["_id"]]]))
        abstracts.queries.append(Query(doc["title"], "title", [place[doc["_id"]]]))
    texts = {q["_id"]: q["text"] for q in read_jsonl(data / "nfcorpus/queries.jsonl")}
    judged: dict[str, list[int]] = {}
    for line in (data / "nfcorpus/qrels/train.tsv").read_text().splitlines()[1:]:
        query, doc, _ = line.split("\t")
        if doc in place:
            judged.setdefault(query, []).append(place[doc])
    abstracts.queries += [Query(texts[query], "topic", rows) for query, rows in judged.items()]
    for name in ("cmrc2018/cmrc2018_dev.json", "drcd/DRCD_dev.json"):
        articles = json.loads((data / name).read_text(encoding="utf-8"))["data"]
        for paragraph in (p for article in articles for p in article["paragraphs"]):
            paragraphs.add([paragraph["context"]], [(0, 1)])
            number = len(paragraphs.texts) - 1
            for qa in paragraph["qas"]:
                paragraphs.queries.append(Query(qa["question"], "zh-long", [number]))
    return abstracts, paragraphs


def add_pseudo_queries(pool: Pool, rng: np.random.Generator) -> None:
    """Make English queries out of passages: definitions, keyword picks, sentences."""
    forms = FORMS.split("|")
    for i, text in enumerate(pool.texts):
        words, found = text.split(), DEFINES.match(text)
        if found and rng.random() < 0.8:
            form = forms[rng.integers(len(forms))]
            pool.queries.append(Query(form.format(found.group(1).strip()), "what-is", [i]))
        if len(words) > 8 and rng.random() < 0.3:
            long = [k for k, w in enumerate(words) if len(w) > 4] or [0]
            picks = rng.choice(long, min(len(long), int(rng.integers(2, 6))), replace=False)
            start = int(rng.integers(len(words) - 5))
            chosen = sorted(picks) if rng.random() < 0.6 else range(start, start + 5)
            query = re.sub(r"[^\w' -]", "", " ".join(words[k] for k in chosen))
            pool.queries.append(Query(query, "keywords", [i]))
        if len(words) < 30 and rng.random() < 0.2:
            near = [j for j in range(i - 3, i + 4) if 0 <= j < len(pool.texts) and j != i]
            same = [j for j in near if pool.source[j] == pool.source[i]]
            pool.queries.append(Query(text, "sentence", same))


def add_cloze(pool: Pool, rng: np.random.Generator) -> None:
    """Make Chinese queries of one or two short spans cut out of a passage."""
    for i in rng.choice(len(pool.texts), len(pool.texts) // 5, replace=False):
        parts = [p for p in re.split(r"[^\u4e00-\u9fff]+", pool.texts[i]) if len(p) > 3]
        if not parts:
            continue
        picks = [parts[k] for k in rng.integers(len(parts), size=int(rng.integers(1, 3)))]
        text = " ".join(p[: int(rng.integers(4, 11))] for p in picks)
        near = range(max(0, i - 30), min(len(pool.texts), i + 31))
        same = [j for j in near if pool.source[j] == pool.source[i]]
        holds = [j for j in same if all(p in pool.texts[j] for p in text.split())]
        pool.queries.append(Query(text, "zh-cloze", holds, sorted(set(same) - set(holds))))


def thin(pool: Pool, share: float, rng: np.random.Generator) -> list[int]:
    """Keep every real question and a share of the pseudo-queries; return which."""
    real = {"wikiqa", "xquad", "nfcorpus", "zh"}
    keep = [i for i, q in enumerate(pool.queries) if q.kind in real or rng.random() < share]
    pool.queries = [pool.queries[i] for i in keep]
    return keep


def read_pools(data: Path, rng: np.random.Generator) -> tuple[Pool, Pool, Pool, Pool]:
    """Read English and Chinese to train on, and a small part of each to calibrate with."""
    english, held_en, chinese = Pool(), Pool(), Pool()
    load_wikiqa(english, data / "wikiqa/train")
    load_wikiqa(held_en, data / "wikiqa/dev")
    load_nfcorpus(english, data / "nfcorpus")
    load_squad(english, data / "xquad-en/xquad.en.json", "xquad")
    add_pseudo_queries(english, rng)
    load_squad(chinese, data / "cmrc2018/cmrc2018_dev.json", "zh")
    load_squad(chinese, data / "drcd/DRCD_dev.json", "zh")
    mixed = [chinese.queries[i] for i in rng.permutation(len(chinese.queries))]
    held_zh = Pool(chinese.texts, chinese.source, mixed[:200])
    chinese.queries = mixed[200:]
    add_cloze(chinese, rng)
    return english, chinese, held_en, held_zh


def terms(text: str) -> list[str]:
    """Words for BM25: English words without a plural s, pairs of Chinese characters."""
    tokens = WORD.findall(text.lower())
    pairs = [a + b for a, b in pairwise(tokens) if CJK.match(a + b)]
    words = [t[:-1] if len(t) > 3 and t.endswith("s") else t for t in tokens if not CJK.match(t)]
    return words + pairs


def bm25(passages: Sequence[str], queries: Sequence[str]) -> tuple[sparse.csr_matrix, ...]:
    """Return query and passage matrices whose product is the BM25 score."""
    index: dict[str, int] = {}
    counted = [Counter(terms(t)) for t in passages]
    cells = ((i, t, n) for i, c in enumerate(counted) for t, n in c.items())
    rows = [(i, index.setdefault(t, len(index)), n) for i, t, n in cells]
    doc, term, count = (np.array(x) for x in zip(*rows, strict=True))
    length = np.array([sum(c.values()) for c in counted])
    seen = np.bincount(term, minlength=len(index))
    idf = np.log1p((len(passages) - seen + 0.5) / (seen + 0.5))
    norm = 0.9 * (0.6 + 0.4 * length[doc] / length.mean())
    weight = idf[term] * count * 1.9 / (count + norm)
    docs = sparse.csr_matrix((weight, (doc, term)), (len(passages), len(index)), dtype=np.float32)
    asked = [(i, index[t]) for i, q in enumerate(queries) for t in set(terms(q)) if t in index]
    row, column = np.array(asked).T
    ones = np.ones(len(row), dtype=np.float32)
    return sparse.csr_matrix((ones, (row, column)), (len(queries), len(index))), docs


def best(scores: np.ndarray) -> np.ndarray:
    """Column numbers of the TOP best scores of each row, in no particular order."""
    return np.argpartition(-scores, TOP, axis=1)[:, :TOP]


def mine(pool: Pool, asked: np.ndarray | None = None, dense: np.ndarray | None = None) -> None:
    """Attach hard candidates by BM25 and, where there are vectors, by the teacher."""
    query_terms, doc_terms = pool.bm25 = bm25(pool.texts, [q.text for q in pool.queries])
    for start in range(0, len(pool.queries), 500):
        part = slice(start, start + 500)
        scores = (query_terms[part] @ doc_terms.T).toarray()
        lexical = best(scores)
        near = [None] * len(lexical) if asked is None else best(asked[part] @ dense.T)
        rows = zip(pool.queries[part], lexical, near, scores.max(1), strict=True)
        for query, words, meaning, top in rows:
            query.top_bm25 = float(top) or 1.0
            banned = {pool.source[i] for i in query.positives} if asked is None else set()
            query.mined[LEXICAL] = np.array([i for i in words if pool.source[i] not in banned])
            if meaning is not None:
                query.mined[TEACHER] = meaning


def pooled(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the real tokens, at length one."""
    return F.normalize((hidden.float() * mask[..., None]).sum(1), dim=-1)


class Teacher:
    """The bi-encoder: unit vectors by mean pooling."""

    def __init__(self, folder: Path) -> None:
        """Load model and tokenizer."""
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def encode(self, texts: Sequence[str], limit: int = 256) -> np.ndarray:
        """Embed texts, longest first."""
        out = np.zeros((len(texts), self.model.config.hidden_size), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        options = {"padding": True, "truncation": True, "return_tensors": "pt"}
        for start in range(0, len(order), 64):
            part = order[start : start + 64]
            batch = self.tokenizer([texts[i] for i in part], max_length=limit, **options)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                hidden = self.model(**batch).last_hidden_state
            out[part] = pooled(hidden, batch["attention_mask"]).numpy()
        return out


def embed(teacher: Teacher, texts: list[str], cache: Path) -> np.ndarray:
    """Return the teacher's vectors; the processes share the work, a file keeps it."""
    if cache.exists():
        return np.load(cache)
    rank, world = dist.get_rank(), dist.get_world_size()
    vectors = np.zeros((len(texts), teacher.model.config.hidden_size), dtype=np.float32)
    vectors[rank::world] = teacher.encode(texts[rank::world])
    dist.all_reduce(torch.from_numpy(vectors))
    if not rank:
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.save(cache, vectors)
    return vectors


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


class Stage:
    """One timed stage of training: a linear warm-up, then half a cosine over its time."""

    def __init__(
        self, model: Model, rate: float, minutes: float, clip: float, warm_up: int
    ) -> None:
        """Start the clock, of processor time; the last layer learns five times as fast."""
        head, body = list(model.classifier.parameters()), list(model.bert.parameters())
        self.parameters, self.clip, self.warm_up = body + head, clip, warm_up
        groups = [{"params": body, "top": rate}, {"params": head, "top": 5 * rate}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=0.01)
        self.start, self.minutes, self.step, self.done = time.process_time(), minutes, 0, 0.0

    def advance(self, loss: torch.Tensor) -> None:
        """Average the gradients, and the share of time gone by, over the processes; step."""
        self.step += 1
        curve = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(self.done, 1.0)))
        for group in self.optimizer.param_groups:
            group["lr"] = group["top"] * min(1.0, self.step / self.warm_up) * curve
        loss.backward()
        done = (time.process_time() - self.start) / (60 * self.minutes)
        grads = [p.grad for p in self.parameters if p.grad is not None]
        flat = torch.cat([*(g.flatten() for g in grads), torch.tensor([done])])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for grad, mean in zip(grads, flat.split([*(g.numel() for g in grads), 1]), strict=False):
            grad.copy_(mean.view_as(grad))
        self.done = flat[-1].item()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()


def repair(
    model: Model,
    encoder: Encoder,
    targets: dict[str, np.ndarray],
    chinese: Pool,
    minutes: float,
    rng: np.random.Generator,
) -> None:
    """Teach the shrunken network the teacher's vectors, and Chinese question-passage pairs."""
    texts, stage = list(targets), Stage(model, 4e-4, minutes, math.inf, 60)
    while stage.done < 1:
        use_teacher = (stage.step + 1) % 3 > 0
        picks = rng.choice(len(texts), 48, replace=False)
        if use_teacher:
            chosen = [texts[i] for i in picks]
        else:
            asked = [q for q in rng.choice(np.array(chinese.queries), 32) if q.positives]
            chosen = [q.text for q in asked]
            chosen += [chinese.texts[rng.choice(q.positives)] for q in asked]
        batch = encoder.batch([(t,) for t in chosen], 48)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model.bert(**batch).last_hidden_state
        vectors = pooled(hidden, batch["attention_mask"])
        if use_teacher:
            goal = torch.from_numpy(np.stack([targets[t] for t in chosen]))
            loss = 5 * (1 - (vectors * goal).sum(1)).mean()
        else:
            left, right = vectors.chunk(2)
            loss = 0.3 * F.cross_entropy(SHARP * left @ right.T, torch.arange(len(left)))
        stage.advance(loss)
        if stage.step % 30 < 3:
            log.info("repair %d, done %.2f, loss %.3f", stage.step, stage.done, loss.item())


def draw(pool: Pool, query: Query, plan: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Pick a query's candidates by the plan; no passage twice."""
    lists = {POSITIVE: query.positives, SIBLING: query.siblings, **query.mined}
    chosen: list[int] = []
    for source in plan:
        options = lists.get(source, [])
        if source == LEXICAL and len(options) and rng.random() < 0.3:
            options = options[: TOP // 4]
        pick = int(rng.choice(options)) if len(options) else int(rng.integers(len(pool.texts)))
        while pick in chosen:
            pick = int(rng.integers(len(pool.texts)))
        chosen.append(pick)
    return chosen


def follow(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Follow target logits within a group and, less, in level."""
    loss = 0.7 * F.kl_div(logits.log_softmax(0), target.softmax(0), reduction="sum")
    return loss + 0.15 * F.smooth_l1_loss(logits, target)


def lexical_target(pool: Pool, number: int, chosen: list[int]) -> torch.Tensor:
    """Turn BM25 scores, as shares of the query's best, into target logits."""
    query_terms, doc_terms = pool.bm25
    scores = (doc_terms[chosen] @ query_terms[number].T).toarray()[:, 0]
    return torch.from_numpy(10.0 * (scores / pool.queries[number].top_bm25 - 0.6)).float()


def label_loss(logits: torch.Tensor, good: torch.Tensor) -> torch.Tensor:
    """Softmax cross-entropy over the group, with a share of plain per-pair cross-entropy."""
    inside = logits.logsumexp(0) - logits.masked_fill(~good, -1e4).logsumexp(0)
    return inside + 0.5 * F.binary_cross_entropy_with_logits(logits, good.float())


def train(
    model: Model,
    encoder: Encoder,
    pools: Sequence[Pool],
    vectors: Mapping[int, tuple[np.ndarray, np.ndarray]],
    args: argparse.Namespace,
    recipe: Recipe,
    rng: np.random.Generator,
) -> None:
    """Run the cross-encoder stage, short passages first, saving now and then.

    `vectors` holds the teacher's, of queries and of passages, by the number of the pool.
    """
    kinds: dict[str, list[tuple[int, int, Query]]] = {k: [] for k in (*recipe.mix, *LONG_MIX)}
    for place, pool in enumerate(pools):
        for number, query in enumerate(pool.queries):
            kinds[query.kind].append((place, number, query))
    together = np.random.default_rng(args.order_seed)  # the same draws in every process
    stage, saved = Stage(model, args.rate, args.minutes, 2.0, recipe.warm_up), time.time()
    trace: dict[bool, list[float]] = {False: [], True: []}
    while (done := stage.done) < 1:
        limits = next(choice for end, choice in recipe.limits if done < end)
        mix, count = recipe.mix, GROUPS
        if together.random() < args.long:
            limits, mix, count = LONG_LIMITS, LONG_MIX, LONG_GROUPS
        groups, pairs = [], []
        for kind in rng.choice(list(mix), count, p=list(mix.values())):
            place, number, query = kinds[kind][rng.integers(len(kinds[kind]))]
            pool = pools[place]
            is_zh = kind.startswith("zh")
            plan_zh = PLAN_ZH_EASY if recipe.lexical and done < 0.5 else PLAN_ZH
            chosen = draw(pool, query, plan_zh if is_zh else PLAN_EN, rng)
            known = query.positives if kind in LABELLED else []
            good = torch.tensor([i in known for i in chosen])
            target = None
            if not is_zh:
                of_query, of_passages = (
                    part[at] for part, at in zip(vectors[place], (number, chosen), strict=True)
                )
                similar = torch.from_numpy(of_passages @ of_query)
                target = SHARP * (similar - CENTRE)
            elif recipe.lexical:
                target = lexical_target(pool, number, chosen)
            groups.append((is_zh, target, good))
            pairs += [(query.text, pool.texts[i]) for i in chosen]
        logits = encoder.score(model, pairs, int(rng.choice(limits))).view(count, -1)
        losses = []
        for row, (is_zh, target, good) in zip(logits, groups, strict=True):
            loss = (1.0 if is_zh else 0.3) * label_loss(row, good) if good.any() else 0.0
            if target is not None:
                loss = loss + (0.6 if is_zh else 1.0) * follow(row, target)
            losses.append(loss)
            trace[is_zh].append(loss.item())
        stage.advance(torch.stack(losses).mean())
        if stage.step % 25 == 0:
            en, zh = (np.mean(trace[k][-100:]) for k in (False, True))
            log.info("step %d, done %.3f, en %.3f, zh %.3f", stage.step, stage.done, en, zh)
        if time.time() - saved > 60 * args.save_every and not dist.get_rank():
            saved = time.time()
            save(model, encoder.tokenizer, args.out / "checkpoint")


@torch.no_grad()
def calibrate(
    model: Model, encoder: Encoder, pools: Sequence[Pool], rng: np.random.Generator
) -> None:
    """Fit a scale and an offset on held-out labelled questions, the classes weighted alike."""
    scores, labels = [], []
    for pool in pools:
        for i in rng.choice(len(pool.queries), 120, replace=False):
            query = pool.queries[i]
            chosen = draw(pool, query, PLAN_ZH, rng)
            scores.append(encoder.score(model, [(query.text, pool.texts[k]) for k in chosen], 256))
            labels.append(torch.tensor([float(k in query.positives) for k in chosen]))
    score, label = torch.cat(scores), torch.cat(labels)
    weight = torch.where(label > 0, 0.5 / label.mean(), 0.5 / (1 - label.mean()))
    fit = torch.tensor([1.0, 0.0], requires_grad=True)
    solver = torch.optim.LBFGS([fit], max_iter=100)

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = F.binary_cross_entropy_with_logits(score * fit[0] + fit[1], label, weight)
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    scale, offset = fit.tolist()
    model.classifier.weight.mul_(scale)
    model.classifier.bias.mul_(scale).add_(offset)
    log.info("calibrated: scale %.3f, offset %.3f", scale, offset)


def save(model: Model, tokenizer: BertTokenizer, folder: Path) -> None:
    """Write half-precision weights and the tokenizer."""
    half = Model(make_config(model.config.vocab_size))
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Run all stages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True, help="all-MiniLM-L6-v2")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=40, help="of the cross-encoder stage")
    parser.add_argument("--repair-minutes", type=float, default=2.5)
    parser.add_argument("--save-every", type=float, default=4, help="minutes")
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--resume", type=Path, help="go on from this checkpoint, no repair")
    parser.add_argument("--long", type=float, default=0.0, help="share of whole-document steps")
    parser.add_argument("--seed", type=int, default=7, help="of the texts that are chosen")
    parser.add_argument("--order-seed", type=int, default=7, help="of the order they come in")
    args = parser.parse_args()
    recipe = SECOND if args.resume else FIRST
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    logging.basicConfig(level=logging.WARNING if dist.get_rank() else logging.INFO)
    rng = np.random.default_rng(args.seed)
    torch.manual_seed(args.seed)
    english, chinese, held_en, held_zh = read_pools(args.data, rng)
    teacher = Teacher(args.teacher)
    vocabulary = choose_vocabulary(teacher, english, chinese)
    questions = [q.text for q in english.queries]
    log.info("passages: %d English, %d Chinese", len(english.texts), len(chinese.texts))
    passages = embed(teacher, english.texts, args.out / "cache/passages.npy")
    asked = embed(teacher, questions, args.out / "cache/queries.npy")
    for_repair = questions, asked
    asked = asked[thin(english, recipe.pseudo, rng)]
    thin(chinese, recipe.pseudo, rng)
    mine(english, asked, passages)
    for pool in (chinese, held_en, held_zh):
        mine(pool)
    rng = np.random.default_rng(args.order_seed + dist.get_rank())
    model, encoder = shrink(teacher, vocabulary, english.texts[::120]), Encoder(vocabulary)
    targets = dict(zip(english.texts, passages, strict=True))
    targets |= dict(zip(*for_repair, strict=True))
    if args.resume:
        model = Model.from_pretrained(args.resume, dtype=torch.float32)
    else:
        repair(model.train(), encoder, targets, chinese, args.repair_minutes, rng)
    model.train()
    pools, vectors = [english, chinese], {0: (asked, passages)}
    if args.long:
        abstracts, paragraphs = read_long(args.data, np.random.default_rng(args.seed))
        held = {q.text for q in held_zh.queries}
        paragraphs.queries = [q for q in paragraphs.queries if q.text not in held]
        kept = args.out / "cache"
        questions = [q.text for q in abstracts.queries]
        vectors[2] = (
            embed(teacher, questions, kept / "long-queries.npy"),
            embed(teacher, abstracts.texts, kept / "long-passages.npy"),
        )
        mine(abstracts, *vectors[2])
        mine(paragraphs)
        pools += [abstracts, paragraphs]
    train(model, encoder, pools, vectors, args, recipe, rng)
    if not dist.get_rank():
        calibrate(model.eval(), encoder, (held_en, held_zh), rng)
        save(model, encoder.tokenizer, args.out / "model")


if __name__ == "__main__":
    main()
