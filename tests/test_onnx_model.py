"""Generators as ONNX files: onnxruntime draws what torch draws, and the file says what it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from small_networks import GENERATORS
from test_published import generator_arguments, randomised

from dr_platform import onnx_model
from dr_platform.errors import CheckpointError
from dr_platform.gan import Generator
from dr_platform.sampling import latents


def generator(name: str) -> Generator:
    kwargs, _ = GENERATORS[name]
    torch.manual_seed(1)
    network = randomised(Generator(**generator_arguments(kwargs)))
    network.mapping.w_avg.normal_()  # else a wrong truncation would not show
    return network


@pytest.mark.parametrize(("name", "batch"), [("T", 1), ("R", 3), ("T-conditional", 2), ("R-conditional", 1)])
@torch.no_grad()
def test_onnxruntime_draws_what_torch_draws(tmp_path, name, batch):
    G = generator(name)
    path = tmp_path / "g.onnx"
    error = onnx_model.write(G, path, {"Model": name}, batch)
    assert 0 < error < 1e-5  # float32 rounding, as for the golden numbers
    onnx.checker.check_model(onnx.load(path))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [node.name for node in session.get_inputs()] == (["z", "psi", "c"] if G.c_dim else ["z", "psi"])
    for seed in (11, 12):  # other latents than those of the check
        z = latents(range(seed, seed + batch), G.z_dim)
        c = torch.eye(3)[torch.arange(batch) % 3] if G.c_dim else None
        for psi in (1.0, 0.5, 0.0):
            feeds = {"z": z.numpy(), "psi": np.array(psi, np.float32)} | ({} if c is None else {"c": c.numpy()})
            (found,) = session.run(None, feeds)
            expected = G(z, c, truncation_psi=psi).numpy()
            assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_the_clamp_is_in_the_graph_though_the_example_does_not_reach_it(tmp_path):
    """Eager code looks whether values reach the limit; a graph must not have looked for everybody."""
    kwargs, _ = GENERATORS["T"]
    torch.manual_seed(1)
    G = randomised(Generator(**generator_arguments(kwargs), conv_clamp=2.0))
    onnx_model.write(G, tmp_path / "g.onnx", {})
    nodes = [node.op_type for node in onnx.load(tmp_path / "g.onnx").graph.node]
    assert nodes.count("Clip") >= len(G.synthesis.layers)


def test_the_file_says_what_it_is_and_nothing_of_this_machine(tmp_path):
    path = tmp_path / "g.onnx"
    onnx_model.write(generator("T"), path, {"Model": "fundus/3", "Licence": "non-commercial"})
    content = onnx.load(path)
    notes = {entry.key: entry.value for entry in content.metadata_props}
    assert notes["Model"] == "fundus/3"
    assert notes["Licence"] == "non-commercial"
    assert "synthetic" in notes["Synthetic"]
    assert "largest relative error" in notes["Checked"]
    assert content.opset_import[0].version == onnx_model.OPSET
    for place in (Path(onnx_model.__file__).parents[1], Path(torch.__file__).parents[1], Path.home()):
        assert str(place).encode() not in path.read_bytes()
    assert b".py" not in path.read_bytes()


def test_a_graph_that_draws_something_else_is_not_written(tmp_path, monkeypatch):
    def off(self, z, psi, c=None):
        return 1.001 * self.generator.synthesis(self.generator.mapping(z, c))

    monkeypatch.setattr(onnx_model.Drawing, "forward", off)
    with pytest.raises(CheckpointError, match=r"g.onnx is not written: onnxruntime's images differ from torch's by"):
        onnx_model.write(generator("T"), tmp_path / "g.onnx", {})
    assert list(tmp_path.iterdir()) == []
