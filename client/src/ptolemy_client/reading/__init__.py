"""Reading tables of every kind, streamed: a file of 1 GB needs no more memory than one of 1 MB."""

from .table import Options, Table, open_table

__all__ = ["Options", "Table", "open_table"]
