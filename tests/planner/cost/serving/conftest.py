"""Workers that the tests of the serving cost share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from planner import catalog
from planner.cost.serving.worker import Backend, ServingWorker
from planner.hardware import DeviceKind
from planner.model import ModelSpec

Serve = Callable[..., ServingWorker]


@pytest.fixture(scope="session")
def serve() -> Serve:
    """Make a worker from catalogue names; experts are split by tensor where nothing else is said."""

    def make(
        model: str | ModelSpec = "Llama-3.1-70B-Instruct",
        device: str | DeviceKind = "h100_sxm",
        backend: Backend = "vllm",
        *,
        tp: int = 1,
        pp: int = 1,
        dp: int = 1,
        moe_tp: int | None = None,
        ep: int = 1,
        kv: float = 2.0,
        speculative: bool = False,
    ) -> ServingWorker:
        spec = catalog.model(model) if isinstance(model, str) else model
        return ServingWorker(
            model=spec,
            device=catalog.device(device) if isinstance(device, str) else device,
            backend=backend,
            tensor_parallel_size=tp,
            pipeline_parallel_size=pp,
            data_parallel_size=dp,
            moe_tensor_parallel_size=(tp * dp // ep if spec.num_moe_layers else 1) if moe_tp is None else moe_tp,
            expert_parallel_size=ep,
            kv_element_bytes=kv,
            speculative=speculative,
        )

    return make
