"""Training sets: bounds that hold, splits that do not meet, bytes that repeat, peers that read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import SparkSession

from jobs.config import DistillConfig
from jobs.distill.__main__ import read_lists
from jobs.export import __main__ as export
from jobs.runtime.errors import DONE, REFUSED
from tests.conftest import SENTENCES, shared_data

QUERIES, DOCS = 60, 20


def write(folder: Path) -> pd.DataFrame:
    """A ranked table with logits on both sides of zero, and the log that it was made of."""
    generator = np.random.default_rng(11)
    rows = []
    for query in range(QUERIES):
        scores = np.sort(generator.normal(generator.choice([-4, 0, 4]), 2, DOCS))[::-1]
        for rank, score in enumerate(scores.astype(np.float32), start=1):
            words = generator.permutation(" ".join(SENTENCES).split())[:12]
            rows.append(
                {
                    "query_id": f"q{query}", "query": f"{SENTENCES[query // 2 % 5]} {query // 2}",
                    "doc_id": f"d{rank}", "doc": " ".join(words), "rank": rank, "score": score,
                    "label": int(rank in (1, 2 + query % 4)) * 2, "retrieval_rank": DOCS + 1 - rank,
                }
            )  # fmt: skip
    table = pd.DataFrame(rows)
    table.loc[table["query_id"] == f"q{QUERIES - 1}", "label"] = 1  # and no negative
    # A copy of a positive, but for case and a word; and negatives that are copies of each other.
    table.loc[table["doc_id"] == "d9", "doc"] = (
        table[table["doc_id"] == "d1"]["doc"].str.upper().to_numpy() + " x"
    )
    table.loc[table["doc_id"] == "d12", "doc"] = table[table["doc_id"] == "d11"]["doc"].to_numpy()
    log, folder = ["query_id", "query", "doc_id", "doc"], folder
    table[log].to_parquet(folder / "log.parquet")
    ranked = table.drop(columns=["query", "doc"])
    (folder / "ranked").mkdir()
    # On two days, as an impression each.
    for day in ("1", "2"):
        (folder / "ranked" / f"date={day}").mkdir()
        ranked.to_parquet(folder / "ranked" / f"date={day}" / "part.parquet")
    return table


def run(folder: Path, out: Path, **keys: object) -> int:
    options = {
        "ranked.path": folder / "ranked", "input.path": folder / "log.parquet", "output.path": out,
        "mlflow.enabled": "false", "export.held_out": 0.3,
    }  # fmt: skip
    options |= {key.replace("__", "."): value for key, value in keys.items()}
    words = []
    for key, value in options.items():
        for each in value if isinstance(value, list) else [value]:
            words += [f"--{key}", str(each)]
    return export.main(words)


def lists(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / "training").sort_values("query", ignore_index=True)


def hashes(out: Path) -> list[str]:
    files = [*out.glob("training/*/*.parquet"), *out.glob("training/*/*.json")]
    return sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)


def oracle(table: pd.DataFrame, **bounds: float) -> dict[str, set[str]]:
    """Texts that may be negatives, by query text, written once more in plain Python."""
    found: dict[str, set[str]] = {}
    for _, rows in table.groupby("query_id"):
        lowest = float(rows["score"][rows["label"] > 0].min())
        limit = min(lowest - bounds["absolute"], lowest - abs(lowest) * bounds["relative"])
        for row in rows.itertuples():
            low = row.label == 0 and row.score <= min(limit, bounds["top"])
            if low and bounds["first"] <= row.rank <= bounds["last"]:
                found.setdefault(row.query, set()).add(row.doc)
    return found


def test_bounds_hold_and_positives_stay(tmp_path: Path, spark: SparkSession) -> None:
    table, out = write(tmp_path), tmp_path / "out"
    bounds = {"absolute": 0.2, "relative": 0.1, "top": 3.0, "first": 3, "last": 18}
    assert run(tmp_path, out, export__absolute_margin=0.2, export__relative_margin=0.1,
               export__max_score=3.0, export__rank_min=3, export__rank_max=18,
               export__negatives=20, export__duplicates=1.0) == DONE  # fmt: skip
    found, allowed = lists(out), oracle(table, **bounds)
    by_text = table.set_index(["query", "doc"])["score"].sort_index()
    assert {*found["query"]} == {*allowed}
    used: dict[str, set[str]] = {}
    for row in found.itertuples():
        is_positive = np.array(row.labels) > 0
        # Both positives of the query are there whatever their score is to a margin.
        assert is_positive.sum() == 2 and is_positive[:2].all()
        for doc, score in zip(row.docs, row.scores, strict=True):
            assert score in set(np.atleast_1d(by_text[row.query, doc]))
        used.setdefault(row.query, set()).update(np.array(row.docs)[~is_positive])
        lowest = min(row.scores[:2])
        assert (row.scores[2:] <= lowest - max(0.2, 0.1 * abs(lowest)) + 1e-6).all()
        assert (np.diff(row.scores[2:]) <= 0).all()
    # All that may be taken is taken, but for equal texts.
    assert used == allowed
    assert (found["scores"].map(min) < 0).any() and (found["scores"].map(max) < 0).any()

    # Two queries with one text are on one side, and both sides are there.
    assert (found["query"].value_counts() == 2).sum() > QUERIES // 4
    sides = found.groupby("query")["split"].nunique()
    assert sides.max() == 1 and set(found["split"]) == {"train", "dev"}
    counts = json.loads((out / "run.json").read_text())["counts"]
    assert counts["train"] + counts["dev"] == len(found)
    assert counts["negatives"] == found["labels"].map(lambda labels: (labels == 0).sum()).sum()
    # jobs.distill takes it as it is.
    assert len(read_lists(DistillConfig(lists=str(out / "training")))) == len(found)


def test_near_duplicates_are_left_out(tmp_path: Path, spark: SparkSession) -> None:
    table, out = write(tmp_path), tmp_path / "out"
    assert run(tmp_path, out, export__relative_margin=0.0, export__negatives=20) == DONE
    copies = set(table["doc"][table["doc_id"] == "d9"])
    twice = set(table["doc"][table["doc_id"] == "d12"])
    docs = lists(out)["docs"]
    assert not any(copies & set(each) for each in docs)
    assert max(sum(doc in twice for doc in each) for each in docs) == 1
    assert json.loads((out / "run.json").read_text())["counts"]["repeated"] >= 2 * len(docs) - 20


@pytest.mark.parametrize(
    "format_", ["labeled-list", pytest.param("flagembedding", marks=pytest.mark.slow)]
)
def test_the_same_seed_gives_the_same_bytes(
    format_: str, tmp_path: Path, spark: SparkSession
) -> None:
    write(tmp_path)
    former, found = spark.conf.get("spark.sql.shuffle.partitions"), {}
    keys = {"export__sampling": "random", "export__negatives": 4, "export__format": format_}
    try:
        for name, partitions, seed in (("a", 1, 7), ("b", 7, 7), ("c", 7, 8)):
            spark.conf.set("spark.sql.shuffle.partitions", str(partitions))
            rows = pd.read_parquet(tmp_path / "log.parquet").sample(frac=1, random_state=partitions)
            rows.to_parquet(tmp_path / "log.parquet")
            assert run(tmp_path, tmp_path / name, export__seed=seed, **keys) == DONE
            found[name] = hashes(tmp_path / name)
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", str(former))
    assert len(found["a"]) == 2 and found["a"] == found["b"] != found["c"]


def real(name: str) -> pd.DataFrame:
    """BM25's candidates with texts and grades; scores lie around zero, as logits do."""
    if name == "dl19":
        rows = pd.read_parquet(shared_data("trec-dl19/candidates.parquet"))
        columns = ["query_id", "q0", "doc_id", "grade"]
        qrels = pd.read_csv(shared_data("trec-dl19/qrels.txt"), sep=" ", names=columns, dtype=str)
    else:
        texts = pd.read_json(shared_data("scifact/corpus.jsonl"), lines=True, dtype=str)
        texts = texts.assign(
            doc_id=texts["_id"], doc=(texts["title"] + " " + texts["text"]).str.strip()
        )
        asked = pd.read_json(shared_data("scifact/queries.jsonl"), lines=True, dtype=str)
        asked = asked.rename(columns={"_id": "query_id", "text": "query"})[["query_id", "query"]]
        columns = ["query_id", "q0", "doc_id", "retrieval_rank", "retrieval_score", "tag"]
        run_file = shared_data("scifact/run.bm25.trec")
        rows = pd.read_csv(run_file, sep=" ", names=columns, dtype={"query_id": str, "doc_id": str})
        rows = rows.merge(texts[["doc_id", "doc"]]).merge(asked)
        qrels = pd.read_csv(shared_data("scifact/qrels/test.tsv"), sep="\t", dtype=str)
        qrels.columns = ["query_id", "doc_id", "grade"]
    rows = rows.merge(qrels[["query_id", "doc_id", "grade"]], how="left").fillna({"grade": 0})
    score = (rows["retrieval_score"] - rows["retrieval_score"].median()).astype(np.float32)
    label = rows["grade"].astype(int)
    return rows.assign(score=score, rank=rows["retrieval_rank"].astype(int), label=label)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("dl19", 5), ("scifact", 200)])
def test_ranked_tables_of_real_collections(
    name: str, least: int, tmp_path: Path, spark: SparkSession
) -> None:
    table, found = real(name), {}
    graded = table[table["query_id"].isin(table[table["label"] > 0]["query_id"])]
    allowed = oracle(graded, absolute=0.5, relative=0.1, top=1e9, first=1, last=200)
    table[["query_id", "query", "doc_id", "doc"]].to_parquet(tmp_path / "log.parquet")
    table[["query_id", "doc_id", "score", "rank", "label"]].to_parquet(tmp_path / "ranked.parquet")
    former = spark.conf.get("spark.sql.shuffle.partitions")
    try:
        for partitions in (1, 3, 17):
            spark.conf.set("spark.sql.shuffle.partitions", str(partitions))
            out = tmp_path / str(partitions)
            assert run(tmp_path, out, ranked__path=tmp_path / "ranked.parquet",
                       export__absolute_margin=0.5, export__relative_margin=0.1,
                       export__sampling="random") == DONE  # fmt: skip
            found[partitions] = hashes(out)
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", str(former))
    assert len(found[1]) == 2 and found[1] == found[3] == found[17]
    made = lists(out)
    assert least < 0.9 * len(allowed) <= len(made) and {*made["query"]} <= {*allowed}
    assert made.groupby("query")["split"].nunique().max() == 1
    assert set(made["split"]) == {"train", "dev"}
    for row in made.itertuples():
        good = np.array(row.labels) > 0
        lowest = row.scores[good].min()
        limit = min(lowest - 0.5, lowest - 0.1 * abs(lowest))
        assert (row.scores[~good] <= limit + 1e-5).all() and 1 <= (~good).sum() <= 8
        assert {*np.array(row.docs)[~good]} <= allowed[row.query]
        assert good.sum() == (table["label"][table["query"] == row.query] > 0).sum()


def test_a_negative_has_no_grade_and_days_are_those_of_the_input(
    tmp_path: Path, spark: SparkSession
) -> None:
    """Grades below export.positive; a table of JSON by date, of which one day is taken."""
    write(tmp_path)
    ranked = pd.read_parquet(tmp_path / "ranked" / "date=1")
    ranked["label"] = np.where(ranked["label"] == 2, 2, 1)
    for day, more in (("2026-01-01", 0), ("2026-01-02", 100)):
        folder = tmp_path / "graded" / f"date={day}"
        folder.mkdir(parents=True)
        rows = ranked.assign(score=ranked["score"] + more)
        rows.to_json(folder / "part-0.json", orient="records", lines=True)
    log = pd.read_parquet(tmp_path / "log.parquet")
    log.assign(date="2026-01-01").to_parquet(tmp_path / "log.parquet")
    keys = {"ranked__path": tmp_path / "graded", "export__positive": 2, "input__date": "date",
            "input__until": "2026-01-01"}  # fmt: skip
    out = tmp_path / "out"
    assert run(tmp_path, out, **keys) == DONE
    found = lists(out)
    assert {*np.concatenate([*found["labels"]])} == {0, 2}
    assert max(found["scores"].map(max)) < 50
    pairs = {"export__format": "labeled-pair", "export__targets": "labels"}
    assert run(tmp_path, out, **keys, **pairs) == DONE
    assert {*lists(out)["label"]} == {0, 1}


FORMATS: dict[str, list[str]] = {
    "triplet": ["query", "positive", "negative", "scores"],
    "n-tuple": ["query", "positive", "negative_1", "negative_2", "negative_3", "scores"],
    "labeled-pair": ["query", "doc", "score"],
    "labeled-list": ["query", "docs", "scores"],
}


def losses(model: Any) -> dict[str, Any]:
    from sentence_transformers.cross_encoder import losses

    return {
        "triplet": losses.MarginMSELoss(model), "labeled-pair": losses.MSELoss(model),
        "n-tuple": losses.MarginMSELoss(model), "labeled-list": losses.ListNetLoss(model),
    }  # fmt: skip


@pytest.mark.parametrize("format_", list(FORMATS))
def test_sentence_transformers_trains_on_it(
    format_: str, tmp_path: Path, tiny_bert: Path, spark: SparkSession
) -> None:
    """One step of its trainer, with a loss for the format."""
    from datasets import load_dataset
    from sentence_transformers.cross_encoder import (
        CrossEncoder,
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
    )

    table, out = write(tmp_path), tmp_path / "out"
    assert run(tmp_path, out, export__format=format_, export__targets="scores",
               export__negatives=3) == DONE  # fmt: skip
    files = str(out / "training" / "split=train" / "*.parquet")
    data = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "c"))
    assert data.column_names == FORMATS[format_]
    scores = table.groupby(["query", "doc"])["score"].agg(set)
    for row in data:
        docs = row.get("docs") or [
            row[key] for key in row if key not in ("query", "scores", "score")
        ]
        for doc, score in zip(docs, row.get("scores") or [row["score"]], strict=True):
            assert np.float32(score) in scores[row["query"], doc]
    model = CrossEncoder(str(tiny_bert), device="cpu")
    arguments = CrossEncoderTrainingArguments(
        output_dir=str(tmp_path / "model"), max_steps=1, per_device_train_batch_size=4,
        report_to="none", save_strategy="no", use_cpu=True,
    )  # fmt: skip
    trainer = CrossEncoderTrainer(
        model=model, args=arguments, train_dataset=data, loss=losses(model)[format_]
    )
    assert trainer.train().training_loss > 0


@pytest.mark.parametrize("with_scores", [True, False])
def test_flagembedding_loads_it(
    with_scores: bool, tmp_path: Path, tiny_bert: Path, spark: SparkSession
) -> None:
    from FlagEmbedding.abc.finetune.reranker import AbsRerankerDataArguments
    from FlagEmbedding.abc.finetune.reranker.AbsDataset import AbsRerankerTrainDataset
    from transformers import AutoTokenizer

    table, out = write(tmp_path), tmp_path / "out"
    targets = ["scores"] if with_scores else ["labels"]
    assert run(tmp_path, out, export__format="flagembedding", export__targets=targets) == DONE
    arguments = AbsRerankerDataArguments(
        train_data=[str(out / "training" / "split=train")], cache_path=str(tmp_path / "cache"),
        knowledge_distillation=with_scores, train_group_size=4,
    )  # fmt: skip
    data = AbsRerankerTrainDataset(arguments, AutoTokenizer.from_pretrained(tiny_bert))
    counts = json.loads((out / "run.json").read_text())["counts"]
    assert len(data) == counts["train"] > 0
    pairs, scores = data[0]
    assert len(pairs) == 4
    assert (scores is not None and scores[0] > max(scores[1:])) is with_scores
    raw = data.dataset[0]
    assert {*raw} == {"query", "pos", "neg", *(["pos_scores", "neg_scores"] * with_scores)}
    assert set(raw["pos"]) <= set(table["doc"][table["label"] > 0])
    assert not set(raw["neg"]) & set(table["doc"][(table["label"] > 0) &
                                                  (table["query"] == raw["query"])])  # fmt: skip


def test_what_cannot_work_is_refused(
    tmp_path: Path, spark: SparkSession, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path)

    def refused(**keys: object) -> str:
        assert run(tmp_path, tmp_path / "out", **keys) == REFUSED
        assert not (tmp_path / "out" / "training").exists()
        return capsys.readouterr().err

    assert "lacks grade; it has" in refused(export__label="grade")
    assert "no query to train on" in refused(export__positive=3)
    few = {"export__format": "n-tuple", "export__negatives": 30}
    assert "at least export.positive=1 and 30 within" in refused(**few)
    assert "export.held_out=1.0 leaves none of the" in refused(export__held_out=1.0)
    assert "rank_min=9 is after export.rank_max=8" in refused(
        export__rank_min=9, export__rank_max=8
    )
    assert "takes one table" in refused(ranked__path=[tmp_path / "ranked", tmp_path / "other"])
