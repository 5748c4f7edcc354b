"""A ranked table -> lists of positives and hard negatives -> the formats of other trainers."""

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from jobs.config import ExportConfig, InputConfig
from jobs.export.choose import SCHEMA, Choice
from jobs.input.columns import as_kind, id_text, quoted
from jobs.input.readers import READ_ERROR, read_source
from jobs.input.selection import select_rows
from jobs.runtime.errors import RefusedError


def read_rows(
    spark: SparkSession, path: str, config: ExportConfig, days: InputConfig, *, graded: bool
) -> DataFrame:
    """Read a ranked table: query_id, doc_id, score (float), rank, and label (null unless `graded`).

    `days` are those of the input, which are taken of the table, too.

    Raises:
        RefusedError: naming missing and present columns.
    """
    expected = ("query_id", "doc_id", "score")
    table = read_source(spark, path=path, otherwise="parquet", expected=expected)
    if days.since or days.until:
        if days.date not in table.columns:
            raise RefusedError(
                f"ranked table {path} has no column {days.date}, which input.since and input.until "
                "are about; leave them out"
            )
        table = select_rows(table, days)
    table = table.drop(READ_ERROR)
    needed = [*expected, config.rank, *([config.label] if graded else [])]
    if missing := [name for name in needed if name not in table.columns]:
        raise RefusedError(
            f"ranked table {path} lacks {', '.join(missing)}; it has {', '.join(table.columns)}. "
            "Set export.label or export.rank to another column, or evaluation.qrels"
        )
    return table.select(
        *(id_text(table, name).alias(name) for name in ("query_id", "doc_id")),
        as_kind(quoted("score"), "float").alias("score"),
        as_kind(quoted(config.rank), "int").alias("rank"),
        as_kind(quoted(config.label) if graded else F.lit(None), "int").alias("label"),
    )


def mine(
    ranked: DataFrame, texts: DataFrame, qrels: DataFrame | None, config: ExportConfig
) -> DataFrame:
    """Return a row per query that has a positive and a negative, `jobs.export.choose.SCHEMA`.

    Args:
        ranked: as of `read_rows`. A document that a query has more than once, on several days
            say, counts with its best rank and label.
        texts: query_id, doc_id, query, doc.
        qrels: query_id, doc_id, relevance, instead of label.
        config: bounds. They hold for negatives alone; they are taken from the positive with the
            lowest score, and on logits: a share of a negative logit must not raise the bound.
    """
    pair = ["query_id", "doc_id"]
    rows = ranked.groupBy(*pair).agg(
        F.max("score").alias("score"), F.min("rank").alias("rank"), F.max("label").alias("label")
    )
    if qrels is not None:
        judged = qrels.select(*pair, F.col("relevance").alias("label"))
        rows = rows.drop("label").join(judged, on=pair, how="left")
    label = F.coalesce(F.col("label").cast("int"), F.lit(0))
    positive, score = label >= config.positive, F.col("score").cast("double")
    lowest = F.min(F.when(F.col("is_positive"), score)).over(Window.partitionBy("query_id"))
    rows = rows.withColumns({"label": label, "is_positive": positive}).withColumn("lowest", lowest)
    rows = rows.where(F.col("is_positive") | _is_hard(score, F.col("lowest"), config))
    one = texts.groupBy(*pair).agg(F.min(F.struct("query", "doc")).alias("text"))
    rows = rows.join(one, on=pair, how="left").select(
        *pair, "score", "label", "is_positive", "text.query", "text.doc"
    )
    seed = config.seed if config.sampling == "random" else None
    choice = Choice(config.negatives, config.duplicates, config.held_out, seed)
    mined = rows.groupBy("query_id").applyInPandas(lambda query: choice(query), SCHEMA)
    negatives = F.size("docs") - F.col("positives")
    return mined.where(negatives == config.negatives) if config.format == "n-tuple" else mined


def _is_hard(score: Column, lowest: Column, config: ExportConfig) -> Column:
    """Whether a document is in the ranks of negatives, and below all bounds of the score."""
    bounds = [lowest - (config.absolute_margin or 0.0)]
    if config.relative_margin is not None:
        bounds.append(lowest - F.abs(lowest) * config.relative_margin)
    if config.max_score is not None:
        bounds.append(F.lit(config.max_score))
    hard = F.col("rank").between(config.rank_min, config.rank_max)
    for bound in bounds:
        hard = hard & (score <= bound)
    return hard


def formatted(mined: DataFrame, config: ExportConfig, files: int) -> DataFrame:
    """Return mined lists in a format, in so many files and an order that depend on nothing else."""
    rows, number = mined.repartition(files, "key").sortWithinPartitions("key"), config.negatives
    if config.format == "labeled-list":
        return rows.select("query", "docs", *config.targets)
    if config.format == "labeled-pair":
        columns = ["docs AS doc", *(f"{name} AS {name[:-1]}" for name in config.targets)]
        pairs = rows.select("query", F.explode(F.arrays_zip("docs", *config.targets)).alias("pair"))
        pairs = pairs.selectExpr("query", *(f"pair.{column}" for column in columns))
        one = F.least("label", F.lit(1))  # the target of a binary cross-entropy
        return pairs.withColumn("label", one) if "labels" in config.targets else pairs
    if config.format == "flagembedding":
        sides = {"pos": "1, positives", "neg": "positives + 1, size(docs)"}
        docs = [f"slice(docs, {at}) AS {name}" for name, at in sides.items()]
        scores = [f"slice(scores, {at}) AS {name}_scores" for name, at in sides.items()]
    elif config.format == "triplet":
        rows = rows.selectExpr("*", "explode(sequence(1, positives)) AS p")
        rows = rows.selectExpr("*", "explode(sequence(positives + 1, size(docs))) AS n")
        docs = ["docs[p - 1] AS positive", "docs[n - 1] AS negative"]
        scores = ["array(scores[p - 1], scores[n - 1]) AS scores"]
    else:
        rows = rows.selectExpr("*", "explode(sequence(1, positives)) AS p")
        docs = ["docs[p - 1] AS positive"]
        docs += [f"docs[positives + {n}] AS negative_{n + 1}" for n in range(number)]
        scores = [
            "concat(array(scores[p - 1]), slice(scores, positives + 1, size(docs))) AS scores"
        ]
    return rows.selectExpr("query", *docs, *(scores if "scores" in config.targets else []))
