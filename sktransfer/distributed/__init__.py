"""More photos than one machine can take: the extractor on the workers of Ray, Spark or Dask.

No engine is imported unless one of its frames is passed, or asked for. See docs/scale.md.
"""

from sktransfer.distributed.frames import extract_dataframe
from sktransfer.distributed.ray_dataset import extract_dataset

__all__ = ["extract_dataframe", "extract_dataset"]
