"""The code of a run: edits that can change its result are seen, others are not."""

import gzip
import shutil
from pathlib import Path

import pytest

from common.repository import REPOSITORY
from train.grid.params import SECTIONS, Params
from train.saving.code import Code, changed_files, differing_files, read_kept_text, read_texts

TASK = '''

@registered
def twice(rng: random.Random) -> str:
    """ab::«abab».   The word twice."""
    word = letters(rng, 1, 5)
    return f"{word}::«{word}{word}»."
'''


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    for folder in ("common", "data", "model", "train", "explore", "learn"):
        shutil.copytree(REPOSITORY / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return root


@pytest.fixture
def edit(unchanged):
    """Function that replaces text in a file. The files are as before after the test."""
    before: dict[Path, str | None] = {}

    def replace(name: str, old: str, new: str) -> None:
        path = unchanged / name
        text = path.read_text(encoding="utf-8") if path.exists() else None
        before.setdefault(path, text)
        assert text is None or old in text
        path.write_text((text or "").replace(old, new, 1) if text is not None else new, encoding="utf-8")

    yield replace
    for path, text in before.items():
        path.unlink() if text is None else path.write_text(text, encoding="utf-8")


def values(**changes) -> dict:
    data, train, model = (section() for section in SECTIONS.values())
    return Params(data, train, model).changed(**{"dataset_name": "copy"} | changes).flat()


def changed(unchanged: Path, edit, *edits: tuple[str, str, str], **fields) -> set[str]:
    """Return the files whose hashes differ after the edits, for a run with these fields."""
    before = Code.read(unchanged).hashes(values(**fields))
    for one in edits:
        edit(*one)
    after = Code.read(unchanged).hashes(values(**fields))
    assert (differing_files(before, after) == []) == (before == after)
    return set(changed_files(before, after))


ATTENTION = "model/transformer/attention.py"
SCORES = (
    "/ (math.sqrt(K) * self.temperature)) @ k_BHSK.mT",
    "/ (math.sqrt(K) * self.temperature)) @ k_BHSK.mT * 1.0001",
)
KEPT = {
    "a task": [("data/syntheticdata.py", "\n\n\n@registered\ndef copy(", TASK + "\n\n@registered\ndef copy(")],
    "another task": [("data/syntheticdata.py", "«{backwards(word)}»", "«{backwards(word)}»!")],
    "a docstring": [(ATTENTION, '"""Return softmax', '"""Give softmax')],
    "a comment and layout": [(ATTENTION, "        # Edit scores_BHTS here", "\n        # Change scores_BHTS here")],
    "a log line": [("train/trainer.py", 'log.warning(f"{why}; training', 'log.warning(f"{why}. Training')],
    "a new log line": [("train/run.py", '    """Train, from', '    log.info("Training begins")\n    """Train, from')],
    "launch": [("train/launch/plan.py", "MAX_SAID = ", "MAX_SAID = 1 + ")],
    "saving": [("train/saving/run_folder.py", "MAX_LOOK = ", "MAX_LOOK = 1 + ")],
    "explore": [("explore/plots.py", "MAX_TOKEN_CHARS = ", "MAX_TOKEN_CHARS = 1 + ")],
    "pretrained models": [("model/hf/configs.py", "HF_MAX_POSITIONS = ", "HF_MAX_POSITIONS = '' + ")],
    "a student's layer": [("learn/layer.py", "SOFTMAX = {", "SOFTMAX = {None, ")],
    "a further metric": [("train/final_metrics.py", "\nfinal_metrics.add_lazy(", '\nfinal_metrics.add_lazy("mine", "explore.mine")\nfinal_metrics.add_lazy(')],
    "a metric": [("explore/claim_metrics.py", "N_KEY_FREQUENCIES = 6", "N_KEY_FREQUENCIES = 5")],
    "another optimizer": [("train/optimizers.py", "return torch.optim.SGD(", "return torch.optim.SGD(2 * ")],
    "a file that nobody imports": [("model/mine.py", "", "x = 1")],
}  # fmt: skip
CHANGED = {
    "scores": ([(ATTENTION, *SCORES)], {}, {ATTENTION}),
    "the task": ([("data/syntheticdata.py", 'f"{word}::«{word}»"', 'f"{word}:«{word}»"')], {}, {"data/syntheticdata.py"}),
    "a function of tasks": ([("data/syntheticdata.py", "def letters(", "X = 1\n\n\ndef letters(")], {}, {"data/syntheticdata.py"}),
    "a default": ([("train/train_params.py", "betas: ", "more: int = 1  # of mine\n    betas: ")], {}, {"train/train_params.py"}),
    "a norm that other code calls": (
        [("model/transformer/norms.py", "return nn.LayerNorm(width,", "return nn.LayerNorm(1 * width,")],
        {"norm": "rmsnorm"},
        set(),
    ),
    "pretrained models": (
        [("model/hf/configs.py", "HF_MAX_POSITIONS = ", "HF_MAX_POSITIONS = '' + ")],
        {"from_pretrained": "gpt2"},
        {"model/hf/configs.py"},
    ),
    "a student's layer": (
        [("learn/layer.py", "SOFTMAX = {", "SOFTMAX = {None, ")],
        {"layer_architecture": ("student", "custom-transformer")},
        {"learn/layer.py"},
    ),
    "a file imported where it is used": (
        [("model/mine.py", "", "factor = 2"), (ATTENTION, "        K = q", "        from model.mine import factor\n\n        K = q")],
        {},
        {ATTENTION, "model/mine.py"},
    ),
    "a relative import": (
        [("model/transformer/mine.py", "", "factor = 2"), (ATTENTION, "import math\n", "import math\n\nfrom .mine import factor\n")],
        {},
        {ATTENTION, "model/transformer/mine.py"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("edits", KEPT.values(), ids=KEPT)
def test_what_cannot_change_a_run_keeps_its_code(unchanged, edit, edits):
    assert changed(unchanged, edit, *edits) == set()


@pytest.mark.parametrize(("edits", "fields", "files"), CHANGED.values(), ids=CHANGED)
def test_what_can_change_a_run_changes_its_code(unchanged, edit, edits, fields, files):
    assert changed(unchanged, edit, *edits, **fields) == files


def test_an_edit_of_the_new_file_counts(unchanged, edit):
    edit(ATTENTION, "        K = q", "        from model.mine import factor\n\n        K = q")
    edit("model/mine.py", "", "factor = 2")
    assert changed(unchanged, edit, ("model/mine.py", "2", "3")) == {"model/mine.py"}


def test_a_task_that_another_one_calls_counts(unchanged, edit):
    edit(
        "data/syntheticdata.py",
        "\n\n\n@registered\ndef copy(",
        TASK + "\n\n@registered\ndef copy(",
    )
    edit("data/syntheticdata.py", "    word = letters(rng, 1, 5)", "    word = backwards(rng)")
    one = ("data/syntheticdata.py", "def twice", "def twice_")
    assert changed(unchanged, edit, one, dataset_name="copy") == set()


def test_kept_text_is_read_back_and_nothing_else(unchanged, tmp_path):
    code = Code.read(unchanged)
    code.keep(tmp_path)
    code.keep(tmp_path)
    texts = read_kept_text(tmp_path, code.text_id)
    assert texts == {name: (unchanged / name).read_text(encoding="utf-8") for name in code.files}
    [kept] = (tmp_path / "code").iterdir()
    (tmp_path / f"{'0' * 20}.json.gz").write_bytes(kept.read_bytes())
    assert read_kept_text(tmp_path, "../" + "0" * 20) is None
    read_texts.cache_clear()
    kept.write_bytes(kept.read_bytes()[:-9])
    assert read_kept_text(tmp_path, code.text_id) is None
    kept.write_bytes(gzip.compress(b'{"main.py": 1}'))
    assert read_kept_text(tmp_path, code.text_id) is None
