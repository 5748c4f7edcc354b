"""The texts of a row: its own, else those of other tables, found by id."""

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import and_, or_
from typing import Final, NamedTuple

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from jobs.config import InputConfig
from jobs.input.columns import as_text, id_text, is_blank, nothing, quoted
from jobs.input.readers import INTERNAL_PREFIX, READ_ERROR
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


class Rendering(NamedTuple):
    """What is put before texts."""

    query_instruction: str = ""  # with `input.instruction`: where a row has none
    doc_instruction: str = ""
    lead: str = "{instruction}"  # where a row's own instruction goes, put before its query


def template_of(config: InputConfig) -> Template | None:
    """Return the parsed `input.doc_template`; None if there is none."""
    if not config.doc_template:
        return None
    try:
        return parse_template(config.doc_template, config.doc_missing)
    except ValueError as error:
        raise RefusedError(f"input.doc_template: {error}") from None


def render(template: Template) -> Column:
    """Return the template's text for a row, null where it has none."""
    blank = {name: is_blank(as_text(name)) for name in template.fields}
    filled = {name: F.when(~blank[name], as_text(name)).otherwise("") for name in blank}
    lines = []
    for line in template.lines:
        text = F.concat(F.lit(""), *(filled[p.text] if p.is_field else F.lit(p.text) for p in line))
        fields = [blank[piece.text] for piece in line if piece.is_field]
        if template.missing == "drop_line" and fields:
            text = F.when(~reduce(and_, fields), text)
        lines.append(text)
    # Literal text alone is no document. Null lines are left out.
    lacks = reduce(or_ if template.missing == "reject" else and_, blank.values())
    return F.when(~lacks, F.concat_ws("\n", *lines))


def with_texts(
    rows: DataFrame,
    config: InputConfig,
    template: Template | None,
    queries: DataFrame | None,
    corpus: DataFrame | None,
) -> tuple[DataFrame, set[str]]:
    """Add `QUERY` and `DOC`: the row's own texts, else those of other tables.

    Columns of `queries` that rows lack are added as well.

    Returns:
        The rows, and which of their columns documents are made of.
    """
    own = _made_of(rows.columns, config.doc, template)
    used = set(own.fields) if isinstance(own, Template) else {own} - {""}
    text, error = _text(own)
    if corpus is None:
        rows = rows.withColumns({DOC: text, READ_ERROR: F.coalesce(READ_ERROR, error)})
    else:
        # A template of the rows' own columns need not fit the corpus, too.
        if template and own != template:
            require(corpus.columns, "the corpus", template_columns(template))
        source = _made_of(corpus.columns, config.doc, template)
        if not source:
            _first_of(corpus, (config.doc, "text"), "doc or input.doc_template", "corpus")
            fields = "{title}\\n{text}" if "title" in corpus.columns else "{text}"
            source = parse_template(fields, config.doc_missing)
        rows = _filled(rows, "doc", config.doc_id, text, corpus, *_text(source))
    text = as_text(config.query) if config.query in rows.columns else nothing()
    if queries is None:
        return rows.withColumn(QUERY, text), used
    name = _first_of(queries, (config.query, "text"), "query", "queries")
    beside = [each for each in queries.columns if each not in (name, *rows.columns)]
    found = as_text(name)
    return _filled(rows, "query", config.query_id, text, queries, found, nothing(), beside), used


def _made_of(columns: Sequence[str], doc: str, template: Template | None) -> Template | str:
    """What a table's documents are made of: a template that fits, a column, or nothing."""
    if template and set(template.fields) <= set(columns):
        return template
    return doc if doc in columns else ""


def _text(source: Template | str) -> tuple[Column, Column]:
    """The document's text, and `missing_field` where the rule rejects it for a field it lacks."""
    if isinstance(source, str):
        return as_text(source) if source else nothing(), nothing()
    if source.missing != "reject":
        return render(source), nothing()
    lacks = reduce(or_, (is_blank(as_text(name)) for name in source.fields))
    return render(source), F.when(lacks, "missing_field")


def _filled(
    rows: DataFrame, side: str, id_column: str, own: Column, table: DataFrame, text: Column,
    error: Column, beside: Sequence[str] = (),
) -> DataFrame:  # fmt: skip
    """Add the text of a side: `own`, else that of another table, with columns `beside` it."""
    where = {"query": "queries", "doc": "corpus"}[side]
    key = _first_of(table, (id_column, "_id", "id"), f"{side}_id", where)
    texts = table.select(
        id_text(table, key).alias(_KEY), text.alias(_FOUND),
        F.coalesce(READ_ERROR, error).alias(_FOUND_ERROR),
        *(quoted(name) for name in beside if name != key),
    )  # fmt: skip
    target = f"{INTERNAL_PREFIX}{side}"
    lacks = is_blank(F.col(target))
    not_there = ~is_blank(F.col(_ID)) & F.isnull(_KEY)
    error = F.when(lacks & not_there, f"unknown_{side}").when(lacks, F.col(_FOUND_ERROR))
    joined = rows.withColumns({target: own, _ID: id_text(rows, id_column)}).join(
        texts, F.col(_ID) == F.col(_KEY), how="left"
    )
    filled = {
        target: F.when(lacks, F.col(_FOUND)).otherwise(F.col(target)),
        READ_ERROR: F.coalesce(READ_ERROR, error),
    }
    return joined.withColumns(filled).drop(_ID, _KEY, _FOUND, _FOUND_ERROR)


def template_columns(template: Template) -> dict[str, str]:
    """Return a template's fields by what to call them in a message."""
    return {f"doc_template field {name}": name for name in template.fields}


def require(columns: Iterable[str], where: str, needed: Mapping[str, str]) -> None:
    """Refuse a table that lacks columns. `needed`: names by the key of `input` that sets them."""
    there = [name for name in columns if not name.startswith(INTERNAL_PREFIX)]
    if lacking := {key: name for key, name in needed.items() if name not in there}:
        raise RefusedError(
            f"{where} has no column {', '.join(dict.fromkeys(lacking.values()))}; it has: "
            f"{', '.join(there) or 'none'}; set {', '.join(f'input.{key}' for key in lacking)}"
        )


def _first_of(table: DataFrame, names: Sequence[str], key: str, where: str) -> str:
    """The first of several names that a table has."""
    found = [name for name in names if name in table.columns]
    if not found:
        require(table.columns, where, {key: names[0]})
    return found[0]
