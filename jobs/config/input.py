"""Section `input`: the pairs."""

from typing import Literal, Self

from pydantic import Field, model_validator

from jobs.config.section import Section, Share


class InputConfig(Section):
    """Where the pairs come from. Shapes are told apart by the keys that are set: long (`path` or
    `table`), nested (`candidates` names an array column), normalised (`run`); texts that a row
    lacks come from `corpus` and `queries`.
    """

    path: str | None = Field(None, description="table of pairs: file, folder or glob [path or URI]")
    table: str | None = Field(None, description="catalog table of pairs, instead of path [name]")
    format: str = Field(
        "auto", description="Spark source: parquet, json, csv, tsv, orc, ... (auto: by file ending)"
    )
    options: dict[str, str] = Field(
        {}, description="options of the Spark reader, KEY=VALUE, may be repeated"
    )
    query_id: str = Field("query_id", description="column of the query's id")
    query: str = Field("query", description="column of the query's text (normalised: or `text`)")
    doc_id: str = Field("doc_id", description="column of the document's id")
    doc: str = Field("doc", description="column of the document's text, unless doc_template is set")
    retrieval_score: str = Field("retrieval_score", description="column of the first stage's score")
    retrieval_rank: str = Field("retrieval_rank", description="column of the first stage's rank")
    label: str = Field("label", description="column of the graded relevance (empty: none)")
    doc_template: str | None = Field(
        None, description=r"document made of fields, e.g. 'Title: {title}\nAbstract: {abstract}'"
    )
    doc_missing: Literal["drop_line", "empty", "reject"] = Field(
        "drop_line",
        description="a field that is null or blank: drop a template line with no field left, "
        "put nothing in its place, or reject the pair",
    )
    candidates: str | None = Field(
        None, description="nested input: array column with one struct per candidate"
    )
    group: list[str] = Field(
        [],
        description="columns that make a list of candidates together with query_id, such as date "
        "or session, may be repeated",
    )
    label_map: dict[str, int] = Field(
        {}, description="grades of labels that are words, WORD=GRADE, may be repeated"
    )
    corpus: str | None = Field(
        None, description="documents by id: texts where a row has none [path or URI]"
    )
    queries: str | None = Field(
        None, description="queries by id: texts where a row has none [path or URI]"
    )
    run: str | None = Field(
        None,
        description="TREC run file or table of candidates without texts, instead of path; needs "
        "corpus and queries [path or URI]",
    )
    run_format: str = Field(
        "auto", description="Spark source of the run, or trec (auto: by file ending, else trec)"
    )
    allow_empty: bool = Field(False, description="accept an input without any row")
    max_reject_rate: Share = Field(
        0.01, description="rejected rows beyond which the job ends with exit code 3 [share 0-1]"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [key for key in ("path", "table", "run") if getattr(self, key)]
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
