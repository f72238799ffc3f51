"""A family of HuggingFace models: its names for our settings and modules."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Family:
    """Models of transformers that differ only in their settings."""

    # Names in a config by field of ours. Where two fields share a name, the last one is written.
    settings: dict[str, str]
    fixed: dict[str, object]  # our fields that no setting of theirs changes
    names: dict[str, str]  # modules of theirs and ours; * is the number of a layer
    activation: str = "hidden_act"  # the setting that names it
    constants: dict[str, object] = field(default_factory=dict)  # settings of every config that we write
    conv1d: bool = False  # whether matrices in layers are [in, out]
    needed: dict[str, object] = field(default_factory=dict)  # as NEEDED, of this family alone
    masked: bool = False  # a masked language model, not a causal one
    token_types: str = ""  # name of their table; our positions contain its first row
    unused: str = ""  # their module whose bias is unused or is shared with its decoder
    first_position: int = 0  # row of their position table for the first token


EVERYWHERE: dict[str, object] = {
    "layer_architecture": "custom-transformer",
    "causal": True,
    "objective": "next-token",
    "norm_position": "pre",
    "embedding_norm": False,
    "readout_transform": False,
    "readout_bias": False,
    "qk_norm": False,
    "separate_heads": False,
}
