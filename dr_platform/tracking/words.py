"""What is said about MLflow's failures, and what is never said to MLflow."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from dr_platform.errors import DrpError, RegistryError

_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY", re.IGNORECASE)

# What MLflow, its HTTP client and its database raise.
FAILURES = (MlflowException, SQLAlchemyError, OSError)

P = ParamSpec("P")
R = TypeVar("R")


def in_one_line(method: Callable[P, R]) -> Callable[P, R]:
    """Turn what MLflow, its HTTP client or its database raise into a RegistryError of one line."""

    @functools.wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except DrpError:
            raise
        except FAILURES as error:
            raise RegistryError(f"MLflow refuses: {first_line(error)}. Run: drp doctor") from error

    return wrapped


def flat(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested parameters as (dotted name, value)."""
    for name, value in params.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def clean(value: Any) -> str:
    """A value as text without secrets. MLflow's parameters are written once: a leaked one could not be taken back."""
    text = masked(value if isinstance(value, str) else json.dumps(value))
    for name, secret in os.environ.items():
        if _SECRET_NAME.search(name) and len(secret) >= 8:
            text = text.replace(secret, "***")
    return text


def masked(text: str) -> str:
    """An address without user and password."""
    return re.sub(r"://[^/@\s]+@", "://***@", text)


def first_line(error: Exception) -> str:
    """What went wrong, in one line of at most 160 characters, without a password."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = masked(lines[0] if lines else type(error).__name__)
    request = re.match(r"API request to \w+://([^/\s]+)\S* failed with exception", line)
    return f"{request[1]} does not answer" if request else line.rstrip(".")[:160]
