"""Sections `model`, `batching`, `scoring`, `spark` and `tune`: how pairs are scored."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from jobs.config.section import Section, Share, refuse_int16
from udfs.spec import PRECISIONS, Aggregate, PassageSpec

#: Values of `tune.precisions`: of torch, or BACKEND:PRECISION.
ENGINES = ("fp32", "fp16", "bf16", "onnxruntime:fp32", "onnxruntime:int8")


class ModelConfig(Section):
    """Which reranker, and how it reads a pair."""

    name: str | None = None
    """local folder, hub id, models:/ URI, or `embedded` for the small model"""
    revision: str | None = None
    """commit of a hub id [40 hex digits]"""
    kind: Literal["auto", "classifier", "modular", "llm"] = "auto"
    """what computes the score (auto: as the folder says): a classifier's logit, modules of
    sentence-transformers behind a transformer, or the next token of a causal language model"""
    label: str = ""
    """whose logit is the score, of a classifier with several labels [name or index]"""
    template: str = ""
    """prompt of a causal language model: qwen3-reranker, bge-gemma, mxbai-v2, or a YAML file; only
    the document is cut then, and max_length counts the whole prompt"""
    max_length: PositiveInt = 512
    """longest pair the model is given [tokens]"""
    truncation: Literal["longest_first", "passage"] = "longest_first"
    """what is cut of a longer pair: the longer side first (sentence-transformers), or the passage
    only with the query held to 3/4 of max_length (FlagEmbedding)"""
    precision: Literal["auto", "fp16", "bf16", "fp32", "int8"] = "auto"
    """number type of the model (auto: fp16 on CUDA, bf16 on CPUs that have the instructions, else
    fp32; onnxruntime has fp32 and int8, auto is fp32 there)"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU Spark gave the task, else the first one, else the CPU"""
    backend: Literal["torch", "onnxruntime", "tokenizer", "stub", "remote"] = "torch"
    """what runs the model; onnxruntime is for CPUs without bf16 instructions; remote asks the
    server of section remote; tokenizer and stub, which time the rest of a job, score by a checksum
    of tokens or texts"""
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    """attention kernel (auto: sdpa where the model has it)"""
    query_instruction: str = ""
    """text put before every query; the instruction in the prompt of a causal language model"""
    doc_instruction: str = ""
    """text put before every document"""
    trust_remote_code: bool = False
    """run Python code that comes with the model; off unless you read it"""
    ship: Literal["path", "archive"] = "path"
    """how executors reach the model: a path they share, or an archive sent by Spark"""

    @field_validator("precision", mode="before")
    @classmethod
    def _known_precision(cls, value: Any) -> Any:
        refuse_int16("model.precision", value)
        return value

    @model_validator(mode="after")
    def _supported(self) -> Self:
        if self.max_length < 8:
            raise ValueError(
                f"model.max_length={self.max_length} is below 8, which leaves no room for text; "
                "raise it"
            )
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


class PassagesConfig(Section):
    """Long documents: scored window by window instead of being cut."""

    size: PositiveInt | None = None
    """tokens of a document that are scored at once (unset: a document is cut) [tokens]"""
    stride: PositiveInt | None = None
    """from the start of a window to that of the next (unset: size, so no overlap) [tokens]"""
    aggregate: Aggregate = "max"
    """what a document's logit is: that of its first window, the highest, or the mean or sum of the
    k highest"""
    k: PositiveInt = 3
    """windows of mean_top_k and sum_of_top_k, or all where there are fewer"""

    @model_validator(mode="after")
    def _covers_the_document(self) -> Self:
        if self.stride and self.stride > (self.size or 0):
            raise ValueError(
                f"passages.stride={self.stride} exceeds passages.size={self.size}, so tokens would "
                "be left out; lower it"
            )
        return self

    def spec(self) -> PassageSpec | None:
        """Return what executors have to know, None where documents are cut."""
        if self.size is None:
            return None
        k = self.k if self.aggregate in ("mean_top_k", "sum_of_top_k") else 1
        return PassageSpec(self.size, self.stride or self.size, self.aggregate, k)


class BatchingConfig(Section):
    """How much is scored at once."""

    max_tokens: PositiveInt = 4096
    """padded size of one batch [tokens]"""
    max_pairs: PositiveInt = 512
    """rows of one batch [pairs]"""
    window: PositiveInt = 1024
    """pairs a worker holds and sorts by length before batching [pairs]"""
    partitions: NonNegativeInt = 0
    """scoring tasks (0: from the number of pairs and task slots) [tasks]"""
    timeout: NonNegativeFloat = 600.0
    """longest time for one batch; a worker that takes longer hangs: it ends, and Spark starts its
    task again (0: wait for ever) [s]"""


class ScoringConfig(Section):
    """Executors that score, where they are to differ from those that read and rank (stage-level
    scheduling). Needs a cluster with dynamic allocation.
    """

    gpus: PositiveInt | None = None
    """GPUs of such an executor, each for two tasks with a model each (unset: no such executors)"""
    cores: PositiveInt = 4
    """its cores, shared out to its tasks [cores]"""
    memory: str = "4g"
    """its JVM's heap [bytes, or with k, m, g]"""
    memory_overhead: str = "12g"
    """its memory beside the heap: model, torch, CUDA [bytes, or with k, m, g]"""
    discovery_script: str = ""
    """script on the executors that lists their GPUs as Spark wants it [path]"""
    vendor: str = ""
    """vendor of the GPUs, for Kubernetes, e.g. nvidia.com"""


class SparkConfig(Section):
    """The session."""

    master: str = "local[*]"
    """for a local run; spark-submit's master wins"""
    app_name: str = "spark-rerank"
    """application's name"""
    settings: dict[str, str] = {}
    """further Spark settings, KEY=VALUE, may be repeated"""


class TuneConfig(Section):
    """What jobs.tune measures, and what it may recommend. Empty lists: from device and lengths."""

    seconds: PositiveFloat = 240.0
    """time for measuring; every setting once, then the best ones again [s]"""
    pairs: NonNegativeInt = 0
    """pairs measured on, some of each query (0: 320 on a CPU, 4096 on a GPU)"""
    candidates: Annotated[int, Field(ge=2)] = 16
    """candidates per query, more if there are too few queries [pairs]"""
    seed: int = 0
    """which queries and candidates are drawn"""
    precisions: list[str] = []
    """precisions to try, or BACKEND:PRECISION such as onnxruntime:int8, may be repeated"""
    max_lengths: list[PositiveInt] = []
    """values of model.max_length to try, may be repeated [tokens]"""
    max_tokens: list[PositiveInt] = []
    """values of batching.max_tokens to try, may be repeated [tokens]"""
    max_pairs: list[PositiveInt] = [1, 8, 32, 128]
    """values of batching.max_pairs to try, may be repeated [pairs]"""
    min_tau: Annotated[float, Field(ge=-1, le=1)] = 0.9
    """least agreement with float32 at the longest max_length that is recommended [Kendall's tau]"""
    max_loss: Share = 0.005
    """largest loss of nDCG@10 against it that is recommended"""

    @model_validator(mode="after")
    def _known_precisions(self) -> Self:
        refuse_int16("tune.precisions", *self.precisions)
        if unknown := sorted(set(self.precisions) - set(ENGINES)):
            raise ValueError(
                f"tune.precisions={', '.join(unknown)}: unknown; use {', '.join(ENGINES)}"
            )
        return self
