# %% [markdown]
# # muP for any model
#
# Find the learning rate with a small model, and use it with a large one. What that costs in models of HuggingFace, and in a
# network of your own: every line that is there because of muP ends with `# muP`. (For the models of this repository it is one
# field: `parametrization = "mup"`.) `docs/notebooks/parametrization.ipynb` is the same as a notebook, with what it shows.

# %%
import os
import sys
import tempfile
from pathlib import Path

import torch

# The folder of the repository, in which this notebook lies. For a notebook elsewhere, set WHATIF to it.
start = Path(os.environ.get("WHATIF", ".")).resolve()
repository = next(place for place in (start, *start.parents) if (place / "model_explorer.py").is_file())
sys.path.insert(0, str(repository))
folder = Path(tempfile.mkdtemp())  # where base shapes are saved

# %% [markdown]
# ## A model of HuggingFace
#
# Its base is a small model of the same kind. A delta model, of any other sizes, shows what is to grow. Both may be without weights.

# %%
from transformers import GPT2Config, GPT2LMHeadModel

from model.mup.base_shapes import load_base_shapes, make_base_shapes  # muP
from model.mup.parametrization import init_, make_readouts, param_groups, roles, scale_scores  # muP

small = {"n_layer": 2, "vocab_size": 1000, "bos_token_id": 0, "eos_token_id": 0}
base_config = GPT2Config(n_embd=256, n_inner=256, n_head=16, **small)  # muP
delta_config = GPT2Config(n_embd=200, n_inner=300, n_head=5, **small)  # muP
target_config = GPT2Config(n_embd=1024, n_inner=1024 * 4, n_head=32, **small)

with torch.device("meta"):  # muP
    base_model, delta_model = GPT2LMHeadModel(base_config), GPT2LMHeadModel(delta_config)  # muP
make_base_shapes(base_model, delta_model, savefile=folder / "gpt2-256.bsh")  # muP
base_shapes = load_base_shapes(folder / "gpt2-256.bsh")  # muP

target_model = GPT2LMHeadModel(target_config)
made = make_readouts(target_model, base_shapes)  # muP
role = roles(target_model, base_shapes)  # muP
init_(target_model, role)  # muP
scale_scores(target_model, mult=((1024 / 32) / (256 / 16)) ** -0.5)  # muP
optimizer = torch.optim.AdamW(param_groups(target_model, role, lr=1e-3))  # muP

# %% [markdown]
# Train it as ever. What was a linear map out of a width is a readout; matrices between widths have smaller weights, and groups of
# their own:

# %%
print(made, target_model.lm_head.mult)
for group in optimizer.param_groups:
    print(f"{group['name']}: {len(group['params'])} tensors, lr {group['lr']:g}")

# %% [markdown]
# ## Is it right?
#
# If it is, nothing in a model grows or shrinks with width in its first steps: its coordinate check passes. As it comes out of the
# box a model must fail, or the check has seen nothing. Three kinds of models, all by the same lines.

# %%
from functools import partial

from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM

import model_explorer

KINDS = {
    "GPT-2": (GPT2Config, GPT2LMHeadModel),
    "BERT": (BertConfig, BertForMaskedLM),
    "RoBERTa": (RobertaConfig, RobertaForMaskedLM),
}


class Logits(nn.Module):
    """A model of HuggingFace that gives a tensor, and drops nothing out."""

    def __init__(self, kind, width):
        super().__init__()
        config, model = KINDS[kind]
        sizes = {"hidden_size": width, "intermediate_size": 4 * width}  # GPT-2 makes the second itself
        ids = {"vocab_size": 100, "bos_token_id": 0, "eos_token_id": 2}
        self.model = model(config(num_hidden_layers=2, num_attention_heads=4, **sizes, **ids))
        self.eval()

    def forward(self, ids):
        return self.model(ids).logits


def in_mup(kind, width, base_shapes):
    wrapped = Logits(kind, width)
    make_readouts(wrapped, base_shapes)  # muP
    init_(wrapped, roles(wrapped, base_shapes))  # muP
    scale_scores(wrapped, mult=(width / 64) ** -0.5)  # muP
    return wrapped


def optimizer_of(wrapped, base_shapes):
    groups = wrapped.parameters()
    if hasattr(wrapped.model.get_output_embeddings(), "mult"):  # muP
        groups = param_groups(wrapped, roles(wrapped, base_shapes), lr=1e-3)  # muP
    return torch.optim.AdamW(groups, lr=1e-3)


def loss(wrapped, ids):
    return F.cross_entropy(wrapped(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


ids = torch.randint(3, 100, (4, 32), generator=torch.Generator().manual_seed(0))
checks = {}
for kind in KINDS:
    base_shapes = make_base_shapes(Logits(kind, 64), Logits(kind, 128))
    models = {
        "standard": {width: partial(Logits, kind, width) for width in (64, 128, 256)},
        "mup": {width: partial(in_mup, kind, width, base_shapes) for width in (64, 128, 256)},
    }
    checks[kind] = model_explorer.coord_check(
        models,
        [ids],
        partial(optimizer_of, base_shapes=base_shapes),
        loss=loss,
        seeds=(0, 1),
        controls=["standard"],
    )
    print(f"{kind}: {checks[kind].verdict}", *checks[kind].sentences, sep="\n    ")

# %%
checks["GPT-2"].figure

# %%
checks["BERT"].figure

# %%
checks["RoBERTa"].figure

# %% [markdown]
# ## A network of your own
#
# Three hidden layers that tell apart scikit-learn's images of digits, after 40 steps of Adam; five seeds. The best learning rate
# of the standard parametrization falls as the network widens; that of muP stays, and wide networks are better than the narrow one
# there. (That does not make muP's loss the lower one: so small a network learns these images best when all its matrices move
# fast.) Learning rates are a factor of 2.8 apart: of two nearer ones, seeds decide which is the better.

# %%
import pandas as pd
from sklearn.datasets import load_digits

digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32)
images = (images - images.mean()) / images.std()
labels = torch.tensor(digits.target)


class MLP(nn.Sequential):
    def __init__(self, width):
        hidden = [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
        super().__init__(nn.Linear(64, width), nn.ReLU(), *hidden, nn.Linear(width, 10))


mlp_shapes = make_base_shapes(MLP(64), MLP(128))  # muP


def trained_loss(parametrization, dim, lr, random_seed, n_steps=40):
    torch.manual_seed(random_seed)
    mlp = MLP(dim)
    groups = mlp.parameters()
    if parametrization == "mup":
        make_readouts(mlp, mlp_shapes)  # muP
        init_(mlp, roles(mlp, mlp_shapes), drawn="fan_in")  # muP
        groups = param_groups(mlp, roles(mlp, mlp_shapes), lr=lr)  # muP
    adam = torch.optim.Adam(groups, lr=lr, fused=True)
    falling = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.02, n_steps)
    for _ in range(n_steps):
        batch = torch.randint(len(labels), (64,))
        adam.zero_grad()
        F.cross_entropy(mlp(images[batch]), labels[batch]).backward()
        adam.step()
        falling.step()
    with torch.no_grad():
        return F.cross_entropy(mlp(images), labels).item()


runs = [
    {"parametrization": kind, "dim": width, "lr": lr, "random_seed": seed}
    for kind in ("standard", "mup")
    for width in (64, 256, 512)
    for lr in (2**-9.5, 2**-8, 2**-6.5, 2**-5, 2**-3.5)
    for seed in range(5)
]
for run in runs:
    run["train_loss"] = trained_loss(**run)
transfer = model_explorer.transfer_report(pd.DataFrame(runs), metric="train_loss")
print(*transfer.sentences, transfer.verdict, sep="\n")

# %%
transfer.table

# %%
transfer.figure
