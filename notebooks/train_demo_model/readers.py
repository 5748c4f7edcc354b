"""Texts as their owners publish them, read into pools."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from train_demo_model.pools import Pool, Query, sentences, windows
from train_demo_model.pseudo import add_cloze, add_pseudo_queries


def read_jsonl(path: Path) -> list[dict]:
    """Read one JSON object a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


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
