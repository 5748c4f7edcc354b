"""Input of any layout -> one table, a row per candidate of a query (an impression).

Every row of the input comes out as a row, with the reason in `READ_ERROR` where it could not be
read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, StructType

from jobs.config import InputConfig, ModelConfig
from jobs.input.columns import holds_fractions, id_text, number, quoted, trimmed
from jobs.input.readers import (
    INTERNAL_PREFIX,
    READ_ERROR,
    read_source,
    refuse_internal_names,
    resolve_format,
)
from jobs.input.templates import with_instruction
from jobs.input.texts import (
    DOC,
    QUERY,
    doc_columns,
    require,
    template_columns,
    template_of,
    with_doc,
    with_query,
)
from jobs.runtime.errors import RefusedError
from udfs.templates import Template

# Columns that are passed through carry this prefix until the ranked table is written.
PASS_THROUGH: Final = "in."
# What is known of a row that could not be read, or null. Names columns, never a text.
DETAIL: Final = f"{INTERNAL_PREFIX}detail"
_POSITION: Final = f"{INTERNAL_PREFIX}position"
_CANDIDATE: Final = f"{INTERNAL_PREFIX}candidate"
# Smallest values that a role's numbers must stay below.
_LIMITS: Final = {"retrieval_rank": 2.0**31, "retrieval_score": float("inf"), "label": float("inf")}
_SPANS_LINES: Final = (
    "the record does not fit the columns; if records span lines, set input.options multiLine=true"
)


@dataclass(frozen=True)
class InputTable:
    """Rows to be validated, scored and ranked.

    Attributes:
        rows: query_id, query, doc_id, doc (string; texts as the model reads them, without white
            space at their ends), retrieval_score (double), retrieval_rank (int), label (double),
            `READ_ERROR` and `DETAIL` (string), and a column `in.NAME` for each one passed through.
        passed: names of the columns passed through, without the prefix.
        has: which of retrieval_score, retrieval_rank and label the input gives.
        group: columns of `rows` that, with query_id, make a list of candidates.
        label_column: name of the input's column of labels.
        allow_empty: whether an input without rows is accepted.
        notes: what a user should know about how the input was read.
    """

    rows: DataFrame
    passed: tuple[str, ...]
    has: frozenset[str]
    group: tuple[str, ...] = ()
    label_column: str = "label"
    allow_empty: bool = False
    notes: tuple[str, ...] = ()


def read_input(spark: SparkSession, config: InputConfig, model: ModelConfig) -> InputTable:
    """Read the input, flatten it, fill in texts from other tables, and map columns to roles.

    Raises:
        RefusedError: if a source cannot be read or a column is missing; the message has the
            missing and the present names.
    """
    path, table_format = (config.run, config.run_format) if config.run else (
        config.path, config.format)  # fmt: skip
    rows = read_source(
        spark, path=path, table=config.table, source_format=table_format, options=config.options,
        otherwise="trec" if config.run else None,
    )  # fmt: skip
    expected = {config.query_id, config.query, config.doc_id, config.doc, str(config.candidates)}
    _refuse_headerless(spark, rows, expected, path, table_format, config.options)
    if config.candidates:
        rows = _explode(rows, config.candidates)
    template = template_of(config)
    queries, corpus = (
        _read_texts(spark, config, table) for table in (config.queries, config.corpus)
    )
    columns = [*rows.columns, *(queries.columns if queries else [])]
    require(columns, "the input", _needed(config, template))
    own = doc_columns(rows.columns, config, template)
    rows = with_query(with_doc(rows, own, config, template, corpus), config, queries)
    return _mapped(rows, own, config, model)


def _needed(config: InputConfig, template: Template | None) -> dict[str, str]:
    """Return the columns that the input has to have, by the key of `input` that names them."""
    needed = {"query_id": config.query_id}
    needed |= {} if config.queries else {"query": config.query}
    needed |= {"doc_id": config.doc_id}
    if not config.corpus:
        needed |= template_columns(template) if template else {"doc": config.doc}
    # The default names of optional columns are taken where they are there.
    defaults = {key: InputConfig.model_fields[key].default for key in _LIMITS}
    asked = {key: getattr(config, key) for key in _LIMITS}
    needed |= {key: name for key, name in asked.items() if name not in ("", defaults[key])}
    return needed | {f"group {name}": name for name in config.group}


def _read_texts(spark: SparkSession, config: InputConfig, path: str | None) -> DataFrame | None:
    if not path:
        return None
    given_format = config.format if config.run else "auto"
    table = read_source(spark, path=path, source_format=given_format, options=config.options)
    names = {config.query_id, config.query, config.doc_id, config.doc, "_id", "id", "text"}
    _refuse_headerless(spark, table, names, path, given_format, config.options)
    return table


def _refuse_headerless(
    spark: SparkSession,
    rows: DataFrame,
    expected: set[str],
    path: str | None,
    given_format: str,
    options: Mapping[str, str],
) -> None:
    """Refuse a file whose first line is data: its fields are texts, and must not be printed."""
    if not path or options.get("header", "true").lower() != "true":
        return
    names = [name for name in rows.columns if name != READ_ERROR]
    csv = resolve_format(spark, path, given_format, "trec") in ("csv", "tsv")
    if expected & set(names) or not csv:
        return
    lengths = ", ".join(str(len(name)) for name in names)
    raise RefusedError(
        f"{path}: none of the columns that input.query_id, input.query, input.doc_id and input.doc "
        f"name is in its first line, which has {len(names)} fields of {lengths} characters. If it "
        "is no header, set input.options header=false and name columns by their places: "
        "input.query_id=_c0, input.query=_c1 and so on"
    )


def _explode(rows: DataFrame, name: str) -> DataFrame:
    """Return a row per candidate. A query without candidates keeps one row, to be rejected."""
    require(rows.columns, "the nested input", {"candidates": name})
    kind = rows.schema[name].dataType
    if not (isinstance(kind, ArrayType) and isinstance(kind.elementType, StructType)):
        raise RefusedError(
            f"input.candidates={name} is {kind.simpleString()}; it has to be an array of structs"
        )
    fields = kind.elementType.names
    refuse_internal_names(fields)
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


def _mapped(
    rows: DataFrame, own: Sequence[str], config: InputConfig, model: ModelConfig
) -> InputTable:
    """Name the columns by their roles. `own`: those that documents were made of."""
    chosen = {key: str(getattr(config, key)) for key in _LIMITS}
    present = {key: name for key, name in chosen.items() if name in rows.columns}
    numbers = {
        key: number(
            rows, name, _LIMITS[key], nan_is_null=key == "label",
            words=config.label_map if key == "label" else None,
        )
        for key, name in sorted(present.items())
    }  # fmt: skip
    rank = numbers["retrieval_rank"][0] if "retrieval_rank" in numbers else None
    if rank is None and _POSITION in rows.columns and "retrieval_score" not in present:
        rank = F.col(_POSITION)  # the order of a nested list is the first stage's order
    used = {config.query_id, config.query, config.doc_id, *own}
    used = (used | set(present.values())) - set(config.group)
    passed = tuple(
        name for name in rows.columns if name not in used and not name.startswith(INTERNAL_PREFIX)
    )
    nothing = F.lit(None).cast("double")
    bad_names = F.concat_ws(
        ", ", *(F.when(bad, F.lit(f"column {present[key]}")) for key, (_, bad) in numbers.items())
    )
    bad_names = F.when(bad_names != "", bad_names)
    error = F.col(READ_ERROR)
    detail = F.when(error == "malformed_record", _SPANS_LINES).when(error.isNull(), bad_names)
    table = rows.select(
        id_text(rows, config.query_id).alias("query_id"),
        with_instruction(model.query_instruction, trimmed(F.col(QUERY))).alias("query"),
        id_text(rows, config.doc_id).alias("doc_id"),
        with_instruction(model.doc_instruction, trimmed(F.col(DOC))).alias("doc"),
        numbers.get("retrieval_score", (nothing,))[0].alias("retrieval_score"),
        (nothing if rank is None else rank).try_cast("int").alias("retrieval_rank"),
        numbers.get("label", (nothing,))[0].alias("label"),
        F.coalesce(error, F.when(bad_names.isNotNull(), "unreadable_number")).alias(READ_ERROR),
        detail.alias(DETAIL),
        *(quoted(name).alias(PASS_THROUGH + name) for name in passed),
    )
    return InputTable(
        rows=table,
        passed=passed,
        has=frozenset(present) | ({"retrieval_rank"} if rank is not None else set()),
        group=tuple(PASS_THROUGH + name for name in config.group),
        label_column=config.label,
        allow_empty=config.allow_empty,
        notes=_notes(rows, config),
    )


def _notes(rows: DataFrame, config: InputConfig) -> tuple[str, ...]:
    return tuple(
        f"column {name} is {rows.schema[name].dataType.simpleString()}: whole numbers are read as "
        "integers (0.0 as 0)"
        for name in (config.query_id, config.doc_id)
        if holds_fractions(rows, name)
    )
