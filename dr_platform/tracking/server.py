"""MLflow's pages for people, on loopback unless told otherwise."""

from __future__ import annotations

import os
import socket
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
    _require_free(host, port)
    store = f"sqlite:///{(root / uri.removeprefix('sqlite:///')).absolute()}" if uri.startswith("sqlite:///") else uri
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--workers", "1"]
    command += ["--artifacts-destination", str((root / artifacts).absolute()), "--host", host, "--port", str(port)]
    command += ["--uvicorn-opts", "--log-level warning"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONWARNINGS": "ignore"}
    try:
        status = subprocess.run(command, env=environment, check=False).returncode
    except KeyboardInterrupt:
        return
    if status not in (0, -2, 130):
        raise RegistryError(f"The MLflow server ended with status {status}; its last lines above say why.")


def _require_free(host: str, port: int) -> None:
    """Raise RegistryError if nothing can listen there: uvicorn would say so and end with status 0."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        advice = f"Try: drp ui --port {port + 1}"
        raise RegistryError(f"port {port} of {host} cannot be used: {error.strerror}. {advice}") from None
