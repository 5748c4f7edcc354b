"""The texts of a row: its own, else those of other tables, found by id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from jobs.config import InputConfig
from jobs.input.columns import as_text, id_text, is_blank, quoted
from jobs.input.readers import INTERNAL_PREFIX, READ_ERROR
from jobs.input.templates import lacks_field, render
from jobs.runtime.errors import RefusedError
from udfs.templates import Template, parse_template

# The texts that are added to a table.
QUERY: Final = f"{INTERNAL_PREFIX}query"
DOC: Final = f"{INTERNAL_PREFIX}doc"
# Of a table of texts, while it is joined.
_ID: Final = f"{INTERNAL_PREFIX}id"
_KEY: Final = f"{INTERNAL_PREFIX}key"
_FOUND: Final = f"{INTERNAL_PREFIX}found"
_FOUND_ERROR: Final = f"{INTERNAL_PREFIX}found_error"


def template_of(config: InputConfig) -> Template | None:
    """Return the parsed `input.doc_template`; None if there is none."""
    if not config.doc_template:
        return None
    try:
        return parse_template(config.doc_template, config.doc_missing)
    except ValueError as error:
        raise RefusedError(f"input.doc_template: {error}") from None


def template_columns(template: Template) -> dict[str, str]:
    """Return a template's fields by what to call them in a message."""
    return {f"doc_template field {name}": name for name in template.fields}


def with_query(rows: DataFrame, config: InputConfig, queries: DataFrame | None) -> DataFrame:
    """Add the query's text: the row's own, else that of `input.queries`."""
    if queries is None:
        return rows.withColumn(QUERY, as_text(config.query))
    key = _first_of(queries, (config.query_id, "_id", "id"), "input.query_id", "queries")
    text = _first_of(queries, (config.query, "text"), "input.query", "queries")
    beside = [name for name in queries.columns
              if name not in {key, text, READ_ERROR, *rows.columns}]  # fmt: skip
    texts = queries.select(
        id_text(queries, key).alias(_KEY), as_text(text).alias(_FOUND),
        F.col(READ_ERROR).alias(_FOUND_ERROR), *map(quoted, beside),
    )  # fmt: skip
    own = as_text(config.query) if config.query in rows.columns else F.lit(None).cast("string")
    rows = rows.withColumns({QUERY: own, _ID: id_text(rows, config.query_id)})
    return _filled(rows, texts, QUERY, "unknown_query")


def with_doc(
    rows: DataFrame,
    own: Sequence[str],
    config: InputConfig,
    template: Template | None,
    corpus: DataFrame | None,
) -> DataFrame:
    """Add the document's text: made of the row's columns `own`, else found in `input.corpus`."""
    if corpus is None:
        text, error = _rendered(config.doc, template)
        return rows.withColumns({DOC: text, READ_ERROR: F.coalesce(READ_ERROR, error)})
    key = _first_of(corpus, (config.doc_id, "_id", "id"), "input.doc_id", "corpus")
    # A template of the rows' own columns need not fit the corpus, too.
    of_rows = template is not None and tuple(own) == template.fields
    fits = template is not None and set(template.fields) <= set(corpus.columns)
    corpus_template = template if fits or not of_rows else None
    if corpus_template:
        require(corpus.columns, "the corpus", template_columns(corpus_template))
    elif config.doc not in corpus.columns:
        _first_of(corpus, (config.doc, "text"), "input.doc or input.doc_template", "corpus")
        corpus_template = parse_template(
            "{title}\\n{text}" if "title" in corpus.columns else "{text}", config.doc_missing
        )
    text, error = _rendered(config.doc, corpus_template)
    texts = corpus.select(
        id_text(corpus, key).alias(_KEY), text.alias(_FOUND),
        F.coalesce(READ_ERROR, error).alias(_FOUND_ERROR),
    )  # fmt: skip
    here = F.lit(None).cast("string")
    if own:
        here = _rendered(config.doc, template if of_rows else None)[0]
    rows = rows.withColumns({DOC: here, _ID: id_text(rows, config.doc_id)})
    return _filled(rows, texts, DOC, "unknown_doc")


def doc_columns(
    columns: Sequence[str], config: InputConfig, template: Template | None
) -> tuple[str, ...]:
    """Return which of a table's columns a document is made of: all that it takes, or none."""
    if template and set(template.fields) <= set(columns):
        return template.fields
    usable = template is None or config.corpus
    return (config.doc,) if usable and config.doc in columns else ()


def _rendered(doc: str, template: Template | None) -> tuple[Column, Column]:
    """The document's text, and `missing_field` where the rule rejects it for a field it lacks."""
    nothing = F.lit(None).cast("string")
    if template is None:
        return as_text(doc), nothing
    lacking = F.when(lacks_field(template), "missing_field")
    return render(template), lacking if template.missing == "reject" else nothing


def _filled(rows: DataFrame, texts: DataFrame, target: str, unknown: str) -> DataFrame:
    """Fill in blank texts by id. `texts`: `_KEY`, `_FOUND`, `_FOUND_ERROR`, more to be added."""
    lacks = is_blank(F.col(target))
    not_there = ~is_blank(F.col(_ID)) & F.isnull(_KEY)
    error = F.when(lacks & not_there, unknown).when(lacks, F.col(_FOUND_ERROR))
    joined = rows.join(texts, F.col(_ID) == F.col(_KEY), how="left").withColumns(
        {
            target: F.when(lacks, F.col(_FOUND)).otherwise(F.col(target)),
            READ_ERROR: F.coalesce(READ_ERROR, error),
        }
    )
    return joined.drop(_ID, _KEY, _FOUND, _FOUND_ERROR)


def _first_of(table: DataFrame, names: Sequence[str], key: str, where: str) -> str:
    for name in names:
        if name in table.columns:
            return name
    raise _missing(where, names[:1], table.columns, f"set {key}")


def require(columns: Iterable[str], where: str, needed: Mapping[str, str]) -> None:
    """Refuse a table that lacks columns. `needed`: names by the key of `input` that sets them."""
    columns = list(columns)
    lacking = [name for name in needed.values() if name not in columns]
    if lacking:
        keys = [f"input.{key}" for key, name in needed.items() if name in lacking]
        raise _missing(where, lacking, columns, f"set {', '.join(keys)}")


def _missing(where: str, names: Iterable[str], columns: Iterable[str], remedy: str) -> RefusedError:
    there = [name for name in columns if not name.startswith(INTERNAL_PREFIX)]
    return RefusedError(
        f"{where} has no column {', '.join(dict.fromkeys(names))}; it has: "
        f"{', '.join(there) or 'none'}; {remedy}"
    )
