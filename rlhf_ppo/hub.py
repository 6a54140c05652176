"""Whether the Hugging Face hub can be reached: found out once, within seconds.

The libraries try a hub that cannot be reached again and again, for up to a minute a file.
"""

import os
import socket
import threading
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies

PATIENCE = 4.0  # seconds until a hub that does not answer counts as out of reach


def settle_connection() -> None:
    """Switch the libraries to their offline mode if the hub cannot be reached.

    They then read what is in their cache, and fail at once for what is not.
    """
    if not _reachable():
        import datasets
        from huggingface_hub import constants

        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True


def offline_hint() -> str:
    """What a person should know of a download that failed: whether and why it was offline."""
    from huggingface_hub import constants

    if os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE"):
        return (
            "HF_HUB_OFFLINE is set: only what was downloaded before is found. Unset it, or give a "
            "local path."
        )
    if not _reachable():
        return (
            f"{constants.ENDPOINT} cannot be reached from here, so only the cache was tried "
            "(HF_HUB_OFFLINE=1 skips the attempt). Download it where there is a network, or give a "
            "local path."
        )
    return "Check the name, and that you may read it (hf auth login, for private and gated ones)."


@cache
def _reachable() -> bool:
    """True if a connection to the hub, or to the proxy in front of it, can be opened."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    proxies = getproxies()
    address = urlsplit(proxies.get("https") or proxies.get("all") or constants.ENDPOINT)
    opened = threading.Event()

    def connect() -> None:
        port = address.port or (80 if address.scheme == "http" else 443)
        try:
            socket.create_connection((address.hostname or "", port), PATIENCE).close()
        except (OSError, ValueError):
            return
        opened.set()

    # In a thread: looking up a name takes as long as the system likes.
    attempt = threading.Thread(target=connect, daemon=True)
    attempt.start()
    attempt.join(PATIENCE)
    return opened.is_set()
