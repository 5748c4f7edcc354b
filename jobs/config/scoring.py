"""Section `scoring`: executors of their own for scoring."""

from pydantic import Field

from jobs.config.section import PositiveInt, Section


class ScoringConfig(Section):
    """Executors that score, where they are to differ from those that read and rank (stage-level
    scheduling). Needs a cluster with dynamic allocation.
    """

    gpus: PositiveInt | None = Field(
        None, description="GPUs of such an executor, each with one model (unset: no such executors)"
    )
    cores: PositiveInt = Field(
        4, description="its cores, one for each task; the tasks share out its GPUs [cores]"
    )
    memory: str = Field("4g", description="its JVM's heap [bytes, or with k, m, g]")
    memory_overhead: str = Field(
        "8g", description="its memory beside the heap: model, torch, CUDA [bytes, or with k, m, g]"
    )
    discovery_script: str = Field(
        "", description="script on the executors that lists their GPUs as Spark wants it [path]"
    )
    vendor: str = Field("", description="vendor of the GPUs, for Kubernetes, e.g. nvidia.com")
