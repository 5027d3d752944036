"""Parts as tasks of Spark."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from sktransfer._optional import import_optional
from sktransfer.distributed.workers import QUEUE, Needs, Workers
from sktransfer.exceptions import SktransferError

FAILURES = 4  # of a task, before the job is given up; local masters allow one unless they say more


@contextlib.contextmanager
def open_spark(address: str | None, needs: Needs) -> Iterator[Workers]:
    """The executors of a master of Spark, or threads of one process that lives as long as the block.

    Each part is a job of one task, so that the caller hears of it when it is done.
    """
    sql = import_optional("pyspark.sql", "spark")
    master = address or f"local[{max(1, needs.cores // needs.threads)},{FAILURES}]"
    if master.startswith("local"):
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    settings = {"spark.ui.enabled": "false", "spark.ui.showConsoleProgress": "false", "spark.log.level": "OFF",
                "spark.task.cpus": needs.threads if address else 1, "spark.task.maxFailures": FAILURES}  # fmt: skip
    builder = sql.SparkSession.builder.master(master).appName("sktransfer extract")
    for name, value in settings.items():
        builder = builder.config(name, str(value))
    with _quiet_java():
        session = builder.getOrCreate()
    context = session.sparkContext
    pool = ThreadPoolExecutor(max_workers=max(1, context.defaultParallelism) * QUEUE)

    def call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        try:
            return context.parallelize([arguments], 1).map(lambda each: function(*each)).collect()[0]
        except Exception as error:
            java = getattr(error, "java_exception", None)
            raise SktransferError(java.getMessage() if java is not None else str(error)) from None

    def submit(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return pool.submit(call, function, arguments)

    try:
        yield Workers(submit, lambda: int(context.defaultParallelism))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        session.stop()


@contextlib.contextmanager
def _quiet_java() -> Iterator[None]:
    """The machine of Java inherits an stderr that goes nowhere: what fails comes back as exceptions."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
