"""Failures a user can mend. The command line prints them as one line and exits 1; every other exception is a bug.

DrpError
├── ConfigError        params.yaml or a site file says something impossible
├── DataError          an image, a table, a shard or a manifest cannot be used
├── CheckpointError    a checkpoint is missing, damaged, or belongs to another run
├── TrainingError      training cannot go on: a NaN, a full disk, a second trainer in the same run directory
├── EvaluationError    a metric cannot be computed, or two that must not be compared were
├── RegistryError      the tracking server or the model registry refuses, or holds something unexpected
├── ClusterError       Ray cannot be reached or a worker group failed for good
├── StoppedError       somebody asked a training to stop, and it did: no error, but no result either
└── LineageError       DVC or git cannot say what a result was made from

Each takes one message, so that an error travels between processes by pickle.
"""

from __future__ import annotations


class DrpError(Exception):
    """Base of every failure a user can mend. `str(error)` is one line: what was found, what was needed, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


class ConfigError(DrpError):
    """params.yaml or a site file says something impossible."""


class DataError(DrpError):
    """An image, a table, a shard or a manifest cannot be used."""


class CheckpointError(DrpError):
    """A checkpoint is missing, damaged, or belongs to another run."""


class TrainingError(DrpError):
    """Training cannot go on."""


class EvaluationError(DrpError):
    """A metric cannot be computed, or two that must not be compared were."""


class RegistryError(DrpError):
    """The tracking server or the model registry refuses, or holds something unexpected."""


class ClusterError(DrpError):
    """Ray cannot be reached, or a worker group failed for good."""


class StoppedError(DrpError):
    """Somebody asked a training to stop, and it did."""


class LineageError(DrpError):
    """DVC or git cannot say what a result was made from."""
