from __future__ import annotations

import pytest

from jobs.config import Config
from jobs.errors import RefusedError
from jobs.session import open_session


@pytest.mark.parametrize(
    ("spark", "said"),
    [
        ({"settings": {"spark.task.resource.gpu.amount": "1"}}, "which has no executors"),
        ({"settings": {"spark.executor.pyspark.memory": "2g"}}, "limits virtual memory"),
        (
            {
                "master": "spark://host:7077",
                "settings": {"spark.task.resource.gpu.amount": "1", "spark.speculation": "true"},
            },
            "spark.speculation=true",
        ),
        ({"master": "local[many]"}, "is no master"),
    ],
)
def test_settings_that_break_scoring_are_refused_before_spark_starts(
    spark: dict[str, object], said: str
) -> None:
    with pytest.raises(RefusedError, match=said):
        open_session(Config.model_validate({"spark": spark}))
