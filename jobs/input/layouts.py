"""Input of any layout -> one table, a row per candidate of a query (an impression).

Every row of the input comes out as a row: with the key of its pair, or with the reason why it is
rejected.
"""

from dataclasses import dataclass
from functools import partial
from typing import Final

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, StructType

from jobs.config import InputConfig
from jobs.input.columns import as_text, holds_fractions, id_text, is_blank, number, quoted, trimmed
from jobs.input.readers import INTERNAL_PREFIX, READ_ERROR, read_source, refuse_internal_names
from jobs.input.selection import select_rows
from jobs.input.texts import (
    DOC,
    QUERY,
    Rendering,
    require,
    template_columns,
    template_of,
    with_texts,
)
from jobs.runtime.compat import is_valid_utf8, try_cast
from jobs.runtime.errors import RefusedError
from udfs.templates import Template

# Columns that are passed through carry this prefix until the ranked table is written.
PASS_THROUGH: Final = "in."
_POSITION: Final = f"{INTERNAL_PREFIX}position"
_CANDIDATE: Final = f"{INTERNAL_PREFIX}candidate"
_BAD_NUMBERS: Final = f"{INTERNAL_PREFIX}numbers"
# Smallest values that a role's numbers must stay below.
_LIMITS: Final = {"retrieval_rank": 2.0**31, "retrieval_score": float("inf"), "label": float("inf")}
_TEXTS: Final = ("query_id", "query", "doc_id", "doc")
_BYTES: Final = "bytes: query_id: %d, query: %d, doc_id: %d, doc: %d"
_SPANS_LINES: Final = (
    "the record does not fit the columns; if records span lines, set input.options multiLine=true"
)


@dataclass(frozen=True)
class InputTable:
    """Rows to be validated, scored and ranked.

    Attributes:
        rows: query_id, query, doc_id, doc (string; texts as the model reads them, without white
            space at their ends), retrieval_score (double), retrieval_rank (int), label (double),
            a column `in.NAME` for each one passed through, pair_key (null where the row is
            rejected), reason (null where it is not) and detail (columns and lengths, never texts).
        config: what it was read by.
        passed: names of the columns passed through, without the prefix.
        has: which of retrieval_score, retrieval_rank and label the input gives.
        notes: what a user should know about how the input was read.
    """

    rows: DataFrame
    config: InputConfig
    passed: tuple[str, ...]
    has: frozenset[str]
    notes: tuple[str, ...] = ()

    @property
    def list_columns(self) -> list[Column]:
        """Columns of `rows` that make a list of candidates: `input.group` and query_id."""
        return [*(quoted(PASS_THROUGH + name) for name in self.config.group), F.col("query_id")]


def read_input(spark: SparkSession, config: InputConfig, rendering: Rendering) -> InputTable:
    """Read the input, flatten it, fill in texts from other tables, and map columns to roles.

    Raises:
        RefusedError: if a source cannot be read or a column is missing; the message has the
            missing and the present names.
    """
    read = partial(read_source, spark, options=config.options)
    names = {config.query_id, config.query, config.doc_id, config.doc}
    rows = read(
        path=config.run or config.path,
        table=config.table,
        source_format=config.run_format if config.run else config.format,
        otherwise="trec" if config.run else None,
        expected=names | {str(config.candidates)},
    )
    rows = select_rows(rows, config)
    if config.candidates:
        rows = _explode(rows, config.candidates)
    of_texts, names = config.format if config.run else "auto", names | {"_id", "id", "text"}
    queries, corpus = (
        read(path=path, source_format=of_texts, expected=names) if path else None
        for path in (config.queries, config.corpus)
    )
    template = template_of(config)
    columns = [*rows.columns, *(queries.columns if queries else [])]
    require(columns, "the input", _needed(config, template))
    return _mapped(*with_texts(rows, config, template, queries, corpus), config, rendering)


def _needed(config: InputConfig, template: Template | None) -> dict[str, str]:
    """Return the columns that the input has to have, by the key of `input` that names them."""
    needed = {"query_id": config.query_id}
    needed |= {} if config.queries else {"query": config.query}
    needed |= {"doc_id": config.doc_id}
    needed |= {"instruction": config.instruction} if config.instruction else {}
    if not config.corpus:
        needed |= template_columns(template) if template else {"doc": config.doc}
    # The default names of optional columns are taken where they are there.
    for key in _LIMITS:
        if getattr(config, key) not in ("", InputConfig.model_fields[key].default):
            needed[key] = getattr(config, key)
    return needed | {f"group {name}": name for name in config.group}


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
    candidates = F.posexplode_outer(quoted(name)).alias(_POSITION, _CANDIDATE)
    exploded = rows.select(*map(quoted, outer), candidates)
    return exploded.select(
        *map(quoted, outer), (F.col(_POSITION) + 1).alias(_POSITION), f"{_CANDIDATE}.*"
    )


def _mapped(
    rows: DataFrame, own: set[str], config: InputConfig, rendering: Rendering
) -> InputTable:
    """Name the columns by their roles. `own`: those that documents were made of."""
    chosen = {key: str(getattr(config, key)) for key in _LIMITS}
    present = {key: name for key, name in chosen.items() if name in rows.columns}
    values, wrong = {key: F.lit(None).cast("double") for key in _LIMITS}, []
    for key, name in sorted(present.items()):
        words = config.label_map if key == "label" else None
        values[key], bad = number(rows, name, _LIMITS[key], words)
        wrong.append(F.when(bad, F.lit(f"column {name}")))
    # The order of a nested list is the first stage's.
    ordered = _POSITION in rows.columns and not {"retrieval_rank", "retrieval_score"} & {*present}
    if ordered:
        values["retrieval_rank"] = F.col(_POSITION)
    used = {config.query_id, config.query, config.doc_id, *own, *present.values()}
    used -= {*config.group, str(config.date)}  # they tell lists and days apart in what comes out
    passed = [
        name for name in rows.columns if name not in used and not name.startswith(INTERNAL_PREFIX)
    ]
    table = rows.select(
        id_text(rows, config.query_id).alias("query_id"),
        _with_lead(_lead(rendering, config.instruction), trimmed(F.col(QUERY))).alias("query"),
        id_text(rows, config.doc_id).alias("doc_id"),
        _with_lead(rendering.doc_instruction, trimmed(F.col(DOC))).alias("doc"),
        values["retrieval_score"].alias("retrieval_score"),
        try_cast(values["retrieval_rank"], "int").alias("retrieval_rank"),
        values["label"].alias("label"),
        *(quoted(name).alias(PASS_THROUGH + name) for name in passed),
        READ_ERROR,
        F.concat_ws(", ", *wrong).alias(_BAD_NUMBERS),
    )
    notes = [
        f"column {name} is {rows.schema[name].dataType.simpleString()}: whole numbers are read as "
        "integers (0.0 as 0)"
        for name in (config.query_id, config.doc_id)
        if holds_fractions(rows, name)
    ]
    has = {*present, *(["retrieval_rank"] if ordered else [])}
    return InputTable(_with_reasons(table), config, tuple(passed), frozenset(has), tuple(notes))


def _with_reasons(rows: DataFrame) -> DataFrame:
    """Add pair_key, reason and detail. Ids and texts must show something and be UTF-8."""
    fit, bad_numbers = F.isnull("reason"), F.col(_BAD_NUMBERS)
    reason = F.coalesce(
        READ_ERROR,
        F.when(bad_numbers != "", "unreadable_number"),
        # Validity comes before blankness: a regular expression on broken bytes means nothing.
        *(F.when(~is_valid_utf8(name), "invalid_utf8") for name in _TEXTS),
        *(F.when(is_blank(F.col(name)), f"missing_{name}") for name in _TEXTS),
    )
    error = F.col(READ_ERROR)
    details = [
        F.when(error == "malformed_record", _SPANS_LINES),
        F.when(error.isNull() & (bad_numbers != ""), bad_numbers),
        F.format_string(_BYTES, *map(F.octet_length, _TEXTS)),  # null is written `null`
    ]
    return (
        rows.withColumn("reason", reason)
        .withColumns(
            {
                "pair_key": F.when(fit, pair_key()),
                "detail": F.when(~fit, F.concat_ws("; ", *details)),
            }
        )
        .drop(READ_ERROR, _BAD_NUMBERS)
    )


def _lead(rendering: Rendering, instruction: str | None) -> Column | str:
    """What is put before a query. `instruction`: the column of its own instruction."""
    if not instruction:
        return rendering.query_instruction
    text, (before, behind) = as_text(instruction), rendering.lead.split("{instruction}")
    own = F.concat(F.lit(before), text, F.lit(behind))
    return F.when(is_blank(text), rendering.query_instruction).otherwise(own)


def _with_lead(lead: Column | str, text: Column) -> Column:
    """The text as the model reads it. A blank text stays blank, to be rejected later."""
    if isinstance(lead, str) and not lead:
        return text
    return F.when(is_blank(text), text).otherwise(F.concat(F.lit(lead), text))


def pair_key() -> Column:
    """Return the SHA-256 of the rendered pair, columns query and doc [64 hex digits].

    The query's length goes in front, so that no two pairs share a concatenation.
    """
    size = F.octet_length("query").cast("string")
    return F.sha2(F.concat(size, F.lit(":"), "query", "doc").cast("binary"), 256)


def pair_texts(table: InputTable) -> DataFrame:
    """Return `pair_key`, `query` and `doc` of every row that has texts a worker can read.

    Rows that are rejected for something else are among them. They do no harm where texts are looked
    up by key, as no key is asked for that is only theirs, and to find them out takes as long again
    as everything else here.
    """
    readable = is_valid_utf8("query") & is_valid_utf8("doc")
    return table.rows.where(readable).select(pair_key().alias("pair_key"), "query", "doc")
