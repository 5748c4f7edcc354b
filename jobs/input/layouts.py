"""Input of three shapes -> one table of pairs, a row per (query, candidate).

Every row of the input comes out as a row, with the reason in `READ_ERROR` where it could not be
read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, NumericType, StructType

from jobs.config import InputConfig, ModelConfig
from jobs.input.readers import INTERNAL_PREFIX, READ_ERROR, as_text, quoted, read_source, refuse_own
from jobs.input.templates import lacks_field, render, with_instruction
from jobs.runtime.errors import RefusedError
from udfs.templates import MissingRule, Template, parse_template

_POSITION: Final = f"{INTERNAL_PREFIX}position"
_LARGEST_RANK: Final = 2.0**31
_INFINITY: Final = float("inf")
_CANDIDATE: Final = f"{INTERNAL_PREFIX}candidate"
# Of queries and corpus, when they are joined to the run.
_QUERY_KEY: Final = f"{INTERNAL_PREFIX}query_key"
_QUERY: Final = f"{INTERNAL_PREFIX}query"
_QUERY_FAULT: Final = f"{INTERNAL_PREFIX}query_fault"
_DOC_KEY: Final = f"{INTERNAL_PREFIX}doc_key"
_DOC: Final = f"{INTERNAL_PREFIX}doc"
_DOC_FAULT: Final = f"{INTERNAL_PREFIX}doc_fault"
# Pass-through columns carry this prefix until the ranked table is written.
PASS_THROUGH: Final = "in."


@dataclass(frozen=True)
class InputTable:
    """Rows to be checked, ranked and scored.

    Attributes:
        rows: query_id, query, doc_id, doc (string; texts as the model reads them),
            retrieval_score (double), retrieval_rank (int), label (double), `READ_ERROR` (string),
            and one column `in.NAME` for each column passed through.
        passed: names of the columns passed through, without the prefix.
        has: which of retrieval_score, retrieval_rank and label the input gives.
        doc_template: source of the template that made the documents; empty if there was none.
    """

    rows: DataFrame
    passed: tuple[str, ...]
    has: frozenset[str]
    doc_template: str


def read_input(spark: SparkSession, config: InputConfig, model: ModelConfig) -> InputTable:
    """Read, flatten and map the input.

    Raises:
        RefusedError: if the source cannot be read or a column is missing; the message has the
            missing and the present names.
    """
    if config.run:
        flat, config, source = _normalised(spark, config)
        return _mapped(flat, config, model, source)
    flat = _read(spark, config, config.path, config.table)
    if config.candidates:
        flat = _unnested(flat, config)
    return _mapped(flat, config, model, config.doc_template or "")


def _read(
    spark: SparkSession, config: InputConfig, path: str | None, table: str | None = None
) -> DataFrame:
    return read_source(
        spark, path=path, table=table, source_format=config.format, options=config.options
    )


def _unnested(rows: DataFrame, config: InputConfig) -> DataFrame:
    """One row per candidate. A query without candidates keeps one row, to be rejected."""
    name = str(config.candidates)
    _require(rows, "the nested input", {"candidates": name})
    kind = rows.schema[name].dataType
    if not (isinstance(kind, ArrayType) and isinstance(kind.elementType, StructType)):
        raise RefusedError(
            f"input.candidates={name} is {kind.simpleString()}; it has to be an array of structs"
        )
    fields = kind.elementType.names
    refuse_own(fields)
    outer = [column for column in rows.columns if column != name]
    if twice := sorted(set(fields) & set(outer)):
        raise RefusedError(
            f"columns {', '.join(twice)} are both beside and inside {name}; rename one of each"
        )
    exploded = rows.select(
        *map(quoted, outer), F.posexplode_outer(quoted(name)).alias(_POSITION, _CANDIDATE)
    )
    return exploded.select(
        *map(quoted, outer),
        (F.col(_POSITION) + 1).alias(_POSITION),
        *(F.col(_CANDIDATE).getField(field).alias(field) for field in fields),
    )


def _normalised(spark: SparkSession, config: InputConfig) -> tuple[DataFrame, InputConfig, str]:
    """Join queries and corpus to the run by id.

    Documents are rendered before the join, so that a field of the corpus can share its name with
    a column of the run or the queries.

    Returns:
        The flat table, the mapping that fits it, and the source of the documents' template.
    """
    run = read_source(
        spark, path=config.run, source_format=config.run_format, options=config.options,
        otherwise="trec",
    )  # fmt: skip
    queries = _read(spark, config, config.queries)
    corpus = _read(spark, config, config.corpus)
    _require(run, "the run", {"query_id": config.query_id, "doc_id": config.doc_id})
    query_key = _first_of(queries, (config.query_id, "_id", "id"), "input.query_id", "queries")
    doc_key = _first_of(corpus, (config.doc_id, "_id", "id"), "input.doc_id", "corpus")
    text = _first_of(queries, (config.query, "text"), "input.query", "queries")
    template = _template(config.doc_template or _beir_template(corpus, config), config.doc_missing)
    if template:
        fields = {f"doc_template field {name}": name for name in template.fields}
        _require(corpus, "the corpus", fields)
    beside = [name for name in queries.columns if name not in {query_key, text, *run.columns}]
    queries = queries.select(
        as_text(query_key).alias(_QUERY_KEY), quoted(text).alias(_QUERY),
        *map(quoted, beside), F.col(READ_ERROR).alias(_QUERY_FAULT),
    )  # fmt: skip
    corpus = corpus.select(
        as_text(doc_key).alias(_DOC_KEY),
        (render(template) if template else as_text(config.doc)).alias(_DOC),
        F.coalesce(READ_ERROR, _lacking(template)).alias(_DOC_FAULT),
    )
    joined = run.join(queries, as_text(config.query_id) == F.col(_QUERY_KEY), how="left").join(
        corpus, as_text(config.doc_id) == F.col(_DOC_KEY), how="left"
    )
    fault = F.coalesce(
        READ_ERROR,
        F.when(as_text(config.query_id).isNotNull() & F.isnull(_QUERY_KEY), "unknown_query"),
        F.when(as_text(config.doc_id).isNotNull() & F.isnull(_DOC_KEY), "unknown_doc"),
        _QUERY_FAULT,
        _DOC_FAULT,
    )
    own = [name for name in run.columns if name != READ_ERROR]
    flat = joined.select(
        *map(quoted, own), *map(quoted, beside), _QUERY, _DOC, fault.alias(READ_ERROR)
    )
    mapping = {"query": _QUERY, "doc": _DOC, "doc_template": None}
    return flat, config.model_copy(update=mapping), template.source if template else ""


def _beir_template(corpus: DataFrame, config: InputConfig) -> str | None:
    if config.doc in corpus.columns:
        return None
    _first_of(corpus, (config.doc, "text"), "input.doc or input.doc_template", "corpus")
    return "{title}\\n{text}" if "title" in corpus.columns else "{text}"


def _mapped(flat: DataFrame, config: InputConfig, model: ModelConfig, source: str) -> InputTable:
    """Name the columns of a flat table by their roles. `source` is the documents' template."""
    template = _template(config.doc_template, config.doc_missing)
    needed = {"query_id": config.query_id, "query": config.query, "doc_id": config.doc_id}
    needed |= {} if template else {"doc": config.doc}
    optional = {"retrieval_score", "retrieval_rank", "label"}
    defaults = {key: InputConfig.model_fields[key].default for key in optional}
    wanted = {key for key in optional if getattr(config, key)}  # an empty name switches one off
    asked = {key for key in wanted if getattr(config, key) != defaults[key]}
    present = {key for key in wanted if getattr(config, key) in flat.columns}
    needed |= {key: getattr(config, key) for key in asked}
    needed |= {f"doc_template field {name}": name for name in (template.fields if template else ())}
    _require(flat, "the input", needed)
    numbers = {
        key: _number(
            flat,
            getattr(config, key),
            _LARGEST_RANK if key == "retrieval_rank" else _INFINITY,
            nan_is_null=key == "label",
        )
        for key in sorted(present)
    }
    rank = numbers.get("retrieval_rank", (None, None))[0]
    if rank is None and _POSITION in flat.columns and "retrieval_score" not in present:
        rank = F.col(_POSITION)  # the order of a nested list is the first stage's order
    used = {*needed.values(), *(getattr(config, key) for key in present)}
    passed = tuple(
        name for name in flat.columns
        if name not in used and not name.startswith(INTERNAL_PREFIX)
    )  # fmt: skip
    text = render(template) if template else as_text(config.doc)
    unreadable = F.coalesce(F.lit(None).cast("string"), *(bad for _, bad in numbers.values()))
    rows = flat.select(
        as_text(config.query_id).alias("query_id"),
        with_instruction(model.query_instruction, as_text(config.query)).alias("query"),
        as_text(config.doc_id).alias("doc_id"),
        with_instruction(model.doc_instruction, text).alias("doc"),
        _value(numbers, "retrieval_score").alias("retrieval_score"),
        (F.lit(None) if rank is None else rank).try_cast("int").alias("retrieval_rank"),
        _value(numbers, "label").alias("label"),
        F.coalesce(READ_ERROR, _lacking(template), unreadable).alias(READ_ERROR),
        *(quoted(name).alias(PASS_THROUGH + name) for name in passed),
    )
    has = frozenset(present | ({"retrieval_rank"} if rank is not None else set()))
    return InputTable(rows, passed, has, source)


def _template(source: str | None, missing: MissingRule) -> Template | None:
    if not source:
        return None
    try:
        return parse_template(source, missing)
    except ValueError as error:
        raise RefusedError(f"input.doc_template: {error}") from None


def _lacking(template: Template | None) -> Column:
    """`missing_field` where the rule rejects a document for a field it lacks."""
    if template is None or template.missing != "reject":
        return F.lit(None).cast("string")
    return F.when(lacks_field(template), "missing_field")


def _number(
    rows: DataFrame, name: str, limit: float, *, nan_is_null: bool
) -> tuple[Column, Column]:
    """A column as a double below a limit, and `unreadable_number` where a value is none."""
    if isinstance(rows.schema[name].dataType, NumericType):
        value = quoted(name).cast("double")
        given = value.isNotNull()
    else:
        text = F.trim(as_text(name))
        # A boolean label is a grade of 0 or 1.
        text = F.when(text == "true", "1").when(text == "false", "0").otherwise(text)
        value = text.try_cast("double")
        given = text.isNotNull() & (text != "")
    if nan_is_null:
        given = given & ~F.coalesce(F.isnan(value), F.lit(False))
    finite = value.isNotNull() & ~F.isnan(value) & (F.abs(value) < F.lit(limit))
    bad = F.when(given & ~finite, "unreadable_number")
    return F.when(finite, value), bad


def _value(numbers: dict[str, tuple[Column, Column]], key: str) -> Column:
    return numbers[key][0] if key in numbers else F.lit(None).cast("double")


def _first_of(table: DataFrame, names: Sequence[str], key: str, where: str) -> str:
    for name in names:
        if name in table.columns:
            return name
    raise _missing(where, names[:1], table, f"set {key}")


def _require(table: DataFrame, where: str, columns: dict[str, str]) -> None:
    lacking = [name for name in columns.values() if name not in table.columns]
    if lacking:
        keys = [f"input.{key}" for key, name in columns.items() if name in lacking]
        raise _missing(where, lacking, table, f"set {', '.join(keys)}")


def _missing(where: str, names: Iterable[str], table: DataFrame, remedy: str) -> RefusedError:
    present = (
        ", ".join(name for name in table.columns if not name.startswith(INTERNAL_PREFIX)) or "none"
    )
    return RefusedError(
        f"{where} has no column {', '.join(dict.fromkeys(names))}; it has: {present}; {remedy}"
    )
