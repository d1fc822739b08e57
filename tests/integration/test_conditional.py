"""A conditional model: two grades in one training, judged and registered for the first, drawing either."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from small_project import assert_one_line_error, drp, prepared_project, run

from dr_platform import checkpoint, road
from dr_platform.config import load_params
from dr_platform.data.loader import load_images
from dr_platform.training.group import Group
from dr_platform.training.plan import CHECKPOINTS, make_plan
from dr_platform.training.report import SilentReporter
from dr_platform.training.worker import work

pytestmark = pytest.mark.xdist_group("conditional")


def silent(done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = prepared_project(
        tmp_path_factory.mktemp("conditional") / "project",
        train={"kimg": 0.16, "condition_on": [2], "posthoc_kimg": 0.032},
    )
    here = road.Project(root, load_params(root))
    road.prepare(here.for_grade(2), silent, as_class=True)
    plan = make_plan(here.params, here.prepared, here.storage)
    work(plan, Group(), SilentReporter())
    road._export(checkpoint.newest(plan.run_directory / CHECKPOINTS), here.model, None)
    road.evaluate(here, silent)
    road.register(here)
    return here


def test_the_plan_counts_both_grades_and_names_them(project):
    plan = make_plan(project.params, project.prepared, project.storage)
    sizes = [len(load_images(root, grade)) for root, grade in ((project.prepared, 1), (project.classes, 2))]
    assert plan.classes == (1, 2)
    assert plan.train_images == sum(sizes)
    assert plan.load().class_sizes == tuple(sizes)


def test_the_checkpoint_knows_its_grades_and_its_report_is_about_the_first(project):
    record = checkpoint.verify(project.model)
    assert (record.grade, record.classes) == (1, (1, 2))
    assert record.generator["c_dim"] == record.discriminator["c_dim"] == 2
    tracker = project.tracker()
    version = tracker.version(project.model_name, 1)
    assert version.tag("classes") == "1, 2"
    first = len(load_images(project.prepared, 1))
    assert tracker.report_of(project.model_name, 1).reference == f"train, {first} images"


def test_a_registered_model_draws_the_grade_asked_for(project):
    for grade in (1, 2):
        done = drp(project.root, "generate", "fundus-dr1-stylegan3/1", "--seeds", "0-3", "--grade", str(grade),
                   "--out", f"grade-{grade}")  # fmt: skip
        assert done.returncode == 0, done.stderr
    done = drp(project.root, "generate", "models/dr1", "--seeds", "0-3", "--out", "default")
    assert done.returncode == 0, done.stderr
    images = {
        name: np.stack([np.array(Image.open(path)) for path in sorted((project.root / name).glob("seed*.png"))])
        for name in ("grade-1", "grade-2", "default")
    }
    assert np.array_equal(images["default"], images["grade-1"])
    assert not np.array_equal(images["grade-2"], images["grade-1"])


def test_a_grade_that_the_model_does_not_draw_is_one_line(project):
    done = drp(project.root, "generate", "fundus-dr1-stylegan3/1", "--seeds", "0", "--grade", "4", "--out", "none")
    assert_one_line_error(done, "draws grades 1, 2, but grade 4 was asked for")
    assert not (project.root / "none").exists()


def test_the_served_model_draws_the_grade_asked_for(project):
    script = """
import sys, mlflow, numpy as np, pandas as pd
mlflow.set_tracking_uri("sqlite:///mlflow.db")
model = mlflow.pyfunc.load_model("models:/fundus-dr1-stylegan3/1")
seeds = pd.DataFrame({"seed": [0, 1]})
one, two, default = (model.predict(seeds, params=p) for p in ({"grade": 1}, {"grade": 2}, {}))
assert np.array_equal(one, default) and not np.array_equal(one, two)
"""
    import sys

    done = run(project.root, sys.executable, "-c", script)
    assert done.returncode == 0, done.stderr


def test_another_average_of_the_training_can_be_drawn_from(project):
    done = drp(project.root, "average", "--length", "0.1")
    assert done.returncode == 0, done.stderr
    directory = done.stdout.partition(":")[0]
    done = drp(project.root, "generate", directory, "--seeds", "0-3", "--out", "averaged-samples")
    assert done.returncode == 0, done.stderr
    assert_one_line_error(drp(project.root, "average", "--length", "0.5"), "give lengths from 0.03 to 0.25")


def test_a_grade_that_was_not_prepared_names_the_command(project, tmp_path):
    params = project.params.model_copy(
        update={"train": project.params.train.model_copy(update={"condition_on": [2, 3]})}
    )
    with pytest.raises(Exception, match=r"condition_on asks for grade 3.*does not exist. Run: dvc repro classes@3"):
        make_plan(params, project.prepared, tmp_path)
