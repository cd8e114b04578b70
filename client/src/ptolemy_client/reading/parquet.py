"""Parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, Optional, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import BatchError
from .table import BATCH_ROWS


class ParquetTable:
    """A Parquet file; columns keep their types. See ``Table``."""

    described = "Parquet"

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.schema = pq.read_schema(path)
        except pa.ArrowException as error:
            raise BatchError(f"{path}: not a Parquet file: {error}") from error
        if len(set(self.schema.names)) < len(self.schema.names):
            raise BatchError(f"{path}: two columns have the same name")

    def batches(self, columns: Optional[Sequence[str]] = None) -> Iterator[pa.RecordBatch]:
        """See ``Table``."""
        chosen = [name for name in self.schema.names if columns is None or name in columns]
        try:
            with pq.ParquetFile(self.path) as file:
                yield from file.iter_batches(BATCH_ROWS, columns=chosen)
        except pa.ArrowException as error:
            raise BatchError(f"{self.path}: cannot be read: {error}") from error
