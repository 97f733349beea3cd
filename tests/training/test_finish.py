"""The time that a run's end writes."""

import json
import time

import pytest
import torch

from diffadapt.files import read_json, save_tensors
from diffadapt.training.finish import finish


@pytest.mark.parametrize(("resumed_at", "earlier"), [(0, 0.0), (1, 10.0), (2, 30.0)])
def test_total_time_is_that_of_the_call_and_of_the_steps_of_calls_before_it(tmp_path, resumed_at, earlier):
    rows = [{"step": 1, "loss": 1.0, "seconds": 10.0}, {"step": 2, "loss": 1.0, "seconds": 20.0}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_tensors(tmp_path / "adapter.safetensors", {"x": torch.zeros(2)}, {})
    facts = {"trainable_parameters": 2, "resumed_at": resumed_at}
    run = finish(tmp_path, None, None, facts=facts, started=time.time() - 100, quiet=True)
    metrics = read_json(tmp_path / "metrics.json")
    assert metrics == run.metrics and metrics["trainable_parameters"] == 2 and "resumed_at" not in metrics
    assert metrics["seconds_train"] == 30.0
    assert metrics["seconds_total"] == pytest.approx(earlier + 100, abs=5)
    assert metrics["adapter_bytes"] == (tmp_path / "adapter.safetensors").stat().st_size and run.report.is_file()
