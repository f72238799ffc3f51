"""ModelParams: the architecture and its tokenizer."""

from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from model.per_layer import PerLayer

# Numbers of modules, each of which is built. More would take minutes to check.
MAX_MODULES = 1_000
Copies = Annotated[int, Field(gt=0, le=MAX_MODULES)]
CopiesOrNone = Annotated[int, Field(ge=0, le=MAX_MODULES)]
# Fields that code outside the layers reads, so that they have one value for all layers.
OF_WHOLE_MODEL = frozenset(
    [
        "causal",
        "objective",
        "dim",
        "n_layers",
        "n_loops",
        "share",
        "max_seq_len",
        "norm",
        "norm_eps",
        "norm_gain",
        "norm_position",
        "embedding_norm",
        "bias",
        "bias_norm",
        "tied_embeddings",
        "readout_transform",
        "readout_bias",
        "init",
        "residual",
        "residual_change",
        "residual_trainable",
        "residual_profile",
        "parametrization",
        "mup_base_dim",
        "mup_base_heads",
        "mup_base_layers",
        "mup_input_mult",
        "mup_output_mult",
        "n_predict",
        "predict_weight",
        "value_residual",
        "stream_lambdas",
        "logit_softcap",
        "readout_zero_init",
        "query_zero_init",
        "lora_rank",
        "from_pretrained",
        "from_saved",
        "tokenizer_source_name",
        "tokenizer_vocab_size",
        "tokenizer_crop",
    ]
)


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
class ModelParams(PerLayer):
    layer_architecture: str = "custom-transformer"  # kind of the layers
    causal: bool = True  # False: a position attends to both sides, as in BERT
    objective: Literal["next-token", "masked", "diffusion"] = "next-token"  # the others: hidden tokens
    n_predict: Copies = 1  # tokens that each position learns to predict; further ones have a layer each
    predict_weight: PositiveFloat = 1.0  # of n_predict: weight of the loss of each token after the first
    dim: PositiveInt = 128  # width of the residual stream
    n_layers: NonNegativeInt = 4  # layers of the stack; 0 leaves embeddings and unembedding only
    n_heads: PositiveInt = 4  # per layer; must divide dim
    n_loops: Copies = 1  # how often a forward pass goes through the stack
    share: str | None = None  # shared weights, as "k=v, o=q.T, norms"
    head_dim: PositiveInt | None = None  # width of a head, whatever dim is; None: dim / n_heads
    n_kv_heads: PositiveInt | None = None  # heads of keys and values, each for several queries; None: n_heads
    dim_ff: NonNegativeInt | None = None  # width inside the feed-forward block; None: 4 * dim; 0: none
    max_seq_len: PositiveInt = 128  # longest input, in tokens
    positions: str = "learned"  # how positions are encoded
    rotary_base: PositiveFloat = 10_000.0  # base of the angles of positions = "rotary"
    rotary_frac: Annotated[float, Field(gt=0, le=1)] = 1.0  # share of a head that "rotary" rotates
    rotary_scaling: str | None = None  # frequencies for longer inputs, as "yarn, factor=4, original=4096"
    sliding_window: PositiveInt | None = None  # attend only to positions at a smaller distance than this
    norm: str = "layernorm"  # kind of all norms, the one after the last layer included
    norm_eps: PositiveFloat = 1e-5  # added to the variance before its root is taken
    norm_position: Literal["pre", "post", "sandwich", "inside", "none"] = "pre"  # where a block has norms
    embedding_norm: bool = False  # normalize the embeddings, before the first layer
    norm_gain: bool = True  # False: norms have no trained gain and no bias
    qk_norm: bool | Literal["all-heads"] = False  # normalize queries and keys, by head or over all heads
    attn_softcap: PositiveFloat | None = None  # scores become cap * tanh(scores / cap), before the mask
    attn_sink: Literal["learned", "off-by-one"] | None = None  # one more score in the softmax
    attn_gate: Literal["head", "element"] | None = None  # multiply heads by a sigmoid of the layer's input
    diff_attention: bool = False  # half of the heads subtract their patterns from those of the others
    value_residual: bool = False  # mix the values with those of the first layer
    value_embeddings: bool = False  # add a further embedding of the token to the values
    canon: str | None = None  # letters of "abcd": where short convolutions mix neighboring positions
    stream_lambdas: bool = False  # a layer's input is a trained mix of the stream and the embeddings
    parallel_blocks: bool | Literal["one-norm"] = False  # attention and feed-forward block on the same input
    activation: str = "gelu"  # nonlinearity of the feed-forward block
    gated: bool | Literal["clamped"] = False  # times a second map of the input; "clamped": as gpt-oss
    n_experts: CopiesOrNone = 0  # blocks of a mixture, of width dim_ff; 0: none
    experts_per_token: PositiveInt = 2  # experts that a token passes, those with its highest scores
    n_shared_experts: NonNegativeInt = 0  # more experts, which every token passes
    router_bias: bool = False  # of the router of experts
    balance: Literal["loss", "bias"] | None = "loss"  # how experts get equally many tokens
    balance_rate: PositiveFloat | None = None  # weight of the loss, or step of the bias; None: 0.01 or 0.001
    bias: bool = True  # in every linear layer and norm of the stack
    bias_qkv: bool | None = None  # of queries, keys and values; None: as bias
    bias_out: bool | None = None  # of the map from heads to the stream; None: as bias
    bias_ff: bool | None = None  # of the feed-forward block; None: as bias
    bias_norm: bool | None = None  # of layernorm; None: as bias
    logit_softcap: PositiveFloat | None = None  # logits become cap * tanh(logits / cap)
    tied_embeddings: bool = True  # the output matrix is the token embedding
    readout_transform: bool = False  # before the readout a linear map, the activation and a norm, as in BERT
    readout_bias: bool = False  # of the readout, and of the map before it
    separate_heads: bool = False  # each head's query, key and value matrices are parameters of their own
    attention: Literal["explicit", "fused"] = "explicit"  # fused: torch's kernel, which ignores edits
    init: str = "small"  # initial weights; "unit": outputs of maps, and untied embeddings, begin at size 1
    out_zero_init: bool = False  # maps into the residual stream begin at 0
    residual: Literal["plain", "admin", "deepnet", "rezero", "layerscale"] = "plain"  # weights of x + f(x)
    residual_change: Literal["O(logn)", "O(1)", "O(n)"] = "O(logn)"  # of "admin": change of n blocks' output
    residual_trainable: bool = False  # of "admin" and "deepnet": train omega, as a vector
    residual_profile: bool = False  # of "admin": set omega by variances in the first batches instead
    parametrization: Literal["standard", "mup", "completep"] = "standard"  # muP: how lr scales with size
    mup_base_dim: NonNegativeInt = 0  # muP: the dim at which it is "standard"; 0: this one
    mup_base_heads: NonNegativeInt = 0  # muP: n_heads at mup_base_dim; 0: the same
    mup_base_layers: NonNegativeInt = 0  # muP: the depth at which "completep" is "mup"; 0: this one
    mup_input_mult: PositiveFloat = 1.0  # muP: factor of the embeddings
    mup_output_mult: PositiveFloat = 1.0  # muP: factor of the logits
    mup_attn_mult: PositiveFloat = 1.0  # muP: factor of the attention scores
    readout_zero_init: bool = False  # muP: the readout begins at 0; not if it is the token embedding
    query_zero_init: bool = False  # muP: queries begin at 0, so that attention begins as a mean
    kv_rank: PositiveInt | None = None  # of mla: width of the latent that the cache holds; None: dim / 4
    q_rank: PositiveInt | None = None  # of mla: width between the stream and the queries; None: one map
    conv_width: PositiveInt = 4  # positions in the convolution of canon, and of mixers that have one
    state_dim: PositiveInt | None = None  # width of a head's keys in mixers with a state; None: dim / n_heads
    negative_eigenvalues: bool = False  # of deltanet and gated-delta: what a step erases may change its sign
    fixed_decay: bool = False  # of gla: each head has a constant decay, as in RetNet
    lora_rank: NonNegativeInt = 0  # train only products of this rank, added to the layers' linear maps
    from_pretrained: str | None = None  # start from weights and fields of a model on the hub or in a folder
    from_saved: str | None = None  # timestamp of the saved run to start from; with "@800", from its step 800
    tokenizer_source_name: str = "char"  # char, custom (our own BPE), any registered or pretrained one
    tokenizer_vocab_size: PositiveInt = 4096  # of the custom tokenizer, special tokens included
    tokenizer_crop: bool = False  # keep only the tokens of a pretrained tokenizer that the training text uses

    of_whole_model: ClassVar[frozenset[str]] = OF_WHOLE_MODEL  # they refuse tuples

    def __post_init__(self) -> None:
        if self.head_dim is None and self.dim % self.n_heads:
            raise ValueError(f"n_heads={self.n_heads} must divide dim={self.dim}")
        if self.n_kv_heads is not None and self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads={self.n_kv_heads} must divide n_heads={self.n_heads}")
        if self.positions == "rotary" and (self.n_rotated < 2 or self.n_rotated % 2):
            width = f"dim={self.dim} / n_heads={self.n_heads}"
            width = width if self.head_dim is None else f"head_dim={self.head_dim}"
            raise ValueError(
                f"positions='rotary' rotates pairs, but rotary_frac={self.rotary_frac} of the {width} dimensions of a "
                f"head is {self.n_rotated}: it must be even and at least 2"
            )
        if self.parallel_blocks and self.norm_position == "post":
            raise ValueError(
                f"parallel_blocks={self.parallel_blocks!r} adds both blocks at once, so norm_position='post' has no place between them; "
                "use another norm_position"
            )
        if self.from_pretrained is not None and self.from_saved is not None:
            raise ValueError(
                f"from_pretrained={self.from_pretrained!r} and from_saved={self.from_saved!r} exclude each other: "
                "set one of them"
            )
        if not self.layer_architecture:
            raise ValueError(f"layer_architecture={self.layer_architecture!r} names no layer kind")
        if self.readout_zero_init and self.tied_embeddings:  # muP
            raise ValueError(
                "readout_zero_init=True would set the token embedding to 0, too; use tied_embeddings=False"
            )
        if not self.causal and self.objective == "next-token":
            raise ValueError(
                "causal=False with objective='next-token' would show each position the token that it predicts; "
                "use objective='masked' or 'diffusion'"
            )
        self.check_objective()
        self.check_init()
        self.check_residual()
        self.check_attention()
        self.check_canon()
        self.check_experts()
        self.check_norms()

    def check_norms(self) -> None:
        if self.parallel_blocks == "one-norm" and self.norm_position != "pre":
            raise ValueError(
                f"parallel_blocks='one-norm' shares the norm before both blocks, but norm_position={self.norm_position!r}; "
                "use norm_position='pre'"
            )
        if not self.norm_gain and self.norm_position in ("sandwich", "inside"):
            raise ValueError(
                f"norm_gain=False with norm_position={self.norm_position!r}: the norms after blocks begin with a small gain, "
                "without which blocks outweigh the embeddings; use another norm_position"
            )

    def check_objective(self) -> None:
        if self.n_predict == 1:
            return
        if self.objective != "next-token":
            raise ValueError(
                f"n_predict={self.n_predict} needs objective='next-token', not {self.objective!r}: other objectives have "
                "no further tokens"
            )
        if not self.n_layers:
            raise ValueError(f"n_predict={self.n_predict} repeats the last layer, but n_layers=0 has none")
        no_rule = {
            "residual": self.residual != "plain",
            "parametrization": self.parametrization == "completep",
            "n_experts": self.n_experts > 0,
        }
        for name in (name for name, refused in no_rule.items() if refused):
            raise ValueError(
                f"n_predict={self.n_predict} adds layers beside the stack, for which {name}={getattr(self, name)!r} "
                "has no rule; use another one"
            )

    def check_attention(self) -> None:
        if self.positions == "hard-alibi" and self.n_heads == 1:
            raise ValueError(
                "positions='hard-alibi' limits the first half of the heads, but n_heads=1 has no half"
            )
        for name in ("attn_softcap", "attn_sink", "diff_attention"):
            if self.attention == "fused" and (value := getattr(self, name)):
                raise ValueError(
                    f"attention='fused' is torch's kernel, which cannot apply {name}={value!r}; use attention='explicit'"
                )

        if self.diff_attention and (self.n_heads % 2 or self.kv_heads % 2):
            raise ValueError(
                f"diff_attention=True makes pairs of heads, so n_heads={self.n_heads} and "
                f"n_kv_heads={self.kv_heads} must be even"
            )

    def check_init(self) -> None:
        if self.init in ("small", "unit"):
            return
        if self.parametrization != "standard":  # muP
            raise ValueError(
                f"init={self.init!r} is for parametrization='standard', not {self.parametrization!r}; use init='small' or 'unit'"
            )
        if self.residual == "deepnet":
            raise ValueError(
                f"init={self.init!r} and residual='deepnet' both choose initial weights: use one of them"
            )

    def check_canon(self) -> None:
        if self.canon is None:
            return
        if not self.canon or len(set(self.canon)) < len(self.canon) or set(self.canon) - set("abcd"):
            raise ValueError(
                f"canon={self.canon!r} must be some of the letters abcd, each once: a before attention, b on queries, "
                "keys and values, c before the feed-forward block, d inside it"
            )
        if not self.causal:
            raise ValueError(
                f"canon={self.canon!r} mixes in earlier positions only, but causal=False; use canon=None"
            )
        if self.n_experts and "d" in self.canon:
            raise ValueError(
                f"canon={self.canon!r} has a place inside the feed-forward block, but n_experts={self.n_experts} has many of "
                "them; use a, b and c"
            )
        if not self.ff_width and set(self.canon) & set("cd"):
            raise ValueError(
                f"canon={self.canon!r} has a place in the feed-forward block, but dim_ff=0 leaves it out; use a and b"
            )

    def check_experts(self) -> None:
        if not self.n_experts:
            return
        if self.n_experts == 1:
            raise ValueError("n_experts=1 leaves the router no choice; use 0 for one block for all tokens")
        if self.experts_per_token > self.n_experts:
            raise ValueError(
                f"experts_per_token={self.experts_per_token} is more than n_experts={self.n_experts}: a token cannot pass "
                "an expert twice"
            )
        for name, value, why in (
            ("dim_ff", 0, "leaves no feed-forward block to make experts of"),
            ("lora_rank", self.lora_rank or None, "has no products for the matrices of experts"),
            ("residual", "deepnet", "has no initial weights for experts; use residual='admin'"),
        ):
            if getattr(self, name) == value:
                raise ValueError(f"n_experts={self.n_experts} with {name}={value!r}: it {why}")

    def check_residual(self) -> None:
        if self.out_zero_init and self.residual == "deepnet":
            raise ValueError(
                "out_zero_init=True and residual='deepnet' both choose initial weights: use one of them"
            )
        if self.out_zero_init and self.residual == "rezero":
            raise ValueError(
                "out_zero_init=True with residual='rezero' multiplies 0 by 0, so that no gradient reaches a layer: use one "
                "of them"
            )
        if self.residual_profile and self.n_loops > 1:
            raise ValueError(
                f"residual_profile=True sets an omega from what comes before it, which differs in each of n_loops={self.n_loops} "
                "loops; use residual_profile=False"
            )
        if self.residual in ("admin", "deepnet") and self.norm_position != "post":
            raise ValueError(
                f"residual={self.residual!r} needs norm_position='post', not {self.norm_position!r}: "
                "only a norm after the sum keeps x * omega + f from growing"
            )
        if self.residual != "plain" and self.parametrization == "completep":
            raise ValueError(
                f"residual={self.residual!r} and parametrization='completep' are two rules for depth: use one"
            )

    @property
    def depth(self) -> int:
        """Number of layers in a forward pass: n_layers * n_loops, unless `Transformer.passes` says otherwise."""
        return self.n_layers * self.n_loops if self.n_passes is None else self.n_passes

    @property
    def hides_tokens(self) -> bool:
        """True if the objective is to predict hidden tokens of a row, not the next one."""
        return self.objective != "next-token"

    @property
    def head_width(self) -> int:
        """Width of a head: of its queries, keys and values."""
        return self.dim // self.n_heads if self.head_dim is None else self.head_dim

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def ff_width(self) -> int:
        return 4 * self.dim if self.dim_ff is None else self.dim_ff

    @property
    def n_rotated(self) -> int:
        """Number of dimensions of a head that rotary positions rotate."""
        return int(self.head_width * self.rotary_frac)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Layer kinds in the order in which they take turns."""
        return self.values_of("layer_architecture")

    def has_bias(self, part: bool | None) -> bool:
        """Return whether a part of the stack has a bias. `part` is the value of its own field, such as bias_ff."""
        return self.bias if part is None else part
