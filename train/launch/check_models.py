"""Architecture check, --check: test copies of each architecture's model for properties that every model must have.

A check is a decorated function. Its name states the property. Its docstring, one line, says what a failure means.

Shape suffixes:  B batch  T position  V vocabulary
"""

import math
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor

from common.registry import Registry
from common.repository import REPOSITORY
from data.batch import Batch, mycollate
from model.context import Cache, Context, Uncacheable
from model.lm import LM
from model.recording import first_nonfinite
from train.data import make_data
from train.document import document
from train.grid.expand import GridError
from train.grid.params import Params
from train.grid.run import Call, Run
from train.launch.tables import settings_of
from train.logs import log
from train.optimizers import freeze
from train.pretrained import saved_tokenizer
from train.probe import (
    PROBE_LENGTH,
    check_numbers,
    copy_of,
    gradient_sizes,
    in_one_line,
    largest_difference,
    leak_of,
    noisy_copy,
    own_randomness,
    rows_in_a_pass,
    without_gradient,
)
from train.run import make_lm
from train.saving.run_folder import create_run_files, load_run, save
from train.stats import Stats

LIBRARIES = {"site-packages", "dist-packages", "lib"}  # folders whose code is not the user's
MAX_PASSES = 100  # forward passes that try the tokens of a large vocabulary as later ones
NEAR = 0.05  # relative; at most 0.026 was measured over all layer kinds, widths 16 to 256 and vocabularies of 8 to 5,000
MAX_STEPS = 400  # to learn a batch by heart; most models take 10 to 40
SEVERAL_GAPS = 8  # copies of each row in that batch if only a few of its tokens are predicted at once
OTHER_SHAPES = 10  # factor of the allowed rounding when tensors of other shapes give the same numbers


class CheckOutcome(NamedTuple):
    """The result of a check."""

    result: str  # pass, FAIL, or skip where there is nothing to check
    found: str = ""


ModelCheck = Callable[[LM, Params], CheckOutcome]
checks: Registry[ModelCheck] = Registry("check", underscore=" ")


def fails_if(wrong: object, found: str) -> CheckOutcome:
    return CheckOutcome("FAIL", found) if wrong else CheckOutcome("pass")


@checks.register
def no_position_sees_the_future(lm: LM, params: Params) -> CheckOutcome:
    """Failure means that losses are those of a model that knows the answer."""
    leak = leak_of(lm, MAX_PASSES)
    return fails_if(leak, str(leak))


@checks.register
@torch.no_grad()
def every_position_sees_both_sides(lm: LM, params: Params) -> CheckOutcome:
    """Failure means that a model with causal=False does not use all of its input."""
    lm = noisy_copy(lm).eval()
    ids_BT = random_ids(lm, 1).repeat(3, 1)
    ids_BT[1, -1] = (ids_BT[1, -1] + 1) % lm.n_tokens
    ids_BT[2, 0] = (ids_BT[2, 0] + 1) % lm.n_tokens
    same, other_end, other_start = lm(ids_BT)
    if not largest_difference(same[0], other_end[0]):
        return CheckOutcome("FAIL", "logits of the first position do not change with the last token")
    blind = not largest_difference(same[-1], other_start[-1])
    return fails_if(blind, "logits of the last position do not change with the first token")


@checks.register
@torch.no_grad()
def batch_and_padding_do_not_change_a_sample(lm: LM, params: Params) -> CheckOutcome:
    """Failure means that results depend on which samples share a batch."""
    lm, ids_BT = noisy_copy(lm), random_ids(lm, 4)
    T = ids_BT.shape[1]
    with torch.enable_grad():
        if gradient_sizes(lm.train(), torch.tensor([T - 1]), T)[0].any():
            return CheckOutcome("FAIL", "in training, logits of a sample have a gradient from another sample")
    shorter_BT = ids_BT[:, : math.ceil(T / 2)]
    padded_BT = torch.full_like(ids_BT, lm.tokenizer.pad)
    padded_BT[:, : math.ceil(T / 2)] = shorter_BT
    real_BT = None  # a causal model gets no mask
    if not lm.model_params.causal:
        real_BT = (torch.arange(T) < shorter_BT.shape[1]).expand(len(ids_BT), T)
    logits_BTV = lm.eval()(shorter_BT)
    alone = largest_difference(logits_BTV[:1], lm(shorter_BT[:1]), OTHER_SHAPES)
    padded = largest_difference(logits_BTV, lm(padded_BT, mask=real_BT)[:, : math.ceil(T / 2)], OTHER_SHAPES)
    if alone:
        return CheckOutcome("FAIL", f"logits of a sample change by {alone:.2g} with others in its batch")
    return fails_if(padded, f"logits of a sample change by {padded:.2g} with padding after it")


@checks.register
@torch.no_grad()
def cached_equals_uncached(lm: LM, params: Params) -> CheckOutcome:
    """Failure means that a layer caches too little of earlier tokens, so generation runs without a cache."""
    lm, ids_BT, rows_B = noisy_copy(lm).eval(), random_ids(lm, 3), torch.tensor([2, 0])
    T = ids_BT.shape[1]
    # Several tokens at once, then several more, then one by one.
    first, *ends = sorted({math.ceil(T / 4), *range(math.ceil(T / 2), T + 1)})
    cache = Cache(T)
    try:
        begun_BTV = lm(ids_BT[:, :first], cache=cache)
    except Uncacheable as reason:
        return CheckOutcome("skip", f"there is no cache: {reason}")
    cache.take(rows_B)  # as beams do
    ids_BT = ids_BT[rows_B]
    cached_BTV = torch.cat([begun_BTV[rows_B], *(lm(ids_BT[:, :end], cache=cache) for end in ends)], dim=1)
    change = largest_difference(lm(ids_BT), cached_BTV, OTHER_SHAPES)
    return fails_if(change, f"logits change by {change:.2g} with a cache")


@checks.register
def save_and_load_are_equal(lm: LM, params: Params) -> CheckOutcome:
    """Failure means that a saved run loses a tensor: one that is neither a parameter nor a persistent buffer."""
    lm, ids_BT = copy_of(lm), random_ids(lm, 4)
    for _ in learning(lm, params, mycollate(ids_BT.tolist()), n_steps=3):
        pass
    with TemporaryDirectory() as folder:
        create_run_files(Path(folder), params, command=[])
        save(Path(folder), lm=lm, stats=Stats(), summary={})
        loaded = load_run(Path(folder)).lm
    with torch.no_grad():
        trained_BTV, loaded_BTV = lm.eval()(ids_BT), loaded(ids_BT)
    check_numbers("a logit", trained_BTV, loaded_BTV)
    same = torch.equal(trained_BTV, loaded_BTV)
    return fails_if(not same, "logits of a trained model differ when it has been saved and loaded")


@checks.register
def every_parameter_gets_a_gradient(lm: LM, params: Params) -> CheckOutcome:
    """Failure means that some parameters never learn."""
    without = without_gradient(lm, params.train)
    return fails_if(without, f"none reaches {', '.join(without)}")


@checks.register
@torch.no_grad()
def the_first_loss_is_near_log_vocabulary(lm: LM, params: Params) -> CheckOutcome:
    """Failure means that initial logits are too large, and training begins by unlearning them."""
    if params.model.from_pretrained is not None or params.model.from_saved is not None:
        return CheckOutcome("skip", "it begins with trained weights")
    lm = copy_of(lm).eval()
    losses, _ = lm.get_losses(
        mycollate(random_ids(lm, rows_in_a_pass(lm, PROBE_LENGTH)).tolist()), params.train
    )
    check_numbers("the loss", losses["main"])
    loss, expected = losses["main"].item(), math.log(lm.n_tokens)
    near = abs(loss - expected) <= NEAR * expected
    return fails_if(not near, f"it is {loss:.4g} on random tokens, but log(vocabulary) is {expected:.4g}")


@checks.register
@torch.no_grad()
def recorded_patterns_times_values_give_z(lm: LM, params: Params) -> CheckOutcome:
    """Failure means that the recorded attention is not the attention that acts."""
    lm, without = noisy_copy(lm).eval(), []
    with lm.record() as seen:
        lm(random_ids(lm, 4))
    for i, layer in lm.decoder.passes():
        names = [f"layers.{i}.{name}" for name in ("pattern", "v", "z")]
        if any(name not in seen for name in names):
            without.append(type(layer).__name__)
            continue
        pattern_BHTS, v_BGSK, z_BHTK = (seen[name] for name in names)
        v_BHSK = v_BGSK.repeat_interleave(pattern_BHTS.shape[1] // v_BGSK.shape[1], dim=1)
        if change := largest_difference(z_BHTK, pattern_BHTS @ v_BHSK, OTHER_SHAPES):
            return CheckOutcome("FAIL", f"in layer {i} they differ from it by {change:.2g}")
    skipped = f"not all three are recorded by {', '.join(dict.fromkeys(without))}" if without else ""
    return CheckOutcome("skip" if len(without) == len(lm.decoder.passes()) else "pass", skipped)


@checks.register
def one_batch_is_learned_by_heart(lm: LM, params: Params) -> CheckOutcome:
    """Failure means that some part between embedding and loss does not pass on its input."""
    lm = copy_of(lm)
    ids_BT = random_ids(lm, 2)
    counts_V = ids_BT[:, 1:].flatten().bincount().double()
    shares_N = counts_V[counts_V > 0] / counts_V.sum()
    of_frequencies = -(shares_N * shares_N.log()).sum().item()  # the lowest loss that ignores the input
    if params.model.hides_tokens:
        ids_BT = ids_BT.repeat(SEVERAL_GAPS, 1)
    for loss in learning(lm, params, mycollate(ids_BT.tolist()), MAX_STEPS):
        if loss <= of_frequencies / 2:
            return CheckOutcome("pass")
    return CheckOutcome(
        "FAIL",
        f"after {MAX_STEPS} steps its loss is {loss:.4g}, where frequencies alone give {of_frequencies:.4g}",
    )


def learning(lm: LM, params: Params, batch: Batch, n_steps: int) -> Iterator[float]:
    """Train `lm` on one batch. Yield the loss before each step."""
    optimizer = torch.optim.Adam(lm.train().parameters(), lr=0.04 / math.sqrt(lm.model_params.dim))
    for _ in range(n_steps):
        losses, _ = lm.get_losses(batch, params.train)
        check_numbers("the loss", *losses.values())
        yield losses["main"].item()
        optimizer.zero_grad()
        sum(losses.values(), torch.tensor(0.0)).backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()


def random_ids(lm: LM, n_rows: int) -> Tensor:
    return torch.randint(lm.n_tokens, (n_rows, min(PROBE_LENGTH, lm.model_params.max_seq_len)))


def report_checks(runs: list[Run], call: Call) -> int:
    """Log the outcome of every check for each architecture. Return the exit code: 1 if a check failed, else 0."""
    failed = False
    for title, params in architectures(runs):
        log.info(title)
        lm = first_model(params, call)
        if flaw := flaw_of(lm, params):
            failed = True
            document.add_check("the model computes numbers", title, "FAIL", flaw)
            log.info(f"  FAIL  the model computes numbers: {flaw}. The other checks are skipped.")
            continue
        for name, check in checks_of(params).items():
            result, found = outcome_of(check, lm, params)
            failed = failed or result == "FAIL"
            document.add_check(name, title, result, found)
            log.info(f"  {result}  {name}" + (f": {found}" if found else "") + f". {check.__doc__}")
    return int(failed)


def flaw_of(lm: LM, params: Params) -> str | None:
    """Return why a model cannot be checked, or None if it can.

    The reason is an error that its losses raise, or the first number that is not finite.
    """
    try:
        with own_randomness(), torch.enable_grad():
            lm = copy_of(lm).train()
            batch = mycollate(random_ids(lm, 4).tolist())
            losses, _ = lm.get_losses(batch, params.train)
            sum(losses.values(), torch.tensor(0.0)).backward()
            if name := first_nonfinite(lm, batch):
                return f"{name} is the first activation that is not finite"
            bad = [name for name, loss in losses.items() if not loss.isfinite()]
            return f"all activations are finite, but the loss {bad[0]!r} is not" if bad else None
    except Exception as error:  # it is the user's own code
        return place_in_project(error) + in_one_line(error)


def place_in_project(error: Exception) -> str:
    """Return "file:line, layer 3: " for the last line of the project's own code in a traceback."""
    place, layer = "", ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(REPOSITORY) and "site-packages" not in path.parts:
            place = f"{path.relative_to(REPOSITORY)}:{line}"
        elif path.exists() and not LIBRARIES.intersection(path.parts):
            place = f"{path}:{line}"  # the user's code outside this repository
        ctx = frame.f_locals.get("ctx")
        if isinstance(ctx, Context) and ctx.layer is not None:
            layer = f", layer {ctx.layer}"
    return f"{place}{layer}: " if place else ""


def checks_of(params: Params) -> dict[str, ModelCheck]:
    """Return the checks that apply to an architecture: a causal model must not see later positions, others must."""
    other = every_position_sees_both_sides if params.model.causal else no_position_sees_the_future
    return {name: check for name, check in checks.items() if check is not other}


def outcome_of(check: ModelCheck, lm: LM, params: Params) -> CheckOutcome:
    """Run a check with a fixed seed. An error counts as a failure."""
    try:
        with own_randomness():
            return check(lm, params)
    except Exception as error:  # it is the user's own code
        return CheckOutcome("FAIL", in_one_line(error))


def first_model(params: Params, call: Call) -> LM:
    """Return the model that a run begins with, without dropout."""
    data = make_data(params.data, params.model, call.cache, tokenizer=saved_tokenizer(params.model, call.out))
    lm = make_lm(params.changed(dropout=0.0), data.tokenizer, call.out)
    freeze(lm, params.train)
    return lm


def refuse_leaks(runs: list[Run], call: Call) -> None:
    """Raise GridError if an architecture leaks."""
    errors = []
    for title, params in architectures(runs):
        if leak := leak_of(first_model(params, call), MAX_PASSES):
            errors.append(f"--check=strict: {title}: {leak}")
    if errors:
        raise GridError(errors)


def architectures(runs: list[Run]) -> Iterator[tuple[str, Params]]:
    """Yield a title and the params of each architecture. Runs that differ only in training share one."""
    settings, same = settings_of(runs), defaultdict(list)
    for i, run in enumerate(runs):
        same[repr((run.params.data, run.params.model, run.params.train.freeze))].append(i)
    for group in same.values():
        shared = set.intersection(*(set(settings[i].items()) for i in group))
        about = ", ".join(
            f"{key} {value}" for key, value in settings[group[0]].items() if (key, value) in shared
        )
        title = f"run{'s' * (len(group) > 1)} {', '.join(str(runs[i].number) for i in group)}"
        yield f"{title}: {about}" if about else title, runs[group[0]].params
