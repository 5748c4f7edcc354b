"""The configuration: one frozen object, section by section, every key with its unit and default.

The defaults here are the only ones. `conf/*.yaml` and the command line override them (see
`jobs.cli`), and `jobs.cli` renders this module as `--help`.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from udfs.spec import PRECISIONS

PositiveInt = Annotated[int, Field(gt=0)]
Age = Annotated[str, Field(pattern=r"^\d+[mhd]$")]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """A group of keys. Unknown keys are refused and values cannot be changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=False)


class InputConfig(Section):
    """Where the pairs come from. One of three shapes, told apart by the keys that are set:
    long (`path` or `table`), nested (`candidates` names an array column), normalised (`run`).
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
    corpus: str | None = Field(None, description="normalised input: documents [path or URI]")
    queries: str | None = Field(None, description="normalised input: queries [path or URI]")
    run: str | None = Field(
        None, description="normalised input: TREC run file or table of candidates [path or URI]"
    )
    run_format: str = Field(
        "auto", description="Spark source of the run, or trec (auto: by file ending, else trec)"
    )
    max_reject_rate: Share = Field(
        0.01, description="rejected rows beyond which the job ends with exit code 3 [share 0-1]"
    )

    @model_validator(mode="after")
    def _one_shape(self) -> InputConfig:
        normalised = [self.corpus, self.queries, self.run]
        given = [bool(self.path), bool(self.table), any(normalised)]
        if sum(given) > 1:
            raise ValueError(
                "more than one input is given; set only one of input.path, input.table, "
                "or the three of input.corpus, input.queries and input.run"
            )
        if any(normalised) and not all(normalised):
            raise ValueError(
                "a normalised input needs input.corpus, input.queries and input.run, all three"
            )
        if any(normalised) and self.candidates:
            raise ValueError("input.candidates belongs to a nested input; remove it or input.run")
        return self


class ModelConfig(Section):
    """Which cross-encoder, and how it reads a pair."""

    name: str | None = Field(
        None, description="local folder, hub id, models:/ URI, or `embedded` for the small sample"
    )
    revision: str | None = Field(None, description="commit of a hub id [40 hex digits]")
    max_length: PositiveInt = Field(512, description="longest pair the model is given [tokens]")
    truncation: Literal["longest_first", "passage"] = Field(
        "longest_first",
        description="what is cut of a longer pair: the longer side first (sentence-transformers), "
        "or the passage only with the query held to 3/4 of max_length (FlagEmbedding)",
    )
    precision: Literal["auto", "fp16", "bf16", "fp32", "int8"] = Field(
        "auto",
        description="number type of the model (auto: fp16 on CUDA, bf16 on CPUs that have the "
        "instructions, else fp32; int8 and fp32 are those of onnxruntime, auto is fp32 there)",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: the GPU Spark gave the task, else the first one, else the CPU"
    )
    backend: Literal["torch", "onnxruntime", "stub"] = Field(
        "torch",
        description="what runs the model; onnxruntime is for CPUs without bf16 instructions, stub "
        "scores by a checksum, to time all but the model",
    )
    attention: Literal["auto", "sdpa", "eager"] = Field(
        "auto", description="attention kernel (auto: sdpa where the model has it)"
    )
    query_instruction: str = Field("", description="text put before every query")
    doc_instruction: str = Field("", description="text put before every document")
    trust_remote_code: bool = Field(
        False, description="run Python code that comes with the model; off unless you read it"
    )
    ship: Literal["path", "archive"] = Field(
        "path",
        description="how executors reach the model: a path they share, or an archive sent by Spark",
    )

    @model_validator(mode="after")
    def _long_enough(self) -> ModelConfig:
        if self.max_length < 8:
            raise ValueError(
                f"model.max_length={self.max_length} is below 8, which leaves no room for text; "
                "raise it"
            )
        return self

    @model_validator(mode="after")
    def _backend_can(self) -> ModelConfig:
        precisions = ("auto", *PRECISIONS[self.backend])
        if self.precision not in precisions:
            raise ValueError(
                f"model.precision={self.precision} is none of model.backend={self.backend}; use "
                f"{', '.join(precisions)}, or another backend"
            )
        if self.backend == "onnxruntime" and self.device == "cuda":
            raise ValueError(
                "model.backend=onnxruntime scores on CPUs only; leave model.device=cuda out, or "
                "use model.backend=torch"
            )
        return self


class BatchingConfig(Section):
    """How much is scored at once."""

    max_tokens: PositiveInt = Field(4096, description="padded size of one batch [tokens]")
    max_pairs: PositiveInt = Field(512, description="rows of one batch [pairs]")
    window: PositiveInt = Field(
        1024, description="pairs a worker holds and sorts by length before batching [pairs]"
    )
    partitions: Annotated[int, Field(ge=0)] = Field(
        0, description="scoring tasks (0: from the number of pairs and task slots) [tasks]"
    )
    timeout: Annotated[float, Field(ge=0)] = Field(
        600.0,
        description="longest time for one batch; a worker that takes longer hangs: it ends, and "
        "Spark starts its task again (0: wait for ever) [s]",
    )


class ScoringConfig(Section):
    """Executors that score, where they are to differ from those that read and rank (stage-level
    scheduling). Needs a cluster with dynamic allocation.
    """

    gpus: PositiveInt | None = Field(
        None, description="GPUs of such an executor, one for each task (unset: no such executors)"
    )
    cores: PositiveInt = Field(4, description="its cores, divided among its tasks [cores]")
    memory: str = Field("4g", description="its JVM's heap [bytes, or with k, m, g]")
    memory_overhead: str = Field(
        "8g", description="its memory beside the heap: model, torch, CUDA [bytes, or with k, m, g]"
    )
    discovery_script: str = Field(
        "", description="script on the executors that lists their GPUs as Spark wants it [path]"
    )
    vendor: str = Field("", description="vendor of the GPUs, for Kubernetes, e.g. nvidia.com")


class RankingConfig(Section):
    """What is kept of each query's order."""

    top_k: PositiveInt | None = Field(None, description="ranks kept per query (unset: all) [rows]")
    min_score: float | None = Field(None, description="lowest logit kept (unset: all) [logit]")
    tie_break: Literal["doc_id_desc", "doc_id_asc"] = Field(
        "doc_id_desc", description="order of equal scores; doc_id_desc is trec_eval's"
    )


class RankedConfig(Section):
    """The ranked tables that jobs.evaluate reads."""

    path: list[str] = Field(
        [],
        description="ranked table, PATH or NAME=PATH, may be repeated: the first is judged, the "
        "others are compared with it [path or URI]",
    )


class EvaluationConfig(Section):
    """What the order is measured by. Labels come from the table's label unless qrels is set."""

    qrels: str | None = Field(None, description="TREC or BEIR qrels file, or a table [path or URI]")
    metrics: list[str] = Field(
        ["nDCG@10", "RR@10", "Success@1", "Judged@10"],
        description="measures in ir_measures' notation, may be repeated",
    )
    baseline: str | None = Field(
        None,
        description="what to compare with beside the first stage: a name or path of a ranked "
        "table, or mlflow:EXPERIMENT for the latest passing run there",
    )
    gate: list[str] = Field(
        [],
        description="rule that must hold, else exit code 4, e.g. 'nDCG@10 >= 0.6', "
        "'nDCG@10 delta >= 0', 'nDCG@10 vs baseline >= -0.005 (significant)', "
        "'p95_ms_per_pair <= 20', may be repeated",
    )
    alpha: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.05, description="chance of a false alarm for rules marked (significant) [share 0-1]"
    )
    slices: list[str] = Field(
        [],
        description="column with one value per query, or a number, to split the result by, may "
        "be repeated",
    )


class ReportConfig(Section):
    """The report, one HTML file."""

    examples: Annotated[int, Field(ge=0)] = Field(
        0,
        description="queries shown with their texts, before and after; texts stay out of the "
        "report unless asked for [queries]",
    )


class StoreConfig(Section):
    """Where scores are kept. Runs that share a store share their work."""

    path: str | None = Field(None, description="score store (unset: OUT/scores) [path or URI]")
    older_than: Age = Field(
        "30d",
        description="jobs.store gc: scores of a fingerprint not used for so long are dropped "
        "[minutes m, hours h, days d]",
    )
    settled: Age = Field(
        "6h",
        description="jobs.store compact, gc: what was used or changed more recently is left "
        "alone; longer than any run takes [minutes m, hours h, days d]",
    )
    tolerance: Annotated[float, Field(ge=0.0)] = Field(
        0.05, description="jobs.store verify: how far two scores of one pair may differ [logit]"
    )


class OutputConfig(Section):
    """Where results go."""

    path: str | None = Field(None, description="output folder [path or URI]")
    format: Literal["parquet", "orc", "json", "csv"] = Field(
        "parquet", description="format of the ranked table and the rejects"
    )
    partitions: Annotated[int, Field(ge=0)] = Field(
        0, description="files of the ranked table (0: from its size) [files]"
    )


class MlflowConfig(Section):
    """Tracking. Only the driver talks to it, after the data is written."""

    enabled: bool = Field(True, description="log the run")
    tracking_uri: str | None = Field(
        None, description="MLflow server or database (unset: MLFLOW_TRACKING_URI, else mlflow.db)"
    )
    experiment: str = Field("spark-rerank", description="experiment's name")
    run_name: str | None = Field(None, description="run's name (unset: MLflow chooses one)")
    timeout: Annotated[float, Field(gt=0)] = Field(
        30.0, description="longest that logging may hold up the end of the job [s]"
    )


class SparkConfig(Section):
    """The session."""

    master: str = Field("local[*]", description="for a local run; spark-submit's master wins")
    app_name: str = Field("spark-rerank", description="application's name")
    settings: dict[str, str] = Field(
        {}, description="further Spark settings, KEY=VALUE, may be repeated"
    )


Way = Literal[
    "engine", "job", "sentence_transformers", "flagembedding", "predict_batch_udf", "peak"
]
Mix = Literal["given", "short", "web", "long", "skewed"]


class BenchConfig(Section):
    """How the benchmark measures."""

    ways: list[Way] = Field(
        list(get_args(Way)),
        description="what is measured, may be repeated: this engine in process, this engine "
        "through the job, two libraries, Spark's predict_batch_udf around the first, and the "
        "device's matrix products",
    )
    mixes: list[Mix] = Field(
        ["given"],
        description="lengths of the pairs, may be repeated: those of input.path, or made-up ones "
        "with a median of 40, 100 or 430 tokens, or 90% short and 10% at model.max_length",
    )
    pairs: Annotated[int, Field(ge=0)] = Field(
        0, description="pairs of a mix (0: all of input.path, 1,000 of a made-up mix) [pairs]"
    )
    rounds: PositiveInt = Field(3, description="times each way is run, in turn [runs]")
    shape: Literal["minilm-l6", "bge-reranker-base", "bge-reranker-v2-m3"] | None = Field(
        None, description="a model of this shape with random weights, instead of model.name"
    )


class TuneConfig(Section):
    """What jobs.tune measures, and what it may recommend. Empty lists: from device and lengths."""

    seconds: Annotated[float, Field(gt=0)] = Field(
        240.0, description="time for measuring; every setting once, then the best ones again [s]"
    )
    pairs: Annotated[int, Field(ge=0)] = Field(
        0, description="pairs measured on, of whole queries (0: 320 on a CPU, 4096 on a GPU)"
    )
    candidates: Annotated[int, Field(ge=2)] = Field(
        16, description="candidates per query, more if there are too few queries [pairs]"
    )
    seed: int = Field(0, description="which queries and candidates are drawn")
    precisions: list[str] = Field(
        [],
        description="precisions to try, or BACKEND:PRECISION such as onnxruntime:int8, may be "
        "repeated",
    )
    max_lengths: list[PositiveInt] = Field(
        [], description="values of model.max_length to try, may be repeated [tokens]"
    )
    max_tokens: list[PositiveInt] = Field(
        [], description="values of batching.max_tokens to try, may be repeated [tokens]"
    )
    max_pairs: list[PositiveInt] = Field(
        [1, 8, 32, 128],
        description="values of batching.max_pairs to try, may be repeated [pairs]",
    )
    min_tau: Annotated[float, Field(ge=-1.0, le=1.0)] = Field(
        0.9,
        description="least agreement with float32 at the longest max_length that is recommended "
        "[Kendall's tau]",
    )
    max_loss: Share = Field(
        0.005, description="largest loss of nDCG@10 against it that is recommended"
    )

    @model_validator(mode="after")
    def _precisions_are_some(self) -> TuneConfig:
        known = [*PRECISIONS["torch"], *(f"onnxruntime:{p}" for p in PRECISIONS["onnxruntime"])]
        if unknown := sorted(set(self.precisions) - set(known)):
            raise ValueError(
                f"tune.precisions={', '.join(unknown)}: unknown; use {', '.join(known)}"
            )
        return self


class Config(Section):
    """Everything a command needs to know, resolved once."""

    input: InputConfig = InputConfig()
    model: ModelConfig = ModelConfig()
    batching: BatchingConfig = BatchingConfig()
    scoring: ScoringConfig = ScoringConfig()
    ranking: RankingConfig = RankingConfig()
    ranked: RankedConfig = RankedConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    report: ReportConfig = ReportConfig()
    store: StoreConfig = StoreConfig()
    output: OutputConfig = OutputConfig()
    mlflow: MlflowConfig = MlflowConfig()
    spark: SparkConfig = SparkConfig()
    bench: BenchConfig = BenchConfig()
    tune: TuneConfig = TuneConfig()
    dry_run: bool = Field(
        False, description="read and check the input, print its size and lengths, score nothing"
    )

    @model_validator(mode="after")
    def _budget_holds_a_pair(self) -> Config:
        if self.model.max_length > self.batching.max_tokens:
            raise ValueError(
                f"model.max_length={self.model.max_length} exceeds "
                f"batching.max_tokens={self.batching.max_tokens}; raise one or lower the other"
            )
        return self
