"""Parts as tasks of Ray."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

from sktransfer._optional import import_optional
from sktransfer.distributed.workers import Needs, Workers
from sktransfer.silence import silence

RETRIES = 3  # of a task whose worker died


@contextlib.contextmanager
def open_ray(address: str | None, needs: Needs) -> Iterator[Workers]:
    """The workers of a cluster of Ray, or of one that lives as long as the block."""
    ray = import_optional("ray", "ray")
    local = {"address": "local", "num_cpus": needs.cores, "include_dashboard": False}
    with silence():
        chosen = local if address is None else {"address": address}
        ray.init(**chosen, log_to_driver=False, logging_level=logging.ERROR)
    requirements = {"num_cpus": needs.threads, "num_gpus": needs.gpus, "max_retries": RETRIES}

    @ray.remote(**requirements, scheduling_strategy="SPREAD")  # type: ignore[untyped-decorator]
    def call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        return function(*arguments)

    def count() -> int:
        return int(ray.cluster_resources().get("CPU", 0)) // needs.threads

    try:  # Ray writes of every worker that dies to stdout, whatever it is told of logs
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield Workers(lambda function, *arguments: call.remote(function, arguments).future(), count)
    finally:
        ray.shutdown()
