"""The control plane's own exceptions; each message is one sentence that a person can act on."""

from __future__ import annotations


class PtolemyError(Exception):
    """Base of all errors that the control plane raises on purpose."""


class ObservationError(PtolemyError):
    """Slurm or HAProxy could not be observed: what they hold is unknown, never empty."""


class ChangeError(PtolemyError):
    """A change to Slurm or HAProxy was refused or timed out; the next tick plans again."""


class ConfigError(PtolemyError):
    """The services file is missing or wrong; the message names the file, the key and the mend."""


class GgufError(PtolemyError, ValueError):
    """A model's file cannot be read as GGUF; the message names the file and what is wrong with it."""
