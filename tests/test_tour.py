"""The Python of README and docs, block after block: on runs trained here, and on small random models where hub names stand."""

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import pytest
import torch

import main
import model_explorer
from common.registry import Registry
from model import context
from tests.model.hf.hf_models import random_hf

ROOT = Path(__file__).resolve().parents[1]
FIRST = [ROOT / "README.md", ROOT / "docs" / "getting-started.md"]  # later pages use what these define
PAGES = [*FIRST, *(page for page in sorted(ROOT.glob("docs/*.md")) if page not in FIRST)]
# An indented block is a part of something.
BLOCKS = [
    (page.name, block)
    for page in PAGES
    for block in re.findall(r"```python\n(\w.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
]
mpl.use("Agg")
IDS = {"bos_token_id": 50256, "eos_token_id": 50256}


@contextmanager
def restored_registries() -> Iterator[None]:
    """Remove what the block adds to any registry, in which others look things up."""
    before = [(one, dict(one)) for one in gc.get_objects() if type(one) is Registry]
    try:
        yield
    finally:
        for registry, entries in before:
            registry.clear()
            registry.update(entries)


@pytest.fixture(scope="module")
def names(gpt2_tokenizer, tmp_path_factory):
    """Names that the Python code of README and docs has defined after all of it has run."""
    root = tmp_path_factory.mktemp("tour")
    for name, family, depth in (
        ("gpt2", "gpt2", {"n_layer": 6}),
        ("EleutherAI/pythia-70m", "gpt_neox", {"num_hidden_layers": 6}),
    ):
        random_hf(family, 0, vocab_size=50257, **IDS, **depth).save_pretrained(root / name)
        gpt2_tokenizer.save_pretrained(root / name)
    few = ["n_samples=2000", "early_stop_nsamples=640", "checkpoint_every=10", "threads=1"]
    options = ["--no-wandb", "--save", *(part for field in few for part in ("--set", field))]
    with pytest.MonkeyPatch.context() as patch, restored_registries():
        patch.chdir(root)  # transformers prefers folders to the hub
        patch.setenv("WHATIF_OUT", str(root))
        torch.set_num_threads(1)
        assert main.main(["--config=test-synth", *options, "--set", 'positions=["none","rotary"]']) == 0
        names = {"timestamp": model_explorer.runs(all=True).index[0]}
        for page, block in BLOCKS:
            exec(compile(block, page, "exec"), names)  # noqa: S102 -- it is what users are told to run
        yield names | {"root": root, "kinds": context.layer_kinds}


def test_the_tour_runs_and_returns_what_it_says(names):
    assert set(names["table"].positions) == {"none", "rotary"}
    assert torch.equal(names["a"], names["b"])
    assert torch.equal(names["a"], names["c"])
    assert torch.allclose(names["d"][:1], names["a"], atol=1e-5)
    assert set(names["e"]) == {"logits", "embeddings", "attns"}
    assert names["seen"]["layers.0.pattern"].shape[2] == 3
    assert not torch.allclose(names["without_attention"], names["lm_gpt2"]("hello hello"))
    assert "swish" in names["kinds"]
    assert (names["root"] / "attentions" / "hello.html").exists()
    assert names["lm_pythia"].n_tokens == 50257
