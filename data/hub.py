"""Whether the Hugging Face hub can be reached, found out in seconds instead of its client's half minute of retries."""

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager


def hub_answers(timeout: float = 5.0) -> bool:
    """True if the hub (HF_ENDPOINT, else huggingface.co) says anything at all; False if HF_HUB_OFFLINE forbids to ask."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
        return False
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=timeout).close()
    except urllib.error.HTTPError:
        return True  # a refusal is an answer too
    except OSError:
        return False
    return True


@contextmanager
def offline() -> Iterator[None]:
    """Inside, the hub's client looks only at what it has downloaded earlier."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
