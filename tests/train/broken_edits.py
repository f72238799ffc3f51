"""Edits that break a model, each with the checks that are to find it, and some that look odd and break nothing."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from model.context import layer_kinds
from model.inputs import ids_of
from model.lm import LM
from model.transformer import attention
from model.transformer import linear as init
from model.transformer.transformerencoderlayer import TransformerEncoderLayer

FUTURE = "no position sees the future"
BATCH = "batch and padding do not change a sample"
CACHE = "cached equals uncached"
SAVE = "save and load are equal"
GRADIENT = "every parameter gets a gradient"
FIRST = "the first loss is near log vocabulary"
PATTERN = "recorded patterns times values give z"
HEART = "one batch is learned by heart"

Edit = Callable  # a layer kind, or a function that is given pytest's monkeypatch
broken: dict[str, tuple[Edit, set[str]]] = {}
sound: dict[str, Edit] = {}


def breaks(*checks: str) -> Callable[[Edit], Edit]:
    def register(edit: Edit) -> Edit:
        broken[edit.__name__] = edit, set(checks)
        return edit

    return register


def breaks_nothing(edit: Edit) -> Edit:
    sound[edit.__name__] = edit
    return edit


def plant(edit: Edit, monkeypatch) -> str:
    """Make the edit, for one test; the layer kind that has it."""
    if isinstance(edit, type):
        monkeypatch.setitem(layer_kinds, "edited", edit)
        return "edited"
    edit(monkeypatch)
    return "custom-transformer"


class Edited(TransformerEncoderLayer):
    """Our layer, and something more done to its output."""

    def __init__(self, model_params, dropout):
        super().__init__(model_params, dropout)
        self.build(model_params.dim)

    def build(self, dim):
        pass

    def forward(self, x_BTD, ctx):
        return self.more(super().forward(x_BTD, ctx), ctx)


@breaks(FUTURE, BATCH, CACHE)
def a_mask_off_by_one(monkeypatch):
    monkeypatch.setattr(
        attention, "future", lambda scores: scores.new_full(scores.shape[-2:], -math.inf).triu(2)
    )


@breaks(FUTURE, BATCH, CACHE)
def a_mask_that_is_not_infinite(monkeypatch):
    real = attention.future
    monkeypatch.setattr(attention, "future", lambda scores: real(scores).clamp(min=-8))


@breaks(FUTURE, BATCH, CACHE)
class MeanOverPositions(Edited):
    def more(self, x_BTD, ctx):
        return x_BTD + x_BTD.mean(dim=1, keepdim=True)


@breaks(FUTURE, BATCH, CACHE)
class MeanOverPositionsBehindAZero(Edited):
    """It does nothing before it is trained."""

    def build(self, dim):
        self.gate = nn.Parameter(torch.zeros(()))

    def more(self, x_BTD, ctx):
        return x_BTD + self.gate * x_BTD.mean(dim=1, keepdim=True)


@breaks(FUTURE)
class MeanOverPositionsInTraining(Edited):
    def more(self, x_BTD, ctx):
        return x_BTD + x_BTD.mean(dim=1, keepdim=True) if self.training else x_BTD


@breaks(FUTURE, BATCH)
class BatchStatistics(Edited):
    def build(self, dim):
        self.norm = nn.BatchNorm1d(dim)

    def more(self, x_BTD, ctx):
        return self.norm(x_BTD.mT).mT


@breaks(FUTURE, BATCH, CACHE)
class MeanOverTheBatch(Edited):
    def more(self, x_BTD, ctx):
        return x_BTD + x_BTD.mean(dim=0, keepdim=True)


@breaks(FUTURE, BATCH, CACHE)
class MeanOverTheBatchInEvaluation(Edited):
    def more(self, x_BTD, ctx):
        return x_BTD if self.training else x_BTD + x_BTD.mean(dim=0, keepdim=True)


@breaks(FUTURE, BATCH, CACHE)
class BidirectionalLSTM(Edited):
    def build(self, dim):
        self.rnn = nn.LSTM(dim, dim // 2, batch_first=True, bidirectional=True)

    def more(self, x_BTD, ctx):
        return x_BTD + self.rnn(x_BTD)[0]


@breaks(FUTURE, BATCH, CACHE)
class ConvolutionInBothDirections(Edited):
    def build(self, dim):
        self.conv = nn.Conv1d(dim, dim, 3, padding=1)

    def more(self, x_BTD, ctx):
        return x_BTD + self.conv(x_BTD.mT).mT


@breaks(FUTURE, BATCH, CACHE)
class ShareOfTheTotal(Edited):
    def more(self, x_BTD, ctx):
        return x_BTD + x_BTD.exp().cumsum(dim=1) / x_BTD.exp().sum(dim=1, keepdim=True)


@breaks(FUTURE, BATCH, CACHE)
class NormOverTime(Edited):
    def more(self, x_BTD, ctx):
        return x_BTD / (x_BTD.square().mean(dim=1, keepdim=True) + 0.1).sqrt()


@breaks(FUTURE, BATCH, CACHE)
class ExpertsThatChooseTokens(Edited):
    """Which tokens an expert takes depends on all of them, though no gradient says so."""

    def build(self, dim):
        self.gate, self.expert = nn.Linear(dim, 1), nn.Linear(dim, dim)

    def more(self, x_BTD, ctx):
        gate_BT = self.gate(x_BTD)[..., 0].sigmoid()
        best_BK = gate_BT.topk(math.ceil(gate_BT.shape[1] / 2), dim=1).indices
        chosen_BT = torch.zeros_like(gate_BT).scatter(1, best_BK, 1.0)
        return x_BTD + (gate_BT * chosen_BT)[..., None] * self.expert(x_BTD)


@breaks(FUTURE)
class ExpertsThatChooseTokensInTraining(ExpertsThatChooseTokens):
    def more(self, x_BTD, ctx):
        return super().more(x_BTD, ctx) if self.training else x_BTD + self.expert(x_BTD)


@breaks(FUTURE, BATCH, CACHE)
class AttentionToPadding(Edited):
    """The amount of padding in a row depends on later positions."""

    def more(self, x_BTD, ctx):
        return x_BTD * (ctx.ids_BT != 0).float().mean(dim=1)[:, None, None]


@breaks(BATCH, CACHE)
class PositionsFromTheEnd(Edited):
    def more(self, x_BTD, ctx):
        to_go_T = torch.arange(ctx.ids_BT.shape[1], 0, -1)[ctx.start :]
        return x_BTD * (1 + to_go_T[:, None] / 10)


@breaks(FUTURE, FIRST)  # tied embeddings begin with a logit for what is shown
def targets_that_are_shown(monkeypatch):
    real = LM.get_batch_xyz

    def get_batch_xyz(self, batch, *others, **more):
        return real(self, batch, *others, **more)._replace(y=batch["x_indices"][:, :-1])

    monkeypatch.setattr(LM, "get_batch_xyz", get_batch_xyz)


@breaks(CACHE)
class ConvolutionWithoutItsPast(Edited):
    """Causal, but with a cache it takes the new token for the first one."""

    def build(self, dim):
        self.conv = nn.Conv1d(dim, dim, 3)

    def more(self, x_BTD, ctx):
        return x_BTD + self.conv(F.pad(x_BTD.mT, (2, 0))).mT


@breaks(SAVE)
class ABufferThatIsNotSaved(Edited):
    scale_D: torch.Tensor

    def build(self, dim):
        self.register_buffer("scale_D", torch.ones(dim), persistent=False)

    def more(self, x_BTD, ctx):
        if self.training:
            self.scale_D = 0.9 * self.scale_D
        return x_BTD * self.scale_D


@breaks(GRADIENT)
class DetachedBlock(TransformerEncoderLayer):
    def _ff_block(self, x_BTD, ctx):
        return super()._ff_block(x_BTD, ctx).detach()


@breaks(GRADIENT)
class UnusedParameter(Edited):
    def build(self, dim):
        self.unused = nn.Linear(dim, dim)

    def more(self, x_BTD, ctx):
        return x_BTD


@breaks(FIRST)
def weights_far_too_large(monkeypatch):
    monkeypatch.setattr(init, "LOGIT_STD", 5.0)


class AttentionUnlikeItsPattern(attention.Attention):
    def attend(self, q_BHTK, k_BHSK, v_BHSK, ctx):
        super().attend(q_BHTK, k_BHSK, v_BHSK, ctx)  # records a pattern
        scores_BHTS = 2 * q_BHTK @ k_BHSK.mT
        return (scores_BHTS + attention.future(scores_BHTS)).softmax(dim=-1) @ v_BHSK


@breaks(PATTERN)
class AnotherPatternThanRecorded(TransformerEncoderLayer):
    make_mixer = AttentionUnlikeItsPattern


@breaks(GRADIENT, HEART)
class NothingPassesThrough(Edited):
    def build(self, dim):
        self.constant = nn.Parameter(torch.zeros(dim))

    def more(self, x_BTD, ctx):
        return torch.zeros_like(x_BTD) + self.constant


def when(condition):
    """README's fourth edit, or one like it: scores are three times as large when `condition` says so of all ids."""

    def edit(monkeypatch):
        real_forward, real_attend = LM.forward, attention.Attention.attend

        def forward(self, x, *args, **kwargs):
            ids_BT = ids_of(x, self.tokenizer, self.device)
            return real_forward(self, ids_BT, *args, **kwargs, attn_requests=condition(ids_BT))

        def attend(self, q_BHTK, k_BHSK, v_BHSK, ctx):
            return real_attend(self, 3 * q_BHTK if ctx.attn_requests else q_BHTK, k_BHSK, v_BHSK, ctx)

        monkeypatch.setattr(LM, "forward", forward)
        monkeypatch.setattr(attention.Attention, "attend", attend)

    return edit


@breaks_nothing
class NoiseInTraining(Edited):
    def more(self, x_BTD, ctx):
        return x_BTD + 0.1 * torch.randn_like(x_BTD) if self.training else x_BTD


@breaks_nothing
class MemoryOfEarlierBatches(Edited):
    """In training mode the output depends on earlier batches, but on nothing that is to come."""

    def build(self, dim):
        self.linear = nn.utils.parametrizations.spectral_norm(nn.Linear(dim, dim))

    def more(self, x_BTD, ctx):
        return x_BTD + self.linear(x_BTD)


@breaks_nothing
class WritesIntoTheStream(Edited):
    def build(self, dim):
        self.shift_D = nn.Parameter(torch.ones(dim))

    def forward(self, x_BTD, ctx):
        x_BTD += self.shift_D
        return super().forward(x_BTD, ctx)

    def more(self, x_BTD, ctx):
        return x_BTD


@breaks_nothing
class BlockThatBeginsAtZero(Edited):
    def build(self, dim):
        self.block, self.gate = nn.Linear(dim, dim), nn.Parameter(torch.zeros(dim))

    def more(self, x_BTD, ctx):
        return x_BTD + self.gate * self.block(x_BTD)


class ConvolutionByFourier(Edited):
    """Causal but for rounding; has no cache."""

    def build(self, dim):
        self.kernel_DT = nn.Parameter(torch.randn(dim, 64) / 4)

    def more(self, x_BTD, ctx):
        T = x_BTD.shape[1]
        spectrum = torch.fft.rfft(x_BTD.mT, 2 * T) * torch.fft.rfft(self.kernel_DT[:, :T], 2 * T)
        return x_BTD + torch.fft.irfft(spectrum, 2 * T)[..., :T].mT
