"""dvc.yaml, params.yaml, the scripts and the types agree."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dr_platform import lineage
from dr_platform.config import Params

ROOT = Path(__file__).parents[1]
STAGES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
BODIES = {name: stage.get("do", stage) for name, stage in STAGES.items()}
SECTIONS = {field.alias or name for name, field in Params.model_fields.items()}


def outputs(stage: dict[str, Any]) -> dict[str, dict[str, Any]]:
    listed = [entry for kind in ("outs", "plots", "metrics") for entry in stage.get(kind, [])]
    return {path: options for entry in listed for path, options in entry.items()}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_runs_a_script_of_pipelines(name):
    module = re.match(r"python -m (pipelines\.\w+)", BODIES[name]["cmd"])[1]
    assert callable(importlib.import_module(module).main)
    assert len((ROOT / (module.replace(".", "/") + ".py")).read_text().splitlines()) <= 30


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_lists_parameters_that_exist(name):
    for key in BODIES[name]["params"]:
        section, _, field = key.partition(".")
        assert section in SECTIONS
        owner = {(f.alias or n): f for n, f in Params.model_fields.items()}[section].annotation
        assert not field or field in owner.model_fields


@pytest.mark.parametrize("name", STAGES)
def test_where_things_run_is_no_reason_to_run_them_again(name):
    assert not any(key.startswith("site") for key in BODIES[name]["params"])


@pytest.mark.parametrize("name", STAGES)
def test_the_code_a_stage_lists_exists(name):
    for path in BODIES[name].get("deps", []):
        assert not path.startswith("dr_platform") or (ROOT / path).exists()


@pytest.mark.parametrize("name", STAGES)
def test_every_cached_output_names_its_remote(name):
    for path, options in outputs(BODIES[name]).items():
        if options.get("cache", True):
            public = path.startswith(("data/raw/${item}", "data/prepared/public/", "data/classes/public/"))
            assert options["remote"] in (("${item}", "public") if public else ("private",)), path


def test_a_transfer_stage_depends_on_everything_its_stage_does():
    for name in ("prepare", "evaluate", "register"):
        base, transfer = BODIES[name], BODIES[f"transfer-{name}"]
        assert [dep.replace("${prepare.grade}", "${item}") for dep in base["deps"]] == transfer["deps"]
        assert base["params"] == transfer["params"]
    # A transfer is to one grade, so further grades are none of its business.
    wanted = {dep.replace("${prepare.grade}", "${item}") for dep in BODIES["train"]["deps"]}
    assert {dep for dep in wanted if not dep.startswith("data/classes")} < set(BODIES["transfer"]["deps"])
    assert BODIES["classes"]["deps"] == BODIES["prepare"]["deps"]
    assert BODIES["classes"]["params"] == BODIES["prepare"]["params"]


def test_bytecode_is_no_change_of_code():
    ignored = (ROOT / ".dvcignore").read_text().splitlines()
    assert {"__pycache__", ".gitignore", ".gitkeep"} <= set(ignored)
    assert "*.dvc" not in ignored


def test_no_output_can_go_to_the_wrong_remote():
    assert lineage.misrouted(ROOT) == []
