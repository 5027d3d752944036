"""Parts as tasks of Dask."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from sktransfer._optional import import_optional
from sktransfer.distributed.workers import Needs, Workers

RETRIES = 3  # of a task whose worker died


@contextlib.contextmanager
def open_dask(address: str | None, needs: Needs) -> Iterator[Workers]:
    """The workers of a scheduler of Dask, or of one that lives as long as the block."""
    distributed = import_optional("distributed", "dask")
    with contextlib.ExitStack() as stack:
        if address is None:
            cluster = distributed.LocalCluster(
                n_workers=max(1, needs.cores // needs.threads),
                threads_per_worker=1,
                dashboard_address=None,
                silence_logs=logging.CRITICAL,
            )
            stack.enter_context(cluster)
        client = stack.enter_context(distributed.Client(address or cluster, set_as_default=False))
        executor = client.get_executor(retries=RETRIES, pure=False)
        yield Workers(executor.submit, lambda: sum(client.nthreads().values()))
