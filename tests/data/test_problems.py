"""Problems that data_problems finds, and that it leaves nothing behind."""

import pytest

from data import corpora
from data.data_params import DataParams
from data.problems import data_problems
from data.syntheticdata import Task, tasks
from data.tokenizer import TokenizerSpec

CHAR = TokenizerSpec("char")


def check(spec=CHAR, max_seq_len=128, **params):
    if problems := list(data_problems(DataParams(**params), spec, max_seq_len)):
        raise ValueError("\n".join(problems))


@pytest.mark.parametrize("name", sorted(tasks))
def test_every_built_in_task_passes_the_checks(name):
    check(dataset_name=name)


@pytest.mark.parametrize("name", ["sotu", "pydoc"])
@pytest.mark.parametrize("source", ["char", "custom"])
def test_built_in_texts_pass_the_checks(name, source):
    check(TokenizerSpec(source), dataset_name=name)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"dataset_name": "coppy"},
            "dataset_name='coppy' is neither a task nor a text; did you mean 'copy'?",
        ),
        ({"dataset_name": "zzz"}, "there are: adder_board, adder_board_test, associative_recall, "),
        (
            {"dataset_name": "mqar", "task_args": {"n_pair": 4}},
            "task_args={'n_pair': 4}: dataset_name='mqar' has no 'n_pair'; did you mean 'n_pairs'?",
        ),
        ({"dataset_name": "copy", "task_args": {"rng": 4}}, "has no 'rng'"),
        ({"dataset_name": "copy", "task_args": {"max_length": "9"}}, "takes int for 'max_length', not '9'"),
        ({"dataset_name": "copy", "task_args": {"max_length": 9.5}}, "takes int for 'max_length', not 9.5"),
        (
            {"dataset_name": "copy", "task_args": {"max_length": True}},
            "takes int for 'max_length', not True",
        ),
        (
            {"dataset_name": "copy", "task_args": {"max_length": 3}},
            "task_args={'max_length': 3} with dataset_name='copy': 0 <= min_length <= max_length",
        ),
        ({"dataset_name": "copy", "task_args": {"n_letters": 0}}, "n_letters must be from 1 to 26, not 0"),
        ({"dataset_name": "mqar", "task_args": {"n_pairs": 40}}, "mqar needs 4 <= 4 * n_pairs <= length"),
        (
            {"dataset_name": "copy", "task_args": {"max_length": 99}},
            "max_seq_len=128 is too small: dataset_name='copy'",
        ),
        ({"dataset_name": "copy", "n_samples": 2}, "n_samples=2 with debug_crop=None gives 2 samples"),
        ({"dataset_name": "modular_addition", "task_args": {"p": 1}}, "gives 1 samples"),
        (
            {"dataset_name": "sotu", "task_args": {"n_pairs": 4}},
            "task_args={'n_pairs': 4} is for synthetic tasks",
        ),
        (
            {"dataset_name": "sotu", "debug_crop": 2},
            "dataset_name='sotu' with debug_crop=2 has only 2 documents",
        ),
        ({"dataset_name": "openwebtext"}, "too large to download, and debug_crop=None"),
    ],
)
def test_bad_data_params_are_refused_in_one_sentence(params, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 -- the message is what is tested
        check(**params)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whole_numbers_do_for_floats():
    check(dataset_name="mqar", task_args={"power": 1})
    check(dataset_name="maskedcopy", task_args={"p_masked": 0})


@pytest.mark.parametrize("source", ["custom", "gpt2"])
def test_tasks_take_char_only(source):
    with pytest.raises(
        ValueError, match=f"tokenizer_source_name='{source}' is for text, but dataset_name='copy'"
    ):
        check(TokenizerSpec(source), dataset_name="copy")


def test_tokenizers_are_checked(monkeypatch):
    with pytest.raises(ValueError, match="tokenizer_vocab_size=50 must be at least 260"):
        check(TokenizerSpec("custom", 50))
    monkeypatch.setattr("data.tokenizer.hub_answers", lambda: False)
    with pytest.raises(ValueError, match="tokenizer_source_name='gpt3-nowhere' is not on this machine"):
        check(TokenizerSpec("gpt3-nowhere"))


def test_text_out_of_reach(monkeypatch):
    monkeypatch.setattr(corpora, "hub_answers", lambda: False)
    with pytest.raises(ValueError, match=r"dataset_name='tinystories' is not on this machine .*--task=sotu"):
        check(dataset_name="tinystories")


def test_text_for_evaluation_only_cannot_be_trained_on(monkeypatch):
    monkeypatch.setattr(corpora, "read_hub", lambda *_: {"test": iter(["a"])})
    with pytest.raises(
        ValueError, match="dataset_name='lambada' has no split 'train'; there are: test: set train_split"
    ):
        check(dataset_name="lambada")


def test_a_fault_in_a_task_is_no_traceback(monkeypatch):
    def broken(rng, n=1):
        """a"""
        return "a" * (1 // (n - 1))

    monkeypatch.setitem(tasks, "broken", Task("broken", broken, None, None, None))
    with pytest.raises(ValueError, match=r"dataset_name='broken': ZeroDivisionError: "):
        check(dataset_name="broken")


def test_a_fault_that_shows_rarely_is_found_too(monkeypatch):
    drawn = iter(range(10**6))

    def rarely_broken(rng):
        """a"""
        if next(drawn) == 500:
            raise KeyError("x")
        return str(rng.random())

    monkeypatch.setitem(tasks, "rarely_broken", Task("rarely_broken", rarely_broken, None, None, None))
    with pytest.raises(
        ValueError, match=r"dataset_name='rarely_broken': KeyError: 'x' \(test_problems.py:\d+\)"
    ):
        check(dataset_name="rarely_broken")


def test_text_that_is_not_utf_8_is_named(monkeypatch, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "data.txt").write_bytes(b"caf\xe9\n")
    monkeypatch.setenv("WHATIF_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"^dataset_name='mine': .*data.txt is not UTF-8 text"):
        check(dataset_name="mine")


def test_all_problems_are_reported_at_once():
    params = DataParams(dataset_name="copy", task_args={"n_lettrs": 3, "max_length": "9"}, n_samples=2)
    found = list(data_problems(params, TokenizerSpec("custom"), 128))
    for problem, part in zip(
        found, ["source_name='custom'", "no 'n_lettrs'", "takes int", "gives 2 samples"], strict=True
    ):
        assert part in problem
    params = DataParams(dataset_name="sotu", task_args={"n": 1}, debug_crop=2)
    found = list(data_problems(params, TokenizerSpec("custom", 50), 128))
    for problem, part in zip(found, ["vocab_size=50", "task_args={'n': 1}", "only 2 documents"], strict=True):
        assert part in problem


def test_arguments_without_default(monkeypatch):
    def counted(rng, n: int, how, *, end: str = "."):
        """aa."""
        return "".join(rng.choices("abcdefgh", k=n)) + end

    monkeypatch.setitem(tasks, "counted", Task("counted", counted, None, None, None))
    check(dataset_name="counted", task_args={"n": 9, "how": [1]})
    for args, message in (
        ({"how": 1}, "task_args={'how': 1}: dataset_name='counted' needs a value for 'n'"),
        ({"n": "9", "how": 1}, "takes int for 'n', not '9'"),
    ):
        with pytest.raises(ValueError, match=message):
            check(dataset_name="counted", task_args=args)


@pytest.mark.parametrize("n_samples", [2_000, 100_000])
def test_too_few_different_samples(n_samples):
    params = {"dataset_name": "copy", "task_args": {"min_length": 1, "max_length": 5, "n_letters": 2}}
    check(**params, n_samples=100)  # 62 exist, 10 are held out
    with pytest.raises(ValueError, match=f"has too few different samples: n_samples={n_samples}"):
        check(**params, n_samples=n_samples)
    with pytest.raises(ValueError, match="has too few different samples"):  # all are held out
        check(dataset_name="parity", task_args={"max_length": 1}, n_samples=20)


def test_every_different_row_of_a_finite_task_counts(monkeypatch):
    rows = Task("rows", lambda rng: "ab", None, None, lambda: ["ab", "a«b»", "ba"])
    monkeypatch.setitem(tasks, "rows", rows)
    with pytest.raises(ValueError, match="gives 2 samples"):
        check(dataset_name="rows")


def test_a_missing_data_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "REPOSITORY", tmp_path / "a" / "b")
    monkeypatch.setenv("WHATIF_DATA", str(tmp_path / "gone"))
    message = f"nor a text, and the data folder {tmp_path / 'gone'} does not exist; did you mean 'text8'"
    with pytest.raises(ValueError, match=message):
        check(dataset_name="text")
    (tmp_path / "data-path.txt").write_text("\n")
    with pytest.raises(ValueError, match=f"nor a text, and {tmp_path / 'data-path.txt'} is empty; did"):
        check(dataset_name="text")
    (tmp_path / "data-path.txt").write_text("elsewhere")
    with pytest.raises(ValueError, match=f"the data folder {tmp_path / 'elsewhere'} does not exist"):
        check(dataset_name="text")
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(ValueError, match="neither a task nor a text; did you mean 'text8'"):
        check(dataset_name="text")


@pytest.mark.parametrize("token", ["a b", "", "<bos>", 7])
def test_tokens_must_be_words(token, monkeypatch):
    monkeypatch.setitem(tasks, "odd", Task("odd", lambda rng: ["a", token], None, None, None))
    with pytest.raises(ValueError, match=f"dataset_name='odd': {token!r} is not a valid token"):
        check(dataset_name="odd")


def test_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(dataset_name="copy")
    check(dataset_name="sotu")
    assert not list(tmp_path.iterdir())
