"""From what a person asked for on the command line to a conversation."""

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec

import torch

from rlhf_ppo.chat.about import about_run
from rlhf_ppo.chat.models import find_models, load_model
from rlhf_ppo.chat.terminal import Chat, read_seed, read_temperature
from rlhf_ppo.console import activity, quieten_libraries, tick
from rlhf_ppo.errors import UserError


def start(
    paths: Sequence[str],
    *,
    temperature: str | None,
    seed: str,
    system: str | None,
    max_new_tokens: int | None,
    web_port: int | None,
) -> None:
    """Load the models and talk until the person ends it; what is None is the run's.

    Args:
        paths: folders of runs, models or adapters, or hub ids.
        temperature: as written.
        seed: as written.
        system: prompt; an empty one is none.
        max_new_tokens: longest answer (tokens).
        web_port: of a local page; None: in the terminal.

    Raises:
        UserError: a setting or path that is wrong, or the page's library is not installed.
    """
    if web_port is not None and find_spec("nicegui") is None:
        raise UserError("--web needs NiceGUI, which is not installed: pip install 'rlhf_ppo[web]'.")
    found, settings = find_models(paths)
    settings = replace(settings, seed=read_seed(seed))
    if temperature is not None:
        settings = replace(settings, temperature=read_temperature(temperature))
    if system is not None:
        settings = replace(settings, system=system or None)
    if max_new_tokens is not None:
        if max_new_tokens < 1:
            raise UserError(f"--max_new_tokens {max_new_tokens}: must be 1 or more.")
        settings = replace(settings, max_new_tokens=max_new_tokens)
    quieten_libraries()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with activity("loading the models", len(found)):
        models = []
        for named in found:
            models.append(load_model(named, device))
            tick()
    about = about_run(paths, device)
    # What the policy has never seen, a second turn, is not what a person should judge it by.
    settings = replace(settings, history=not about.single_turn)
    if web_port is None:
        Chat(models, settings, about).talk()
    else:
        from rlhf_ppo.chat.web import serve  # NiceGUI is an extra

        serve(models, settings, web_port, about)
