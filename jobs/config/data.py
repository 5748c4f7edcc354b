"""Sections `input`, `store` and `output`: what is read and where results go."""

from datetime import date as Day
from typing import Literal, Self

from pydantic import NonNegativeFloat, NonNegativeInt, model_validator

from jobs.config.section import Age, Section, Share, refuse_object_store


class InputConfig(Section):
    """Where the pairs come from. Layouts are told apart by the keys that are set: long (`path` or
    `table`), nested (`candidates` names an array column), normalised (`run`); texts that a row
    lacks come from `corpus` and `queries`.
    """

    path: str | None = None
    """table of pairs: file, folder or glob [path or URI]"""
    table: str | None = None
    """catalog table of pairs, instead of path [name]"""
    format: str = "auto"
    """Spark source: parquet, json, csv, tsv, orc, ... (auto: by file ending)"""
    options: dict[str, str] = {}
    """options of the Spark reader, KEY=VALUE, may be repeated"""
    query_id: str = "query_id"
    """column of the query's id"""
    query: str = "query"
    """column of the query's text (normalised: or `text`)"""
    instruction: str | None = None
    """column of the query's own instruction, in place of model.query_instruction, which is for rows
    where it is blank"""
    doc_id: str = "doc_id"
    """column of the document's id"""
    doc: str = "doc"
    """column of the document's text, unless doc_template is set"""
    retrieval_score: str = "retrieval_score"
    """column of the first stage's score"""
    retrieval_rank: str = "retrieval_rank"
    """column of the first stage's rank"""
    label: str = "label"
    """column of the graded relevance (empty: none)"""
    doc_template: str | None = None
    r"""document made of fields, e.g. 'Title: {title}\nAbstract: {abstract}'"""
    doc_missing: Literal["drop_line", "empty", "reject"] = "drop_line"
    """a field that is null or blank: drop a template line with no field left, put nothing in its
    place, or reject the pair"""
    candidates: str | None = None
    """nested input: array column with one struct per candidate"""
    group: list[str] = []
    """columns that make a list of candidates together with query_id, such as date or session, may
    be repeated"""
    label_map: dict[str, int] = {}
    """grades of labels that are words, WORD=GRADE, may be repeated"""
    corpus: str | None = None
    """documents by id: texts where a row has none [path or URI]"""
    queries: str | None = None
    """queries by id: texts where a row has none [path or URI]"""
    run: str | None = None
    """TREC run file or table of candidates without texts, instead of path; needs corpus and queries
    [path or URI]"""
    run_format: str = "auto"
    """Spark source of the run, or trec (auto: by file ending, else trec)"""
    where: str | None = None
    """rows to take: a Spark SQL condition over the input's columns, run as it is written: let only
    people set it who may read what Spark may read"""
    date: str | None = None
    """column of the day of a row: a date, a timestamp, or text that starts like 2026-01-31"""
    since: Day | None = None
    """first day of input.date that is taken, e.g. 2026-01-31"""
    until: Day | None = None
    """last day of input.date that is taken"""
    checkpoint: str | None = None
    """instead of since and until: take the days of input.date that have rows in new files, or new
    commits of the table, since the last run with this folder, which Spark's streaming keeps [path
    or URI]"""
    allow_empty: bool = False
    """accept an input without any row"""
    max_reject_rate: Share = 0.01
    """rejected rows beyond which the job ends with exit code 3 [share 0-1]"""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in (self.path, self.table, self.run) if name]
        if len(given) > 1:
            raise ValueError(
                "more than one input is given; set only one of input.path, input.table and "
                "input.run"
            )
        if self.run and not (self.corpus and self.queries):
            raise ValueError("input.run holds no texts; set input.corpus and input.queries, too")
        if (self.corpus or self.queries) and not given:
            raise ValueError(
                "input.corpus and input.queries hold texts alone; set input.path, input.table or "
                "input.run, too"
            )
        if self.run and self.candidates:
            raise ValueError("input.candidates belongs to a nested input; remove it or input.run")
        return self

    @model_validator(mode="after")
    def _days(self) -> Self:
        if (self.since or self.until) and not self.date:
            raise ValueError("input.since and input.until need input.date, the column of the day")
        if self.since and self.until and self.since > self.until:
            raise ValueError(f"input.since={self.since} is after input.until={self.until}")
        if self.checkpoint and (self.run or not self.date):
            raise ValueError(
                "input.checkpoint needs input.date, the column of the day, and input.path or "
                "input.table"
            )
        return self


class StoreConfig(Section):
    """Where scores are kept. Runs that share a store share their work."""

    path: str | None = None
    """score store (unset: OUT/scores) [path or URI]"""
    older_than: Age = "30d"
    """jobs.store gc: scores of a fingerprint not used for so long are dropped [minutes m, hours h,
    days d]"""
    settled: Age = "6h"
    """jobs.store compact, gc: what was used or changed more recently is left alone; longer than any
    run takes [minutes m, hours h, days d]"""
    tolerance: NonNegativeFloat = 0.05
    """jobs.store verify: how far two scores of one pair may differ [logit]"""

    @model_validator(mode="after")
    def _can_be_renamed_in(self) -> Self:
        refuse_object_store("store.path", self.path)
        return self


class OutputConfig(Section):
    """Where results go."""

    path: str | None = None
    """output folder [path or URI]"""
    format: Literal["parquet", "orc", "json", "csv"] = "parquet"
    """format of the ranked table and the rejects"""
    partitions: NonNegativeInt = 0
    """files of the ranked table (0: from its size) [files]"""
    partition_by: list[str] = []
    """column, such as a date, that splits the ranked table and the rejects into folders, may be
    repeated; a run replaces only the partitions that its input has"""
    table: str | None = None
    """table of a catalog (Iceberg, Delta) that gets the ranked rows, too, in one commit before OUT
    is published [catalog.schema.table]"""
    table_mode: Literal["replace", "append", "partitions"] | None = None
    """replace: the whole table; append: add rows, twice if a run is killed between the commit and
    its end and repeated; partitions: replace those of output.partition_by that the input has
    (unset: partitions with output.partition_by, else replace)"""
    table_format: str | None = None
    """format of a new table, e.g. delta (unset: the catalog's own)"""
    publish: Literal["always", "if_passed"] = "if_passed"
    """if_passed: a run whose gate fails is not published, and one that ends with exit code 3 or
    ranks no row replaces nothing; their results are kept, until the next such run, in
    OUT/unpublished/RUN_ID; always: they are published, too"""
    overwrite: bool = False
    """write to a folder that holds something else, results of another date, or results partitioned
    otherwise"""

    @model_validator(mode="after")
    def _partitions_of_a_table(self) -> Self:
        if self.table_mode == "partitions" and not self.partition_by:
            raise ValueError(
                "output.table_mode=partitions needs output.partition_by, the columns whose "
                "partitions are replaced"
            )
        return self

    @property
    def commit_mode(self) -> Literal["replace", "append", "partitions"]:
        """What a commit to the table does."""
        return self.table_mode or ("partitions" if self.partition_by else "replace")

    @model_validator(mode="after")
    def _can_be_renamed_in(self) -> Self:
        refuse_object_store("output.path", self.path)
        return self
