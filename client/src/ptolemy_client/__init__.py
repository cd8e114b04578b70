"""Classify or extract from many rows with a model behind Ptolemy's gateway, every row accounted for."""

__version__ = "0.1.0"
