"""The edge to MLflow: one run per training, one model version per checkpoint, one alias for the champion.

Everything goes through MlflowClient with an explicit address; MLflow's global state (active run, current experiment)
stays unused, so several trackers and processes do not disturb each other. Four facts shape this package (MLflow 3.17):

- Two processes that create the SQLite schema at once collide, so the first connection is made under a file lock.
- The registry accepts a version whose files do not exist. So files come first, the version with all its tags last, in
  one transaction: a kill in between leaves an orphan that nothing points to, and the same command completes the work.
- MLflow runs the code of whatever model it loads. So we never load a model through it: `load_generator` fetches weights
  and their description and holds both against the SHA-256 in the version's tags.
- A server can go away in the middle of a training. Ticks then wait here and go out with the next one.

Importing this package sets MLflow's environment, which MLflow reads while it is imported itself.
"""

import os

os.environ.update(
    {
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_UV_AUTO_DETECT": "false",  # else pyproject.toml of the working directory goes into each model
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
)
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
# MLflow's own 120 s and 7 attempts would hold a training up for a quarter of an hour when its server is away.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")

from dr_platform.tracking.champions import Audit, audit, decided, restore, settle
from dr_platform.tracking.connection import connect
from dr_platform.tracking.registry import CHAMPION, LoadedGenerator, ModelVersion, Tracker
from dr_platform.tracking.server import serve

__all__ = [
    "CHAMPION", "Audit", "LoadedGenerator", "ModelVersion", "Tracker", "audit", "connect", "decided", "restore",
    "serve", "settle",
]  # fmt: skip
