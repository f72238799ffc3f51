"""Causal families as tables: GPT-2, GPT-J, GPT-Neo, GPT-NeoX, OPT, Falcon, StarCoder2, and those of Llama's kind."""

from model.hf.families import EVERYWHERE, SHARED_SIZES, Family
from model.hf.translations import (
    embedding_scale,
    expert_counts,
    experts,
    falcon_blocks,
    fixed_quick_gelu,
    head_dim,
    legacy_gelu,
    local_layers,
    norm_place,
    parallel_blocks,
    query_scale,
    rope_layers,
    ropes,
    rotary_dim,
    rotary_scaling,
    unscaled_scores,
    used_windows,
    windows,
)
from model.transformer.gated import GATE_LIMIT

ROTARY = SHARED_SIZES | {"rotary_base": "rope_theta"}

gpt2 = Family(
    settings={
        "dim": "n_embd",
        "n_layers": "n_layer",
        "n_kv_heads": "n_head",
        "n_heads": "n_head",
        "dim_ff": "n_inner",
        "max_seq_len": "n_positions",
        "norm_eps": "layer_norm_epsilon",
        "tied_embeddings": "tie_word_embeddings",
    },
    fixed=EVERYWHERE
    | {"positions": "learned", "sliding_window": None, "parallel_blocks": False}
    | {"norm": "layernorm", "gated": False}
    | {"bias_qkv": True, "bias_out": True, "bias_ff": True, "bias_norm": True},
    names={
        "transformer.wte": "embed.tokens",
        "transformer.wpe": "embed.positions.table",
        "transformer.h.*.ln_1": "decoder.layers.*.norm1.before",
        "transformer.h.*.attn.c_attn": "decoder.layers.*.mixer.qkv",
        "transformer.h.*.attn.c_proj": "decoder.layers.*.mixer.out",
        "transformer.h.*.ln_2": "decoder.layers.*.norm2.before",
        "transformer.h.*.mlp.c_fc": "decoder.layers.*.linear1",
        "transformer.h.*.mlp.c_proj": "decoder.layers.*.linear2",
        "transformer.ln_f": "decoder.norm",
        "lm_head": "unembed",
    },
    activation="activation_function",
    constants={"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0},
    conv1d=True,
)
gpt_neox = Family(
    settings=ROTARY
    | {"rotary_frac": "partial_rotary_factor", "norm_eps": "layer_norm_eps"}
    | {"bias_qkv": "attention_bias", "bias_out": "attention_bias"},
    fixed=EVERYWHERE
    | {"positions": "rotary", "sliding_window": None}
    | {"norm": "layernorm", "gated": False, "bias_ff": True, "bias_norm": True},
    translations=(rotary_scaling, parallel_blocks),
    names={
        "gpt_neox.embed_in": "embed.tokens",
        "gpt_neox.layers.*.input_layernorm": "decoder.layers.*.norm1.before",
        "gpt_neox.layers.*.attention.query_key_value": "decoder.layers.*.mixer.qkv",
        "gpt_neox.layers.*.attention.dense": "decoder.layers.*.mixer.out",
        "gpt_neox.layers.*.post_attention_layernorm": "decoder.layers.*.norm2.before",
        "gpt_neox.layers.*.mlp.dense_h_to_4h": "decoder.layers.*.linear1",
        "gpt_neox.layers.*.mlp.dense_4h_to_h": "decoder.layers.*.linear2",
        "gpt_neox.final_layer_norm": "decoder.norm",
        "lm_head": "unembed",
    },
)
llama = Family(
    settings=ROTARY
    | {"n_kv_heads": "num_key_value_heads", "norm_eps": "rms_norm_eps"}
    | {"bias_qkv": "attention_bias", "bias_out": "attention_bias", "bias_ff": "mlp_bias"},
    fixed=EVERYWHERE
    | {"positions": "rotary", "rotary_frac": 1.0, "sliding_window": None, "parallel_blocks": False}
    | {"norm": "rmsnorm", "gated": True},
    translations=(head_dim, rotary_scaling),
    names={
        "model.embed_tokens": "embed.tokens",
        "model.layers.*.input_layernorm": "decoder.layers.*.norm1.before",
        "model.layers.*.self_attn.q_proj": "decoder.layers.*.mixer.qkv",
        "model.layers.*.self_attn.k_proj": "decoder.layers.*.mixer.qkv",
        "model.layers.*.self_attn.v_proj": "decoder.layers.*.mixer.qkv",
        "model.layers.*.self_attn.o_proj": "decoder.layers.*.mixer.out",
        "model.layers.*.post_attention_layernorm": "decoder.layers.*.norm2.before",
        "model.layers.*.mlp.gate_proj": "decoder.layers.*.linear1",
        "model.layers.*.mlp.up_proj": "decoder.layers.*.linear_up",
        "model.layers.*.mlp.down_proj": "decoder.layers.*.linear2",
        "model.norm": "decoder.norm",
        "lm_head": "unembed",
    },
)
OF_LLAMA = {"n_kv_heads": "num_key_value_heads", "norm_eps": "rms_norm_eps"}
qwen2 = Family(
    settings=ROTARY | OF_LLAMA,
    fixed=EVERYWHERE
    | {"positions": "rotary", "rotary_frac": 1.0, "parallel_blocks": False, "norm": "rmsnorm", "gated": True}
    | {"bias_qkv": True, "bias_out": False, "bias_ff": False},
    translations=(head_dim, rotary_scaling, used_windows),
    names=llama.names,
)
mistral = Family(
    settings=ROTARY | OF_LLAMA | {"sliding_window": "sliding_window"},
    fixed=qwen2.fixed | {"bias_qkv": False},
    translations=(head_dim, rotary_scaling),
    names=llama.names,
)
QK_NORMS: dict[str, str | tuple[str, ...]] = {
    f"model.layers.*.self_attn.{name}": f"decoder.layers.*.mixer.{name}" for name in ("q_norm", "k_norm")
}
qwen3 = Family(
    settings=ROTARY | OF_LLAMA | {"bias_qkv": "attention_bias", "bias_out": "attention_bias"},
    fixed=qwen2.fixed | {"bias_ff": False, "qk_norm": True},
    translations=(head_dim, rotary_scaling, used_windows),
    names=llama.names | QK_NORMS,
    constants={"pad_token_id": None},
)
qwen3_moe = Family(
    settings={ours: theirs for ours, theirs in qwen3.settings.items() if ours != "dim_ff"}
    | {"sliding_window": "sliding_window"},
    fixed=qwen3.fixed,
    translations=(head_dim, rotary_scaling, experts),
    names=qwen3.names
    | {
        "model.layers.*.mlp.gate": "decoder.layers.*.experts.router.map",
        "model.layers.*.mlp.experts": "decoder.layers.*.experts",
    },
    constants=qwen3.constants | {"use_sliding_window": True},
)
mixtral = Family(
    settings=mistral.settings,
    fixed=mistral.fixed,
    translations=(head_dim, rotary_scaling, expert_counts),
    names=llama.names
    | {
        "model.layers.*.mlp.gate": "decoder.layers.*.experts.router.map",
        "model.layers.*.mlp.experts": "decoder.layers.*.experts",
    },
)
gpt_oss = Family(
    settings=ROTARY | OF_LLAMA | {"bias_qkv": "attention_bias", "bias_out": "attention_bias"},
    fixed=llama.fixed | {"attn_sink": "learned", "router_bias": True, "bias_ff": True, "gated": "clamped"},
    translations=(head_dim, rotary_scaling, windows, expert_counts, fixed_quick_gelu),
    names=llama.names
    | {
        "model.layers.*.self_attn": "decoder.layers.*.mixer.sink",
        "model.layers.*.mlp.router": "decoder.layers.*.experts.router.map",
        "model.layers.*.mlp.experts": "decoder.layers.*.experts",
    },
    needed={"swiglu_alpha": 1.702, "swiglu_limit": GATE_LIMIT},
    interleaved_experts=True,
)
gemma = Family(
    settings=ROTARY | OF_LLAMA | {"bias_qkv": "attention_bias", "bias_out": "attention_bias"},
    fixed=llama.fixed | {"bias_ff": False},
    translations=(head_dim, rotary_scaling, embedding_scale, legacy_gelu),
    names=llama.names,
    constants={"pad_token_id": None},
    needed={"use_bidirectional_attention": (None, False)},
    gain_offset=1.0,
)
gemma2 = Family(
    settings=ROTARY
    | OF_LLAMA
    | {"attn_softcap": "attn_logit_softcapping", "logit_softcap": "final_logit_softcapping"}
    | {"bias_qkv": "attention_bias", "bias_out": "attention_bias"},
    fixed=EVERYWHERE
    | {"positions": "rotary", "rotary_frac": 1.0, "parallel_blocks": False, "norm": "rmsnorm", "gated": True}
    | {"norm_position": "sandwich", "bias_ff": False},
    translations=(head_dim, rotary_scaling, windows, embedding_scale, query_scale),
    names=llama.names
    | {
        "model.layers.*.post_attention_layernorm": "decoder.layers.*.norm1.inside",
        "model.layers.*.pre_feedforward_layernorm": "decoder.layers.*.norm2.before",
        "model.layers.*.post_feedforward_layernorm": "decoder.layers.*.norm2.inside",
    },
    activation="hidden_activation",
    constants={"pad_token_id": None},
    needed={"use_bidirectional_attention": (None, False)},
    gain_offset=1.0,
)
gemma3_text = Family(
    settings={
        ours: theirs
        for ours, theirs in gemma2.settings.items()
        if ours not in ("rotary_base", "attn_softcap")
    },
    fixed=gemma2.fixed | {"qk_norm": True},
    translations=(head_dim, ropes, windows, embedding_scale, query_scale),
    names=gemma2.names | QK_NORMS,
    activation=gemma2.activation,
    constants=gemma2.constants,
    needed=gemma2.needed | {"attn_logit_softcapping": None},  # which transformers ignores
    gain_offset=1.0,
)
olmo2 = Family(
    settings=ROTARY | OF_LLAMA | {"bias_qkv": "attention_bias", "bias_out": "attention_bias"},
    fixed=llama.fixed | {"bias_ff": False, "norm_position": "inside", "qk_norm": "all-heads"},
    translations=(rotary_scaling,),
    names={theirs: ours for theirs, ours in llama.names.items() if "input_layernorm" not in theirs}
    | {
        "model.layers.*.post_attention_layernorm": "decoder.layers.*.norm1.inside",
        "model.layers.*.post_feedforward_layernorm": "decoder.layers.*.norm2.inside",
        "model.layers.*.self_attn.q_norm": "decoder.layers.*.mixer.q_norm.norm",
        "model.layers.*.self_attn.k_norm": "decoder.layers.*.mixer.k_norm.norm",
    },
    constants={"pad_token_id": None},
)
smollm3 = Family(
    settings=llama.settings,
    fixed={name: value for name, value in llama.fixed.items() if name not in ("positions", "sliding_window")},
    translations=(rope_layers, rotary_scaling, used_windows),
    names=llama.names,
    constants={"pad_token_id": None},
)
gptj = Family(
    settings=gpt2.settings,
    fixed=EVERYWHERE
    | {"positions": "rotary", "rotary_base": 10_000.0, "rotary_scaling": None}
    | {"sliding_window": None, "parallel_blocks": "one-norm"}
    | {"norm": "layernorm", "gated": False, "readout_bias": True}
    | {"bias_qkv": False, "bias_out": False, "bias_ff": True, "bias_norm": True},
    translations=(rotary_dim,),
    names={
        "transformer.wte": "embed.tokens",
        "transformer.h.*.ln_1": "decoder.layers.*.norm1.before",
        "transformer.h.*.attn.q_proj": "decoder.layers.*.mixer.qkv",
        "transformer.h.*.attn.k_proj": "decoder.layers.*.mixer.qkv",
        "transformer.h.*.attn.v_proj": "decoder.layers.*.mixer.qkv",
        "transformer.h.*.attn.out_proj": "decoder.layers.*.mixer.out",
        "transformer.h.*.mlp.fc_in": "decoder.layers.*.linear1",
        "transformer.h.*.mlp.fc_out": "decoder.layers.*.linear2",
        "transformer.ln_f": "decoder.norm",
        "lm_head": "unembed",
    },
    activation="activation_function",
    rotates_neighbors=True,
)
opt = Family(
    settings=SHARED_SIZES
    | {"dim_ff": "ffn_dim", "norm_gain": "layer_norm_elementwise_affine"}
    | {"bias_qkv": "enable_bias", "bias_out": "enable_bias", "bias_ff": "enable_bias"},
    fixed=EVERYWHERE
    | {"positions": "learned", "sliding_window": None, "parallel_blocks": False, "residual": "plain"}
    | {"norm": "layernorm", "norm_eps": 1e-5, "gated": False, "bias_norm": True},
    translations=(norm_place,),
    names={
        "model.decoder.embed_tokens": "embed.tokens",
        "model.decoder.embed_positions": "embed.positions.table",
        **{f"model.decoder.layers.*.self_attn.{one}_proj": "decoder.layers.*.mixer.qkv" for one in "qkv"},
        "model.decoder.layers.*.self_attn.out_proj": "decoder.layers.*.mixer.out",
        # Before or after a block, by a setting.
        "model.decoder.layers.*.self_attn_layer_norm": (
            "decoder.layers.*.norm1.before",
            "decoder.layers.*.norm1.after",
        ),
        "model.decoder.layers.*.final_layer_norm": (
            "decoder.layers.*.norm2.before",
            "decoder.layers.*.norm2.after",
        ),
        "model.decoder.layers.*.fc1": "decoder.layers.*.linear1",
        "model.decoder.layers.*.fc2": "decoder.layers.*.linear2",
        "model.decoder.final_layer_norm": "decoder.norm",
        "lm_head": "unembed",
    },
    activation="activation_function",
    constants={"pad_token_id": None, "dropout": 0.0},
    needed={"_remove_final_layer_norm": False},
    first_position=2,
)
gpt_neo = Family(
    settings=SHARED_SIZES
    | {"n_layers": "num_layers", "n_kv_heads": "num_heads", "n_heads": "num_heads"}
    | {"norm_eps": "layer_norm_epsilon"},
    fixed=EVERYWHERE
    | {"positions": "learned", "parallel_blocks": False, "norm": "layernorm", "gated": False}
    | {"bias_qkv": False, "bias_out": True, "bias_ff": True, "bias_norm": True},
    translations=(local_layers, unscaled_scores),
    names={theirs: ours for theirs, ours in gpt2.names.items() if ".attn." not in theirs}
    | {
        "transformer.h.*.attn.attention.q_proj": "decoder.layers.*.mixer.qkv",
        "transformer.h.*.attn.attention.k_proj": "decoder.layers.*.mixer.qkv",
        "transformer.h.*.attn.attention.v_proj": "decoder.layers.*.mixer.qkv",
        "transformer.h.*.attn.attention.out_proj": "decoder.layers.*.mixer.out",
    },
    activation="activation_function",
)
starcoder2 = Family(
    settings=ROTARY
    | {"n_kv_heads": "num_key_value_heads", "norm_eps": "norm_epsilon", "sliding_window": "sliding_window"}
    | {"bias_qkv": "use_bias", "bias_out": "use_bias", "bias_ff": "use_bias"},
    fixed=EVERYWHERE
    | {"positions": "rotary", "rotary_frac": 1.0, "parallel_blocks": False}
    | {"norm": "layernorm", "gated": False, "bias_norm": True},
    translations=(rotary_scaling,),
    names={theirs: ours for theirs, ours in llama.names.items() if ".mlp." not in theirs}
    | {
        "model.layers.*.mlp.c_fc": "decoder.layers.*.linear1",
        "model.layers.*.mlp.c_proj": "decoder.layers.*.linear2",
    },
)
falcon = Family(
    settings=ROTARY
    | {"dim_ff": "ffn_hidden_size", "norm_eps": "layer_norm_epsilon"}
    | {"bias_qkv": "bias", "bias_out": "bias", "bias_ff": "bias"},
    fixed=EVERYWHERE
    | {"positions": "rotary", "rotary_frac": 1.0, "sliding_window": None}
    | {"norm": "layernorm", "gated": False, "bias_norm": True},
    translations=(rotary_scaling, falcon_blocks),
    names={
        "transformer.word_embeddings": "embed.tokens",
        "transformer.h.*.self_attention.query_key_value": "decoder.layers.*.mixer.qkv",
        "transformer.h.*.self_attention.dense": "decoder.layers.*.mixer.out",
        # One norm before both blocks or before the first, or two with names of their own.
        "transformer.h.*.input_layernorm": "decoder.layers.*.norm1.before",
        "transformer.h.*.post_attention_layernorm": "decoder.layers.*.norm2.before",
        "transformer.h.*.ln_attn": "decoder.layers.*.norm1.before",
        "transformer.h.*.ln_mlp": "decoder.layers.*.norm2.before",
        "transformer.h.*.mlp.dense_h_to_4h": "decoder.layers.*.linear1",
        "transformer.h.*.mlp.dense_4h_to_h": "decoder.layers.*.linear2",
        "transformer.ln_f": "decoder.norm",
        "lm_head": "unembed",
    },
    activation="activation",
    # They divide ALiBi's biases by the root of the width of a head, and round them to bfloat16.
    needed={"alibi": (False, None)},
)
