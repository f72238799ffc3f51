"""The headline numbers, each against a computation of its own."""

import math
import random
import time
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from data.corpora import corpora
from data.data_params import DataParams
from model.generation.sampling import generate
from model.lm import LM
from model.model_params import ModelParams
from model.perplexity import NOT_SCORED
from tests.train.little_run import CALL, train
from train.data import make_data
from train.evaluation import Evaluation
from train.grid.params import Params
from train.launch.tables import RESULT_COLUMNS
from train.saving.outcome import Ending, Outcome
from train.train_params import TrainParams

TEXT = DataParams(dataset_name="pydoc", debug_crop=10, val_pct=30.0, packed=False)
COPY = DataParams(dataset_name="copy", n_samples=400, val_pct=10.0, task_args={"max_length": 6})
MODEL = ModelParams(dim=16, n_layers=1, n_heads=2, max_seq_len=32)


def evaluate(data, lm, b=5):
    evaluation = Evaluation(lm.eval(), data)
    for batch in data.val_dataloader(b):
        evaluation.add(batch, TrainParams())
    return evaluation.result()


@pytest.fixture
def text(tmp_path):
    torch.manual_seed(0)
    data = make_data(TEXT, MODEL, tmp_path)
    return data, LM(MODEL, tokenizer=data.tokenizer)


def test_validation_loss_is_the_mean_over_tokens_whatever_the_batches(text):
    data, lm = text
    mean = lm.perplexities(data.val_dataloader(3), before_exp=True)[0]
    assert evaluate(data, lm, b=5)["val_loss:main"] == pytest.approx(mean, rel=1e-5)
    assert evaluate(data, lm, b=1)["val_loss:main"] == pytest.approx(mean, rel=1e-5)


def test_bits_per_byte_are_all_bits_over_all_bytes(text):
    data, lm = text
    *_, n_tokens, losses = lm.perplexities(data.val_dataloader(3), before_exp=True, per_token=True)
    bits = losses[losses != -1].double().sum().item() / math.log(2)
    documents = [lm.tokenizer.decode(row) for row in joined_documents(data)]
    n_bytes = sum(len(document.encode()) for document in documents)
    assert evaluate(data, lm)["val_bits_per_byte"] == pytest.approx(bits / n_bytes, rel=1e-3)
    assert n_tokens > 1000


def test_a_tokenizer_that_sees_nothing_explains_nothing(monkeypatch, tmp_path):
    """97 % of the bytes are one unknown token: easy to predict, and no bit of them is known."""
    letters = random.Random(0).choices("bcdefghijklmnopq", k=200 * 64)
    documents = ["a" * 64] * 200
    val = ["a" + "".join(letters[i : i + 63]) for i in range(0, 200 * 63, 63)]
    monkeypatch.setitem(corpora, "letters", lambda: iter(documents))
    monkeypatch.setattr(
        "data.text_rows.read_corpus", lambda *_: {"train": documents, "val": val, "test": val}
    )
    params = DataParams(dataset_name="letters")
    data = make_data(params, MODEL, tmp_path)
    lm = LM(MODEL, tokenizer=data.tokenizer)
    with torch.no_grad():  # knows that all tokens are unknown ones
        lm.unembed.weight.zero_()
        lm.unembed.weight[data.tokenizer.unk] = 1
    lm.decoder.norm = Ones(MODEL.dim)
    result = evaluate(data, lm)
    entropy = 63 / 64 * math.log2(16)
    assert result["val_loss:main"] / math.log(2) < 1
    assert result["val_bits_per_byte"] > entropy
    assert result["val_bits_per_byte"] == pytest.approx(
        8 * 63 / 64 + result["val_loss:main"] / math.log(2) * 65 / 64, rel=1e-3
    )


def test_the_share_of_unknown_bytes_is_a_number_of_the_run(tmp_path, monkeypatch):
    documents = ["abcde" * 20] * 9
    monkeypatch.setitem(corpora, "letters", lambda: iter(documents))
    split = {"train": documents, "val": ["abcd\u00e9"] * 2, "test": []}
    monkeypatch.setattr("data.text_rows.read_corpus", lambda *_: split)
    call = CALL._replace(out=tmp_path)
    _, outcome = train(Params(DataParams(dataset_name="letters"), TrainParams(), MODEL), call)
    assert outcome.values["unknown_bytes"] == pytest.approx(2 / 6)
    assert RESULT_COLUMNS["unknown\nbytes"].text(outcome) == "33.33%"
    for values in ({"unknown_bytes": 0.0}, {}):
        assert RESULT_COLUMNS["unknown\nbytes"].text(Outcome(Ending.FINISHED, values=values)) == "-"


class Ones(torch.nn.Module):
    """In the final norm's place: the same for every token."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def forward(self, x):
        return torch.full_like(x, 20 / self.dim)


def joined_documents(data):
    """The tokens of the validation rows, padding and specials out."""
    for batch in data.val_dataloader(8):
        for ids, real in zip(batch["x_indices"], batch["mask"], strict=True):
            # The first token of a row was the last of the row before, or bos.
            yield ids[1:][real[1:]].tolist()


def test_accuracy_counts_scored_positions_only(tmp_path):
    torch.manual_seed(0)
    data = make_data(COPY, MODEL, tmp_path)
    lm = LM(MODEL, tokenizer=data.tokenizer)
    right = scored = 0
    for batch in data.val_dataloader(7):
        ids, chosen = batch["x_indices"], batch["target_mask"]
        guessed = lm(ids[:, :-1]).argmax(dim=-1)
        right += int(((guessed == ids[:, 1:]) & chosen[:, 1:]).sum())
        scored += int(chosen[:, 1:].sum())
    assert evaluate(data, lm)["val_accuracy"] == pytest.approx(right / scored)


class Copier(LM):
    """Knows the answer: the word again, and then the end; spoilt, a letter of it is wrong."""

    spoilt = False

    def forward(self, x, **_):
        colon, (B, T) = self.tokenizer.ids_of(":")[0], x.shape
        logits = torch.zeros(B, T, self.n_tokens)
        for i, row in enumerate(x.tolist()):
            end = row.index(colon)
            answer = [*row[1:end], self.tokenizer.eos]
            if self.spoilt:
                answer[0] = colon
            for j, token in enumerate(answer):
                if end + 1 + j < T:
                    logits[i, end + 1 + j, token] = 9.0
        return logits


def test_exact_match_is_that_of_whole_answers(tmp_path):
    data = make_data(COPY, MODEL, tmp_path)
    lm = Copier(MODEL, tokenizer=data.tokenizer)
    assert evaluate(data, lm)["val_exact_match"] == 1.0
    lm.spoilt = True
    assert evaluate(data, lm)["val_exact_match"] == 0.0
    assert evaluate(data, lm)["val_accuracy"] > 0.3, "though most letters are right"


class HalfCopier(Copier):
    """Knows the answer to words that begin with a letter of the first half of the alphabet."""

    def forward(self, x, **_):
        logits = super().forward(x)
        knows = x[:, 1] < self.tokenizer.ids_of("n")[0]
        return torch.where(knows[:, None, None], logits, logits.roll(1, -1))


@pytest.mark.parametrize("packed", [False, True])
def test_exact_match_of_one_right_answer_equals_greedy_generation_over_all_samples(packed, tmp_path):
    data = make_data(COPY, MODEL, tmp_path)
    lm = HalfCopier(MODEL, tokenizer=data.tokenizer).eval()
    samples = [sample.partition("«") for sample in data.data.split("val")]
    prompts = [lm.tokenizer(prompt) for prompt, _, _ in samples]
    rows = generate(lm, prompts, max_new_tokens=12, temperature=0)
    answers = [lm.tokenizer.decode(row[len(prompt) :]) for row, prompt in zip(rows, prompts, strict=True)]
    right = [answer + "»" == target for answer, (_, _, target) in zip(answers, samples, strict=True)]
    assert 0.2 < sum(right) / len(right) < 0.8
    if not packed:
        assert evaluate(data, lm)["val_exact_match"] == pytest.approx(sum(right) / len(right))
        return
    # Every model here knows one answer per row, so compare packed rows by a model that knows none.
    model = replace(MODEL, max_seq_len=64)
    data = make_data(replace(COPY, packed=True, n_samples=410), model, tmp_path)
    assert data.rows("val").per_row > 1
    assert len(data.rows("val")) * data.rows("val").per_row > 41
    assert evaluate(data, LM(model, tokenizer=data.tokenizer))["val_exact_match"] == 0.0


def test_several_right_answers_are_judged_by_the_check(tmp_path, monkeypatch):
    data = make_data(COPY, MODEL, tmp_path)
    lm = Copier(MODEL, tokenizer=data.tokenizer)
    lm.spoilt = True
    data.task = data.task._replace(check=lambda prompt, answer: answer.startswith(":"))
    assert evaluate(data, lm)["val_exact_match"] == 1.0


@pytest.mark.slow
@pytest.mark.ci
def test_tokens_per_second_are_those_of_training_alone(tmp_path, monkeypatch):
    real = Evaluation.result

    def slow(self):
        time.sleep(3)
        return real(self)

    monkeypatch.setattr(Evaluation, "result", slow)
    call = CALL._replace(out=tmp_path)
    started = time.perf_counter()
    run, outcome = train(Params(COPY, TrainParams(batch_size=64, val_every=3), MODEL), call)
    wall = time.perf_counter() - started
    assert run.train_seconds < wall - 2 * 3
    assert outcome.values["tokens_per_second"] == pytest.approx(run.n_tokens / run.train_seconds)


def smoothed(z, y):
    return F.cross_entropy(z.flatten(0, 1), y.flatten(), ignore_index=NOT_SCORED, label_smoothing=0.2)


def in_place(z, y):
    y[:, ::2] = NOT_SCORED
    return F.cross_entropy(z.div_(3).flatten(0, 1), y.flatten(), ignore_index=NOT_SCORED)


EDITS_OF_THE_LOSS = {
    "label smoothing": lambda z, y: {"main": smoothed(z, y)},
    "z-loss": lambda z, y: {
        "main": F.cross_entropy(z.flatten(0, 1), y.flatten(), ignore_index=NOT_SCORED),
        "z": z.logsumexp(-1).square().mean(),
    },
    "targets and logits changed in place": lambda z, y: {"main": in_place(z, y)},
    "another loss altogether": lambda z, y: {"rank": z.square().mean()},
}


@pytest.mark.parametrize("edit", EDITS_OF_THE_LOSS)
def test_the_validation_loss_is_out_of_reach_of_edits_to_get_losses(edit, text, monkeypatch):
    data, lm = text
    plain = evaluate(data, lm)
    losses_of = EDITS_OF_THE_LOSS[edit]

    def get_losses(self, batch, train_params, loss_requests=None, xyz=None):
        _, y, z = xyz or self.get_batch_xyz(batch, loss_requests, train_params)
        return losses_of(z, y), len(y)

    monkeypatch.setattr(LM, "get_losses", get_losses)
    edited = evaluate(data, lm)
    assert edited | plain == edited, "bitwise"
    beside = {"z-loss": {"val_loss:z"}, "another loss altogether": {"val_loss:rank", "val_loss:trained"}}
    assert edited.keys() - plain == beside.get(edit, {"val_loss:trained"})
    assert all(math.isfinite(loss) for loss in edited.values())


def test_the_training_loss_on_validation_data_is_reported_beside_the_validation_loss(text, monkeypatch):
    data, lm = text
    plain, original = evaluate(data, lm), LM.get_losses

    def get_losses(self, *args, **kwargs):
        losses, n = original(self, *args, **kwargs)
        return {"main": 2 * losses["main"], "extra": 3 * losses["main"]}, n

    monkeypatch.setattr(LM, "get_losses", get_losses)
    edited = evaluate(data, lm)
    assert edited["val_loss:extra"] == pytest.approx(3 * plain["val_loss:main"], rel=1e-6)
    assert edited["val_loss:trained"] == pytest.approx(5 * plain["val_loss:main"], rel=1e-6)


def test_the_training_loss_on_validation_data_is_weighted_by_scored_tokens(text, monkeypatch):
    """An edit that scores the tokens at even ids only: their mean over the split, not a mean of means by batch."""
    data, lm = text
    assert lm.tokenizer.n_tokens > 10

    def even(batch, self):
        _, y, z = LM.get_batch_xyz(self, batch)
        return y.masked_fill(y % 2 == 1, NOT_SCORED), z

    def get_losses(self, batch, train_params, loss_requests=None, xyz=None):
        y, z = even(batch, self)
        self.n_scored = (y != NOT_SCORED).sum()
        total = F.cross_entropy(z.flatten(0, 1), y.flatten(), ignore_index=NOT_SCORED, reduction="sum")
        return {"main": total / self.n_scored}, len(y)

    monkeypatch.setattr(LM, "get_losses", get_losses)
    pairs = [even(batch, lm.eval()) for batch in data.val_dataloader(5)]
    losses = [F.cross_entropy(z[y != NOT_SCORED], y[y != NOT_SCORED], reduction="none") for y, z in pairs]
    expected = torch.cat(losses).double().mean().item()
    assert expected != pytest.approx(sum(loss.mean().item() for loss in losses) / len(losses), rel=1e-4)
    for b in (1, 5):
        assert evaluate(data, lm, b)["val_loss:trained"] == pytest.approx(expected, rel=1e-5)
