"""TrainParams: optimizer, schedule, length and hardware of a run."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from pydantic.dataclasses import dataclass

from common.param_groups import HashableDict, check_param_groups

Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
# A run has one length. `epochs` is one pass over the training data if none is set; all others repeat the data.
LENGTHS = (
    "epochs",
    "max_steps",
    "early_stop_nsamples",
    "max_tokens",
    "max_seconds",
    "max_flops",
    "tokens_per_parameter",
)


def steps_or_share(value: int | float) -> int | float:
    """Return `value` if it is an int or a float below 1. Raise ValueError for other floats."""
    if isinstance(value, float) and value >= 1:
        raise ValueError(
            "it should be an int, which counts optimizer steps, or a float below 1, a share of the run"
        )
    return value


# A number of optimizer steps if it is an int, and a share of the run if it is a float.
Steps = Annotated[int | float, Field(ge=0), AfterValidator(steps_or_share)]
Interval = Annotated[int | float, Field(gt=0), AfterValidator(steps_or_share)]


# Settings of parameters by patterns of their names.
ParamGroups = Annotated[dict[str, dict[str, Any]], AfterValidator(check_param_groups)]


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
class TrainParams:
    """The section TrainParams of a config. Raise ValidationError for a wrong type, value or combination."""

    lr: PositiveFloat = 1e-3  # highest learning rate of the schedule
    min_lr: NonNegativeFloat = 0.0  # where cosine, linear and wsd end, and cyclic and plateau stop falling
    lr_schedule: str = "cosine"  # shape of the learning rate after the warm-up
    warmup_steps: Steps = 0  # optimizer steps, or share of the run, over which lr rises linearly
    lr_cycle_steps: PositiveInt = 1000  # length of one cycle of lr_schedule = "cyclic"
    lr_plateau_patience: PositiveInt = 2  # validations without improvement before "plateau" halves lr
    wsd_decay_frac: Annotated[float, Field(gt=0, le=1)] = 0.2  # last share of the steps, where "wsd" falls
    lr_decay_shape: Literal["linear", "1-sqrt"] = "linear"  # how "wsd" and "cooldown" fall
    optimizer: str = "adamw"  # rule that updates the weights
    weight_decay: NonNegativeFloat = 0.1  # on matrices only
    cautious_decay: bool = False  # decay a weight only where its update moves it towards 0, too
    weight_decay_scaling: Literal["mup", "sqrt", "none"] = "mup"  # muP: how weight_decay grows with width
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)  # how slowly averages of gradients change; not of "sgd"
    beta2_half_life: PositiveFloat | None = None  # tokens after which a squared gradient counts half
    adam_eps: PositiveFloat = 1e-8  # added to the root of the mean squared gradient
    scale_adam_eps: bool = True  # muP: shrink adam_eps as gradients shrink in wider and deeper models
    momentum: Fraction = 0.9  # of optimizer = "sgd" and "muon"
    muon_lr: Literal["match_rms_adamw", "original"] = "match_rms_adamw"  # lr of "muon": as for adamw, or not
    lr_embedding_mult: PositiveFloat = 1.0  # factors of lr, for tables of tokens and positions,
    lr_hidden_mult: PositiveFloat = 1.0  # for matrices inside of layers,
    lr_readout_mult: PositiveFloat = 1.0  # for the readout, if it is not the token embedding,
    lr_vector_mult: PositiveFloat = 1.0  # and for biases and gains
    z_loss: NonNegativeFloat = 0.0  # weight of the mean of log(sum of exp(logits))^2, an added loss
    param_groups: ParamGroups = HashableDict()  # factors of lr and weight_decay, and betas, by pattern
    ema_decay: Fraction | None = None  # average weights over about 1 / (1 - ema_decay) steps; None: do not
    gradient_clip_val: PositiveFloat | None = 1.0  # largest norm of the whole gradient
    batch_size: PositiveInt = 32  # rows in one forward pass of a device
    accumulate_grad_batches: PositiveInt = 1  # batches per optimizer step
    epochs: PositiveInt | None = None  # passes over the training data; None: 1, or the length set below
    max_steps: PositiveInt | None = None  # length in optimizer steps; repeats the data, as all below
    early_stop_nsamples: PositiveInt | None = None  # length in rows
    max_tokens: PositiveFloat | None = None  # length in real tokens, without padding
    max_seconds: PositiveFloat | None = None  # length in seconds of training, without validations
    max_flops: PositiveFloat | None = None  # length in floating point operations of training
    tokens_per_parameter: PositiveFloat | None = None  # length in tokens / n_params, embeddings included
    val_every: Interval | None = None  # steps, or share of the run, between validations; None: once an epoch
    stop_when: str | None = None  # end after a validation where this holds, as in "val_accuracy >= 0.99"
    patience: PositiveInt | None = None  # stop after so many validations without gain; keeps the best weights
    patience_metric: str = "val_loss"  # whose gain patience waits for; "max NAME" or "min NAME" for your own
    dropout: Fraction = 0.0
    mask_frac: Annotated[float, Field(gt=0, le=1)] = 0.15  # share of tokens to predict, if "masked"
    freeze: tuple[str, ...] = ()  # patterns of parameters that do not train, such as "decoder.layers.0.*"
    random_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # initial weights, dropout, order of the batches
    hyperparams_log_freq: Interval = 100  # steps, or share of the run, between entries for norms and times
    checkpoint_every: Interval | None = None  # steps, or share, between kept weights; only with --save
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true"] = "32-true"
    recompute: Literal["none", "layer"] = "none"  # layer: store less, and compute each layer twice
    compile: bool = False  # torch.compile for training steps; needs a C++ compiler
    threads: PositiveInt | None = None  # CPU threads; None: what torch chooses
    cpus: Annotated[float, Field(ge=0.01)] = 1.0  # CPUs of a run on a cluster; below 1 several share one
    gpus: Share | None = None  # share of a GPU on a cluster; None: one if Ray has any, or as --slurm says
    devices: PositiveInt = 1
    strategy: str = "auto"  # auto, ddp, fsdp (weights are sharded) or another one of Lightning
    data_workers: NonNegativeInt = 0  # processes that prepare batches; 0: the training process itself

    def __post_init__(self) -> None:
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr={self.min_lr} is above lr={self.lr}; it must be at most lr")
        if len(chosen := self.lengths) > 1:
            shown = " and ".join(f"{name}={value}" for name, value in chosen.items())
            raise ValueError(f"{shown} are {len(chosen)} lengths of one run; set one of {', '.join(LENGTHS)}")
        if self.max_seconds and self.devices > 1:
            raise ValueError(
                f"max_seconds={self.max_seconds} needs devices=1, not {self.devices}: processes measure different "
                "times; max_flops is the same for all"
            )
        if self.recompute != "none" and self.compile:
            raise ValueError(
                f"recompute={self.recompute!r} does not work with compile=True: torch.compile chooses by itself what to "
                "compute again; use one of them"
            )
        if self.strategy == "fsdp":
            if self.devices == 1:
                raise ValueError("strategy='fsdp' shards a model over several devices, but devices=1")
            if self.patience or self.checkpoint_every or self.compile or self.ema_decay is not None:
                raise ValueError(
                    "strategy='fsdp' supports neither patience nor checkpoint_every nor compile=True nor ema_decay"
                )

    @property
    def lengths(self) -> dict[str, float]:
        """The lengths that are set, by field: at most one."""
        return {name: getattr(self, name) for name in LENGTHS if getattr(self, name) is not None}

    @property
    def repeats_data(self) -> bool:
        """True if the run begins the data anew until it reaches its length."""
        return bool(self.lengths) and self.epochs is None
