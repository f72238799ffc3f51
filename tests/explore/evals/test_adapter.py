"""Answers of the adapter for lm_eval: those of its own adapter for HuggingFace, on ten tasks; batches, long texts, refusals."""

import json

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import gpt2
from data.tokenizer import char_tokenizer
from model.lm import LM
from tests.model.tiny import perturb, tiny_params

pytest.importorskip("lm_eval", reason="lm_eval is not installed (requirements-evals.txt)")

from lm_eval import evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import HIGHER_IS_BETTER_REGISTRY
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from explore.compare.metrics import sign_of
from explore.evals.adapter import HarnessLM

pytestmark = pytest.mark.extras

NEWLINE, EOS = 198, 50256  # of GPT-2
T = 48  # max_seq_len
WORDS = [
    "the",
    "of",
    "a",
    "house",
    "river",
    "Congress",
    "war",
    "peace",
    "farm",
    "1796",
    "they're",
    "silver-grey",
    "über",
]
DOCS = [
    {
        "q": " ".join(WORDS[i % 5 : i % 5 + 2 + i % 7]),
        "long": " ".join(WORDS[(i + j * j) % 13] for j in range(20 + 9 * i)),
        "choices": [" ".join(WORDS[i % 9 : i % 9 + n]) for n in (1, 3, 2)],
        "answer": i % 3,
    }
    for i in range(7)
]
ACCURACY = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
CHOICE = {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}"}
CHOICE |= {"doc_to_text": "{{q}}", "metric_list": ACCURACY}
LIKELIHOOD = {"output_type": "loglikelihood", "doc_to_text": "{{q}}", "doc_to_target": "{{choices[1]}}"}
LIKELIHOOD |= {"metric_list": [{"metric": "perplexity"}, {"metric": "acc"}]}
ROLLING = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{q}}"}
ROLLING |= {
    "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")]
}
GENERATE = {"output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{choices[0]}}"}
GENERATE |= {"metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]}
TASKS = {
    "choices": CHOICE,
    "choices_without_context": CHOICE | {"doc_to_text": ""},
    "choices_few_shot": CHOICE | {"num_fewshot": 2, "fewshot_split": "test"},
    "choices_long_context": CHOICE | {"doc_to_text": "{{long}}"},
    "last_words": LIKELIHOOD,
    "last_words_trailing_space": LIKELIHOOD | {"doc_to_text": "{{long}} ", "target_delimiter": ""},
    "rolling": ROLLING,
    "rolling_long": ROLLING | {"doc_to_target": "{{long}}"},
    "generate": GENERATE | {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 24}},
    "generate_long_context": GENERATE
    | {"doc_to_text": "{{long}}", "generation_kwargs": {"until": [" a", "the"], "max_gen_toks": 9}},
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks") / "docs.jsonl"
    path.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    data = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
    }
    configs = [{"task": name, **data, **config} for name, config in TASKS.items()]
    loaded = TaskManager(include_defaults=False).load(configs)
    for task in loaded["tasks"].values():
        task.set_config(key="num_fewshot", value=task.get_config("num_fewshot") or 0)
    return loaded


@pytest.fixture(scope="module")
def hf():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=T)).eval()
    perturb(model, 0.2)
    with torch.no_grad():  # greedy texts that end in different ways
        model.transformer.wte.weight[[NEWLINE, EOS]] *= 2
    return model


def answers(model, tasks):
    for task in tasks["tasks"].values():
        task.set_fewshot_seed(1234)
    return evaluate(lm=model, task_dict=tasks, bootstrap_iters=0)


def test_ten_tasks_are_answered_as_by_the_adapter_for_huggingface(hf, gpt2_tokenizer, tasks):
    lm = gpt2.from_hf(hf, gpt2_tokenizer)
    ours = answers(HarnessLM(lm, batch_size=3, add_bos=False), tasks)
    theirs = answers(HFLM(pretrained=hf, tokenizer=gpt2_tokenizer, batch_size=1), tasks)
    assert len(TASKS) == 10
    for name in TASKS:
        for own, other in zip(ours["samples"][name], theirs["samples"][name], strict=True):
            assert own["arguments"] == other["arguments"], name
            if name.startswith("generate"):
                assert own["resps"] == other["resps"], name
            else:  # log-probabilities in nats and, as 0 or 1, whether they are those of the greedy text
                logprobs, expected = (torch.tensor(x["resps"], dtype=torch.float64) for x in (own, other))
                torch.testing.assert_close(logprobs, expected, rtol=1e-5, atol=1e-4)
        for key, value in theirs["results"][name].items():
            assert ours["results"][name][key] == (
                pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
            )
    ends = [sample["resps"][0][0] for sample in theirs["samples"]["generate"]]
    lengths = {len(gpt2_tokenizer(text)["input_ids"]) for text in ends}
    assert len(lengths) > 2, "some greedy texts end before the limit"


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


TOKENIZER = char_tokenizer("abcdefgh ,.\n")
PAIRS = [
    ("ab", " cd"),
    ("", "a"),
    ("abc abc abc abc", "d"),
    ("h", "gfedcba gfedcba gfedcba"),
    ("a b", "c" * 30),
    ("", "ab."),
]


def own_lm(**params):
    torch.manual_seed(0)
    lm = LM(tiny_params(max_seq_len=16, **params), TOKENIZER).double()
    perturb(lm, 0.3)
    return lm


@pytest.mark.parametrize("kind", ["custom-transformer", "torch-gru", "mamba2"])
def test_a_batch_of_different_lengths_is_answered_as_one_by_one(kind):
    lm = own_lm(layer_architecture=kind)
    one, many = (HarnessLM(lm, batch_size=n, add_bos=True) for n in (1, 4))
    for ask, arguments in (
        ("loglikelihood", PAIRS),
        ("loglikelihood_rolling", [(a + b,) for a, b in PAIRS]),
        ("generate_until", [(a, {"until": ["a"], "max_gen_toks": 5}) for a, _ in PAIRS]),
    ):
        together = getattr(many, ask)(requests(ask, arguments))
        single = [getattr(one, ask)(requests(ask, [arg]))[0] for arg in arguments]
        assert len(set(map(str, together))) > 1
        assert together == (
            single if ask == "generate_until" else [pytest.approx(x, rel=1e-9) for x in single]
        )


def test_an_edited_model_scores_texts_as_its_perplexities_do():
    lm = own_lm(positions="rotary", norm="rmsnorm")
    lm.decoder.layers.insert(1, torch.nn.ReLU())
    texts = ["abc", "hg fe. dc", "a, b."]
    found = HarnessLM(lm, batch_size=8, add_bos=True).loglikelihood(
        requests("loglikelihood", [("", t) for t in texts])
    )
    rolling = HarnessLM(lm, batch_size=8, add_bos=True).loglikelihood_rolling(
        requests("r", [(t,) for t in texts])
    )
    for text, (logprob, _), total in zip(texts, found, rolling, strict=True):
        loss, _, _, n_tokens, _ = lm.perplexities([text], before_exp=True)
        assert logprob == pytest.approx(-loss * n_tokens)
        assert total == pytest.approx(logprob)


@torch.no_grad()
def test_bos_begins_a_context_where_it_does_in_training(hf, gpt2_tokenizer):
    model = HarnessLM(gpt2.from_hf(hf, gpt2_tokenizer), batch_size=8, add_bos=True)
    assert model.tok_encode("<|endoftext|>well") == [EOS, 4053], "a text with bos gets no second one"
    lm = own_lm()
    with_bos, without = (HarnessLM(lm, batch_size=8, add_bos=add) for add in (True, False))
    assert with_bos.tok_encode("ab") == TOKENIZER("ab")
    assert without.tok_encode("ab") == TOKENIZER("ab")[1:]
    [(logprob, _)] = with_bos.loglikelihood(requests("loglikelihood", [("ab", " cd")]))
    ids = TOKENIZER("ab cd")
    logprobs = lm(ids).log_softmax(dim=-1)[0, 2:-1].gather(1, torch.tensor(ids[3:])[:, None])
    assert logprob == pytest.approx(float(logprobs.sum()))


@torch.no_grad()
def test_a_text_longer_than_the_model_takes_is_scored_in_windows():
    lm = own_lm()
    text = "abcdefgh ,.abcdefgh ,.abcdefgh ,.abc"
    [(logprob, _)] = HarnessLM(lm, batch_size=2, add_bos=True).loglikelihood(requests("l", [("", text)]))
    ids, expected = TOKENIZER(text), 0.0
    for start, end in ((0, 16), (16, 32), (32, len(ids) - 1)):  # positions of the inputs
        window = ids[max(0, end - 16) : end]
        logprobs = lm(window).log_softmax(dim=-1)[0, start - end :]
        expected += float(logprobs.gather(1, torch.tensor(ids[start + 1 : end + 1])[:, None]).sum())
    assert logprob == pytest.approx(expected)


def test_unknown_characters_are_counted():
    model = HarnessLM(own_lm(), batch_size=2, add_bos=True)
    model.loglikelihood(requests("l", [("", "ab"), ("", "xyab")]))
    assert (model.n_unknown, model.n_tokens) == (2, 6)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_gen_toks": 16}, "16 new tokens, but the model takes 16"),
        ({"max_gen_toks": 3, "do_sample": True, "num_beams": 2}, "num_beams"),
    ],
)
def test_a_generation_that_the_model_cannot_do_is_refused(settings, says):
    model = HarnessLM(own_lm(), batch_size=2, add_bos=True)
    with pytest.raises(ValueError, match=says):
        model.generate_until(requests("g", [("ab", {"until": [], **settings})]))


def test_sampling_settings_are_those_of_the_task():
    model = HarnessLM(own_lm(), batch_size=2, add_bos=True)
    sampled = {"until": [], "max_gen_toks": 10, "do_sample": True, "temperature": 1e-6, "top_p": 0.9}
    greedy = {"until": [], "max_gen_toks": 10, "do_sample": False, "temperature": 3.0}
    texts = model.generate_until(requests("g", [("ab", sampled), ("ab", greedy)]))
    assert texts[0] == texts[1] != ""


def test_a_model_without_text_or_without_next_tokens_is_refused(hf):
    with pytest.raises(ValueError, match="needs a tokenizer with bos or eos, and this model has none"):
        HarnessLM(gpt2.from_hf(hf), batch_size=1, add_bos=True)
    masked = LM(tiny_params(max_seq_len=16, causal=False, objective="masked"), TOKENIZER.with_mask())
    with pytest.raises(ValueError, match="objective='masked' gives no probability"):
        HarnessLM(masked, batch_size=1, add_bos=True)


def test_compare_knows_in_which_direction_a_metric_of_the_harness_is_better():
    assert {name: sign_of(f"{name}[task]") < 0 for name in HIGHER_IS_BETTER_REGISTRY} == dict(
        HIGHER_IS_BETTER_REGISTRY
    )
    assert sign_of("acc,strict[task]") == -1
    assert sign_of("account") == 1
