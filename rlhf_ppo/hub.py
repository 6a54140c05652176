"""The Hugging Face hub, without a minute of retries where there is no network."""

import threading
from functools import cache

import huggingface_hub
from huggingface_hub import constants

from rlhf_ppo.console import say

PROBE_SECONDS = 5.0


@cache
def hub_problem() -> str | None:
    """Why only the cache can be used; None: the hub answers.

    The hub is tried once in a process, before its first use. Where it does not answer, the process
    goes on as with HF_HUB_OFFLINE=1: otherwise each file costs about 23 s of retries
    (`huggingface_hub.utils.http_backoff`), also files that are in the cache.
    """
    if huggingface_hub.is_offline_mode():
        return "HF_HUB_OFFLINE is set, so the hub is not queried"
    found = [f"no answer within {PROBE_SECONDS:g} s"]

    def query() -> None:
        try:
            huggingface_hub.get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
        except Exception as error:  # every HTTP library that the hub's client has used has its own
            found[:] = [str(error).strip() or type(error).__name__]
        else:
            found.clear()

    # In a thread: looking up a host's name takes as long as the system likes.
    attempt = threading.Thread(target=query, daemon=True)
    attempt.start()
    attempt.join(PROBE_SECONDS)
    if not found:
        return None
    reason = found[0]
    _go_offline()
    say(f"{constants.ENDPOINT} does not answer ({reason}): only the local cache is used")
    return f"{constants.ENDPOINT} does not answer ({reason})"


def not_here(name: str, kind: str) -> str | None:
    """What to say of a hub id that cannot be loaded; None: the hub answers, so it is not that.

    Args:
        name: the id.
        kind: of the repository, `model` or `dataset`.
    """
    problem = hub_problem()
    if problem is None:
        return None
    option = "" if kind == "model" else f" --repo-type {kind}"
    return (
        f"there is no folder {name!r}, the local cache does not hold a {kind} of that name, and "
        f"{problem}. Correct the name, or download it where there is a network (hf download "
        f"{name}{option}) and give the folder."
    )


def _go_offline() -> None:
    """Switch the libraries to the mode in which they read their caches and never retry."""
    import datasets

    constants.HF_HUB_OFFLINE = True  # what `huggingface_hub.is_offline_mode` reads
    datasets.config.HF_HUB_OFFLINE = True
