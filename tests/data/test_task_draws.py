"""Tasks draw from the rng argument only, and every character of a string sample is a token."""

import random

import numpy as np
import pytest
import torch

from data.data_params import DataParams
from data.problems import check_samples
from data.syntheticdata import Task, registered, tasks
from data.task_rows import TaskData


def from_random(rng):
    return "ab" + random.choice("xyz")


def from_numpy(rng):
    return "ab" + str(np.random.randint(9))  # noqa: NPY002


def from_torch(rng):
    return "ab" + str(int(torch.randint(9, ())))


@pytest.mark.parametrize("draw", [from_random, from_numpy, from_torch])
def test_a_task_that_draws_from_a_global_generator_is_refused(draw):
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    with pytest.raises(ValueError, match=r"test_task_draws.py:\d+: dataset_name='mine' .* rng argument only"):
        check_samples(Task("mine", draw, None, None, None), DataParams("mine"))
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert np.random.get_state()[1].tolist() == before[2]  # noqa: NPY002


def test_built_in_tasks_draw_from_their_rng():
    for name, task in tasks.items():
        check_samples(task, DataParams(name))


def test_a_task_without_rng_is_refused_where_it_is_defined():
    n_tasks = len(tasks)
    with pytest.raises(
        TypeError, match=r"test_task_draws.py:\d+: the task 'no_rng' needs the random generator"
    ):

        @registered()
        def no_rng(length: int = 3):
            return "abc"

    assert len(tasks) == n_tasks


def test_spaces_and_newlines_in_a_string_are_tokens(tmp_path):
    task = Task("mine", lambda rng: f"a {rng.randrange(10**6)}\n\u00abb c\u00bb", None, None, None)
    params = DataParams("mine", n_samples=50)
    check_samples(task, params)
    data = TaskData(task, params, tmp_path)
    row = data.marked_row("val", 0)
    assert data.tokenizer.decode(row.ids) == data.samples.sample("val", 0).replace("\u00ab", "").replace(
        "\u00bb", ""
    )
    assert sum(row.scored) == len("b c") + 1
