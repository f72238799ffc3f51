"""Adapter of lm_eval, EleutherAI's evaluation harness: an LM answers its requests. Only this file imports lm_eval.

Shape suffixes:  B batch  T position  V vocabulary
"""

import json
import logging
import os
from collections.abc import Sequence
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("DISABLE_MULTIPROC", "1")  # no further processes for standard errors

import torch
from lm_eval import evaluate
from lm_eval.api import task as harness_task
from lm_eval.api.group import Group
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import Task
from lm_eval.config.group import AggMetricConfig
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from common.text import nearest
from data.dataloader import batched
from data.tokenizer import Tokenizer
from model.generation.sampling import TokenSampler, eval_mode, generate_rows
from model.lm import LM
from model.perplexity import pad_ids

logging.getLogger("lm_eval").setLevel(logging.ERROR)
harness_task.tqdm = partial(tqdm, disable=True)  # else a bar for each subtask, before any work is done

MINIMAL_PAIRS = Path(__file__).with_name("minimal_pairs")
N_BOOTSTRAP = 1_000  # resamples for standard errors that have no formula
FEWSHOT_SEED = 1234  # the harness's own
DEFAULT_NEW_TOKENS = 256  # of a task that sets no limit, as in the harness's own adapters
SAMPLER_SETTINGS = {  # our names of settings of transformers' `generate`, which tasks use
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "nucleus",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
}


@cache
def task_manager(with_defaults: bool) -> TaskManager:
    """Return the harness's manager of tasks. To index its own tasks, `with_defaults`, takes seconds."""
    return TaskManager(include_defaults=with_defaults)


class UnknownTask(LookupError):
    """Error if the harness has no task of a name."""


def load_tasks(names: Sequence[str]) -> dict[str, Task | Group]:
    """Load tasks and groups of the harness by name, "minimal_pairs", or YAML files of tasks by path. Data may be downloaded.

    Return them by their own names. Raise UnknownTask for an unknown name. Other errors come from the library `datasets`.
    """
    local = [name for name in names if name == MINIMAL_PAIRS.name or Path(name).is_file()]
    manager = task_manager(len(local) < len(names))
    found: dict[str, Task | Group] = {}
    for name in names:
        if name not in local and name not in manager.all_tasks:
            close = nearest(name, [MINIMAL_PAIRS.name, *manager.all_tasks])
            hint = f"did you mean {close[0]!r}?" if close else "`lm_eval ls tasks` lists them"
            raise UnknownTask(f"lm_eval has no task {name!r}; {hint}")
        loaded = manager.load([minimal_pairs(manager) if name == MINIMAL_PAIRS.name else name])
        children = {child for group in loaded["group_map"].values() for child in group}
        found |= {
            own: one for own, one in (loaded["groups"] or loaded["tasks"]).items() if own not in children
        }
    return found


def minimal_pairs(manager: TaskManager) -> Group:
    """Return a group of tasks in the form of BLiMP (Warstadt et al. 2020, arXiv:1912.00582), one for each file of pairs."""
    accuracy = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
    configs = [
        {
            "task": f"{MINIMAL_PAIRS.name}_{path.stem}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(path)}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "",
            "doc_to_choice": "{{[sentence_good, sentence_bad]}}",
            "doc_to_target": 0,
            "target_delimiter": "",  # a sentence begins a text, as in training
            "metric_list": [accuracy],
        }
        for path in sorted(MINIMAL_PAIRS.glob("*.jsonl"))
    ]
    group = Group(MINIMAL_PAIRS.name, aggregate_metric_list=[AggMetricConfig("acc", weight_by_size=False)])
    for task in manager.load(configs)["tasks"].values():
        group.add(task)
    return group


def run_tasks(
    model: "HarnessLM",
    tasks: Sequence[Task | Group],
    limit: int | None = None,
    num_fewshot: int | None = None,
) -> dict[str, Any]:
    """Return the results of the harness for `model`, which hold those of every subtask.

    `limit` is the number of documents of each task. `num_fewshot` is the number of examples in a context, except where a task
    is defined without any; None: as the task defines.
    """
    loaded = task_manager(False).load([*tasks])
    for task in loaded["tasks"].values():
        defined = task.get_config("num_fewshot")
        chosen = defined if num_fewshot is None or defined == 0 else num_fewshot
        task.set_config(key="num_fewshot", value=chosen or 0)
        task.set_fewshot_seed(FEWSHOT_SEED)
    found = evaluate(lm=model, task_dict=loaded, limit=limit, bootstrap_iters=N_BOOTSTRAP, log_samples=False)
    return dict(found or {})


class ScoredWindow(NamedTuple):
    """Tokens to score, and those before them."""

    context: list[int]
    scored: list[int]


class Score(NamedTuple):
    """The log-probability of tokens in nats, and whether each is the most probable one."""

    logprob: float
    is_greedy: bool


class HarnessLM(TemplateLM):
    """A model of the harness that answers with `lm`.

    With `add_bos` every text begins with bos, as in training. Otherwise only an empty context is replaced by bos, as in the
    harness's adapter for HuggingFace models that add none, such as GPT-2. Contexts that are too long lose their first
    tokens, as there. Scored texts longer than `max_seq_len` are split into windows without overlap; the adapter for
    HuggingFace does so for `loglikelihood_rolling` only. Raise ValueError for a model that predicts hidden tokens or has no
    tokenizer.
    """

    def __init__(self, lm: LM, *, batch_size: int, add_bos: bool) -> None:
        super().__init__()
        if lm.model_params.hides_tokens:
            raise ValueError(
                f"objective={lm.model_params.objective!r} gives no probability of a text; lm_eval needs objective='next-token'"
            )
        if not isinstance(lm.tokenizer, Tokenizer) or not lm.tokenizer.start:
            raise ValueError(
                "lm_eval needs a tokenizer with bos or eos, and this model has none: gpt2.from_hf(hf_model, tokenizer)"
            )
        self.lm = lm
        self.text_tokenizer = lm.tokenizer
        self.batch_size = batch_size
        self.add_bos = add_bos
        self.max_length = lm.model_params.max_seq_len
        self.n_tokens, self.n_unknown = 0, 0  # in all texts so far

    @property
    def eot_token_id(self) -> int | None:
        return self.text_tokenizer.eos

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without a context."""
        return self.text_tokenizer.start[0]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Return the ids of a text. None for `add_special_tokens` stands for `add_bos`. Special tokens are parsed."""
        tokenizer = self.text_tokenizer
        [ids] = tokenizer.encode_batch([string], parse_special=True)
        self.n_tokens += len(ids)
        self.n_unknown += 0 if tokenizer.unk is None else ids.count(tokenizer.unk)
        wants_bos = self.add_bos if add_special_tokens is None else add_special_tokens
        begins_with_bos = ids[:1] == tokenizer.begin
        return [*tokenizer.begin, *ids] if wants_bos and not begins_with_bos else ids

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Return the log-probability of each whole text. Its bos is a context and is not scored."""
        texts = [self.tok_encode(request.args[0], add_special_tokens=False) for request in requests]
        scores = self._loglikelihood_tokens([(("", ""), [self.prefix_token_id], ids) for ids in texts])
        return [score.logprob for score in scores]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: object
    ) -> list[Score]:
        windows = [self.windows(context, scored) for _, context, scored in requests]
        scores = iter(self.scores([window for own in windows for window in own]))
        return [sum_of_scores([*islice(scores, len(own))]) for own in windows]

    def windows(self, context: list[int], scored: list[int]) -> list[ScoredWindow]:
        """Return `scored` in windows that the model can take, if it is too long for one. No token is scored twice."""
        if len(scored) <= self.max_length:
            return [ScoredWindow(context, scored)] if scored else []
        rolling = get_rolling_token_windows(scored, context[-1], self.max_length, context_len=1)
        return [ScoredWindow(*make_disjoint_window(pair)) for pair in rolling]

    @torch.no_grad()
    def scores(self, windows: Sequence[ScoredWindow]) -> list[Score]:
        """Return the score of each window. Windows of similar length share a batch, padded on the right."""
        rows = [[*context, *scored][-(self.max_length + 1) : -1] for context, scored in windows]
        batches = batches_by_length(rows, self.batch_size)
        found: dict[int, Score] = {}
        with eval_mode(self.lm):
            for batch in tqdm(batches, desc="scoring texts", leave=False, disable=None):
                z_BTV = self.logits([rows[i] for i in batch])
                for i, z_TV in zip(batch, z_BTV, strict=True):
                    start, end = len(rows[i]) - len(windows[i].scored), len(rows[i])
                    found[i] = score_of_tokens(z_TV[start:end], windows[i].scored)
        return [found[i] for i in range(len(rows))]

    def logits(self, rows: Sequence[list[int]]) -> torch.Tensor:
        """Return the logits of rows of different lengths, [B, T, V]."""
        ids_BT = pad_ids(rows, self.text_tokenizer.pad)
        real_BT = torch.arange(ids_BT.shape[1]) < torch.tensor([[len(row)] for row in rows])
        mask_BT = None if real_BT.all() else real_BT.to(self.lm.device)
        return self.lm(ids_BT.to(self.lm.device), mask=mask_BT)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Return a continuation of each context, up to a stop text, eos, or the largest number of new tokens."""
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        texts: dict[int, str] = {}
        for settings, group in groups.items():
            prompts = [self.tok_encode(requests[i].args[0]) for i in group]
            batches = batches_by_length(prompts, self.batch_size)
            for batch in tqdm(batches, desc="generating texts", leave=False, disable=None):
                generated = self.generate_texts([prompts[place] for place in batch], json.loads(settings))
                texts |= {group[place]: text for place, text in zip(batch, generated, strict=True)}
        return [texts[i] for i in range(len(requests))]

    def generate_texts(self, prompts: Sequence[list[int]], settings: dict[str, Any]) -> list[str]:
        """Return the texts by which prompts are continued. `settings` are the `generation_kwargs` of a task."""
        tokenizer = self.text_tokenizer
        wanted: dict[str, Any] = {**normalize_gen_kwargs(settings, DEFAULT_NEW_TOKENS)}
        n_new, until = wanted.pop("max_gen_toks"), wanted.pop("until")
        room = self.max_length - n_new
        if room <= 0:
            raise ValueError(
                f"the task asks for {n_new} new tokens, but the model takes {self.max_length}: set max_gen_toks lower"
            )
        eos = None if tokenizer.eos is None else tokenizer.token(tokenizer.eos)
        stops = handle_stop_sequences(until, eos)
        stop_ids = [ids[0] for ids in tokenizer.encode_batch(stops, parse_special=True) if len(ids) == 1]
        cut = [(prompt or tokenizer.start)[-room:] for prompt in prompts]
        lengths = [len(prompt) + n_new for prompt in cut]
        rows = generate_rows(self.lm, cut, lengths, sampler_of(wanted), stop=stop_ids)
        texts = [tokenizer.decode(row.ids[len(prompt) :]) for row, prompt in zip(rows, cut, strict=True)]
        # A stop text of several tokens does not end the generation. The text is cut there.
        return [postprocess_generated_text(text, stops, think_end_token=None) for text in texts]


def batches_by_length(rows: Sequence[Sequence[int]], n: int) -> list[list[int]]:
    """Return the indices of rows in batches of `n`, the longest rows first."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]), reverse=True)
    return [[order[place] for place in places] for places in batched(range(len(order)), n)]


def score_of_tokens(z_TV: torch.Tensor, scored: list[int]) -> Score:
    """Return the score of tokens under the logits at the positions before each of them."""
    ids_T = torch.tensor(scored, device=z_TV.device)
    logprobs_T = z_TV.float().log_softmax(dim=-1).gather(1, ids_T[:, None])[:, 0]
    return Score(float(logprobs_T.sum()), bool((z_TV.argmax(dim=-1) == ids_T).all()))


def sum_of_scores(scores: Sequence[Score]) -> Score:
    return Score(sum(score.logprob for score in scores), all(score.is_greedy for score in scores))


def sampler_of(settings: dict[str, Any]) -> TokenSampler:
    """Return the sampler for settings of transformers' `generate`. Raise ValueError for one that we do not have."""
    settings = dict(settings)
    if not settings.pop("do_sample"):
        return TokenSampler(temperature=0)
    if unknown := sorted(settings.keys() - SAMPLER_SETTINGS.keys()):
        raise ValueError(f"generation_kwargs has {unknown[0]!r}; allowed: {', '.join(SAMPLER_SETTINGS)}")
    return TokenSampler(**{SAMPLER_SETTINGS[name]: value for name, value in settings.items()})
