"""A family of HuggingFace models: its names for our settings and modules."""

from dataclasses import dataclass, field

from model.hf.translations import Translation


@dataclass(frozen=True)
class Family:
    """Models of transformers that differ only in their settings."""

    # Names of settings in a config, by our field. Where two fields share a name, the last one is written.
    settings: dict[str, str]
    fixed: dict[str, object]  # values of our fields that are the same in all models of the family
    # Their module names and ours; * is the number of a layer. Of several names, the one that a model of ours has holds.
    names: dict[str, str | tuple[str, ...]]
    translations: tuple[Translation, ...] = ()  # settings that are not one of our fields each
    activation: str = "hidden_act"  # name of the setting for the activation
    constants: dict[str, object] = field(default_factory=dict)  # settings of every config that we write
    conv1d: bool = False  # True if matrices in layers are [in, out]
    needed: dict[str, object] = field(default_factory=dict)  # like NEEDED, for this family alone
    gain_offset: float = 0.0  # added to the gains of norms: 1 where they are stored as a difference from 1
    interleaved_experts: bool = False  # experts: matrices are [in, out]; columns of gate and up take turns
    rotates_neighbors: bool = False  # rotary positions turn pairs (2i, 2i + 1), not (i, i + half)
    masked: bool = False  # a masked language model, not a causal one
    token_types: str = ""  # name of their table of token types; our positions contain its first row
    unused: str = ""  # their module whose bias is unused or is shared with its decoder
    first_position: int = 0  # row of their position table for the first token
    counts_rows: bool = False  # their number of positions includes the rows before the first token


# Names of sizes that most families share, in the order in which they are written.
SHARED_SIZES = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_kv_heads": "num_attention_heads",
    "n_heads": "num_attention_heads",
    "dim_ff": "intermediate_size",
    "max_seq_len": "max_position_embeddings",
    "tied_embeddings": "tie_word_embeddings",
}
EVERYWHERE: dict[str, object] = {
    "layer_architecture": "custom-transformer",
    "causal": True,
    "objective": "next-token",
    "norm_position": "pre",
    "head_dim": None,
    "embedding_norm": False,
    "readout_transform": False,
    "readout_bias": False,
    "norm_gain": True,
    "qk_norm": False,
    "attn_softcap": None,
    "attn_sink": None,
    "attn_gate": None,
    "n_predict": 1,
    "diff_attention": False,
    "value_residual": False,
    "value_embeddings": False,
    "canon": None,
    "stream_lambdas": False,
    "n_loops": 1,
    "share": None,
    "residual": "plain",
    "logit_softcap": None,
    "separate_heads": False,
    "n_experts": 0,
    "n_shared_experts": 0,
    "router_bias": False,
    "balance": "loss",
    "mup_input_mult": 1.0,  # muP
    "mup_attn_mult": 1.0,  # muP
    "mup_output_mult": 1.0,  # muP
}
