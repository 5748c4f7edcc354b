"""Texts as their owners publish them, read into pools; the model card has their terms."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pandas as pd

from notebooks.embedded_model.pools import Bm25, Pool, Query, sentences, terms, windows

_MOST: Final = 1000  # characters of a passage


def read_medquad(data: Path) -> Pool:
    """Questions on diseases. Siblings answer another question on the same disease."""
    frame, pool = pd.read_parquet(data / "train2/medquad.parquet"), Pool("medquad")
    for focus, rows in frame.groupby("focus"):
        added = pool.add(str(focus), (text[:_MOST] for text in rows["answer"]))
        for question, kind in dict.fromkeys(zip(rows["question"], rows["type"], strict=True)):
            good = tuple(i for i, q in zip(added, rows["question"], strict=True) if q == question)
            other = tuple(i for i, k in zip(added, rows["type"], strict=True) if k != kind)
            text = re.sub(r"\(are\) |\s+(?=\?)", "", question)
            pool.queries.append(Query(text, str(focus), good, other, str(focus)))
    pool.names = sorted(frame["focus"].unique())
    return pool


def read_selqa(data: Path) -> Pool:
    """Questions over all sentences of a section of Wikipedia."""
    frame, pool = pd.read_parquet(data / "train2/selqa.parquet"), Pool("selqa")
    frame = frame[frame["sentence"].str.strip() != ""]
    for question, rows in frame.groupby("question"):
        document = rows["sentence"].iloc[0]
        added = pool.add(document, rows["sentence"])
        good = tuple(i for i, label in zip(added, rows["label"], strict=True) if label)
        pool.queries.append(Query(str(question), document, good, tuple(set(added) - set(good))))
    return pool


def read_policyqa(data: Path) -> Pool:
    """Questions on the privacy policy of a site; siblings are its other passages."""
    frame, pool = pd.read_parquet(data / "train2/policyqa.parquet"), Pool("policyqa")
    frame["context"] = frame["context"].str[:_MOST]
    for title, rows in frame.groupby("title"):
        contexts = list(rows["context"].unique())
        at = dict(zip(contexts, pool.add(str(title), contexts), strict=True))
        for question, asked in rows.groupby("question"):
            good = tuple(at[text] for text in asked["context"].unique())
            other = tuple(i for i in at.values() if i not in good)
            text = f"{title}: {question}" if hash_share(question) < 0.5 else str(question)
            pool.queries.append(Query(text, str(title), good, other))
    return pool


def hash_share(text: object) -> float:
    """Return a number in [0, 1) that depends on the text alone."""
    return random.Random(str(text)).random()


def read_covidqa(data: Path) -> Pool:
    """Questions over articles on viruses."""
    frame, pool = pd.read_parquet(data / "train2/covidqa.parquet"), Pool("covidqa")
    for passage, rows in frame.groupby("passage"):
        head = str(passage)[:60]
        added = pool.add(head, [str(passage)[:1200]])
        pool.queries += [Query(text, head, tuple(added)) for text in rows["question"]]
    return pool


def read_wikipedia(data: Path) -> Pool:
    """Passages of Wikipedia with titles as queries, and questions of the web without labels."""
    pool = Pool("wikipedia")
    for row in pd.read_parquet(data / "train2/wiki_passages.parquet").itertuples():
        added = pool.add(row.title, [f"{row.title}. {row.text}"[:_MOST]])
        name = row.title.split(" (")[0]
        form = random.Random(row.title).choice(["what is {}", "who is {}", "{}", "about {}"])
        pool.queries.append(Query(form.format(name), row.title, tuple(added)))
    questions = pd.read_parquet(data / "train2/nq_open_queries.parquet")["question"]
    pool.queries += [Query(text, text) for text in questions]
    return pool


def read_squad(path: Path, source: str, whole: bool = False) -> Pool:
    """Questions in SQuAD's layout; a passage is positive if it holds the answer."""
    pool = Pool(source)
    for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            asked = [(qa["question"], qa["answers"][0]["text"]) for qa in paragraph["qas"]]
            add_paragraph(pool, article.get("title", ""), paragraph["context"], asked, whole)
    return pool


def read_cmrc(data: Path) -> Pool:
    """The training part of CMRC 2018."""
    pool = Pool("cmrc")
    frame = pd.read_parquet(data / "train2/cmrc2018_train.parquet")
    for (title, context), rows in frame.groupby(["title", "context"]):
        asked = list(zip(rows["question"], rows["answer"], strict=True))
        add_paragraph(pool, str(title), str(context), asked)
    pool.names = sorted(frame["title"].unique())
    return pool


def add_paragraph(
    pool: Pool, title: str, context: str, asked: list[tuple[str, str]], whole: bool = False
) -> None:
    """Add a paragraph as windows of its sentences, one in five as it is, and its questions."""
    whole = whole or hash_share(context) < 0.2
    document = title or context[:40]
    added = pool.add(document, [context[:700]] if whole else windows(context))
    for question, answer in asked:
        good = tuple(i for i in added if answer.strip() in pool.texts[i])
        other = tuple(i for i in added if i not in good)
        name = title if title and title in question else ""
        if good:
            pool.queries.append(Query(question, document, good, other, name))


def read_news(data: Path) -> Pool:
    """Chinese news and questions an LLM made of such news, without labels."""
    pool = Pool("crud")
    frame = pd.read_parquet(data / "train2/crud_news.parquet").iloc[::2]
    for text in frame["text"]:
        pool.add(text[:60], [re.sub(r"^[\d\-: ，]*正文：", "", text)[:300]])
    questions = pd.read_parquet(data / "train2/crud_questions.parquet")
    asked = zip(questions["question"], questions["document"], strict=True)
    pool.queries += [Query(text, document) for text, document in asked]
    return pool


def add_pseudo(pool: Pool, count: int, bm25: Bm25, rng: random.Random) -> None:
    """Add queries without labels: a sentence of a passage, or its rarest words."""
    for at in rng.sample(range(len(pool.texts)), min(count, len(pool.texts))):
        fit = [s for s in sentences(pool.texts[at]) if 6 < len(s.split()) < 30]
        if not fit:
            continue
        text = rng.choice(fit)
        if rng.random() < 0.5:
            known = {w for w in text.split() if terms(w) and terms(w)[0] in bm25.index}
            rare = sorted(known, key=lambda w: (-bm25.idf[bm25.index[terms(w)[0]]], w))
            kept = set(rare[: rng.randint(2, 5)])
            text = " ".join(w.strip(".,;()").lower() for w in text.split() if w in kept)
        pool.queries.append(Query(text, pool.documents[at]))


READERS: Final[dict[str, Callable[[Path], Pool]]] = {
    "medquad": read_medquad,
    "selqa": read_selqa,
    "policyqa": read_policyqa,
    "covidqa": read_covidqa,
    "wikipedia": read_wikipedia,
    "xquad": lambda data: read_squad(data / "train/xquad-en/xquad.en.json", "xquad"),
    "cmrc": read_cmrc,
    "cmrc_dev": lambda data: read_squad(data / "train/cmrc2018/cmrc2018_dev.json", "cmrc_dev"),
    "drcd": lambda data: read_squad(data / "train/drcd/DRCD_dev.json", "drcd"),
    "drcd_test": lambda data: read_squad(data / "train/drcd/DRCD_test.json", "drcd_test"),
    "crud": read_news,
}
