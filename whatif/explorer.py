"""Load and inspect models: all names of `model_explorer`, for saved runs, and of `gpt2`, for models of HuggingFace."""

from gpt2 import *  # noqa: F403
from model_explorer import *  # noqa: F403
