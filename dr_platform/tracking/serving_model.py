"""What MLflow runs to serve a registered generator: seeds in, pictures out. Copied as it is into every such model.

MLflow executes this file by itself ("models from code"), so nothing is pickled. Beside it the model carries
`drp_generator`, a copy of `dr_platform/gan` and `dr_platform/sampling.py`: serving needs torch, not this package.
Our own commands never run it; they verify the recorded digests and load the weights themselves.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext


class SeededGenerator(PythonModel):
    """A StyleGAN3 generator; the same seed and truncation give the same picture."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build the network from its recorded arguments and load the averaged weights."""
        from drp_generator import Generator  # type: ignore[import-not-found]
        from safetensors.torch import load_file

        described = json.loads(Path(context.artifacts["config"]).read_text(encoding="utf-8"))
        self._generator = Generator(**described["generator"])
        self._generator.load_state_dict(load_file(context.artifacts["weights"]))
        self._generator.eval().requires_grad_(False)
        self._classes: list[int] = described.get("classes", [])
        self._grade: int = described["grade"]

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        """One picture per row of the column `seed` (0 … 2³² − 1): uint8 [n, H, W, 3].

        params: truncation_psi, 1.0 by default; lower is closer to the average picture. grade: of a conditional model.
        """
        from drp_generator.sampling import sample_images  # type: ignore[import-not-found]

        psi = float((params or {}).get("truncation_psi", 1.0))
        if self._classes:
            grade = int((params or {}).get("grade", self._grade))
            if grade not in self._classes:
                raise ValueError(f"grade is {grade}, but this model draws grades {self._classes}")
            self._generator.mapping.default_class = self._classes.index(grade)
        return sample_images(self._generator, [int(seed) for seed in model_input["seed"]], psi=psi)


mlflow.models.set_model(SeededGenerator())
