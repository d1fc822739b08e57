"""MLflow's pages for people, on loopback unless told otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from dr_platform.errors import RegistryError


def serve(uri: str, artifacts: str, root: Path, host: str, port: int) -> None:
    """Serve the pages of the store at `uri` until interrupted. Raises RegistryError if the server does not start.

    A server elsewhere has pages of its own; then this says where.
    """
    if uri.startswith(("http://", "https://")):
        raise RegistryError(f"Tracking is a server that has pages of its own: open {uri.rpartition('@')[2]}")
    store = f"sqlite:///{(root / uri.removeprefix('sqlite:///')).absolute()}" if uri.startswith("sqlite:///") else uri
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--workers", "1"]
    command += ["--artifacts-destination", str((root / artifacts).absolute()), "--host", host, "--port", str(port)]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    try:
        status = subprocess.run(command, env=environment, check=False).returncode
    except KeyboardInterrupt:
        return
    if status not in (0, -2, 130):
        raise RegistryError(
            f"The MLflow server ended with status {status}. Is port {port} free? Try: drp ui --port {port + 1}"
        )
