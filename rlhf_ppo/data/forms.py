"""Rows as other programs write them, brought into the columns that TRL reads.

ShareGPT rows hold `conversations` of {"from", "value"}; Alpaca rows `instruction`, `input` and
`output`. Both may have `system`, as LLaMA-Factory's data sets do.
"""

from typing import Any

from rlhf_ppo.config import DataConfig
from rlhf_ppo.data.conversation import BadRow

Values = dict[str, Any]

SPEAKERS = {
    "system": ("system", "system_prompt", "developer"),
    "user": ("human", "user", "prompter", "person"),
    "assistant": (
        *("gpt", "assistant", "chatgpt", "bot", "model", "bard", "bing", "claude", "llm"),
        *("function_call", "tool_call"),
    ),
    "tool": ("tool", "function", "observation", "function_response", "tool_response", "ipython"),
}
ROLE_OF = {name: role for role, names in SPEAKERS.items() for name in names}
ANSWERS = ("completion", "chosen", "rejected")
CONVERSATIONS = ("prompt", "completion", "chosen", "rejected", "messages", "conversations")


def to_trl(values: Values, kind: str, rules: DataConfig) -> Values:
    """A row in TRL's columns; one that has them already is left as it is.

    Args:
        values: of the row, under our names (`data.columns`).
        kind: "prompts", "demonstrations" or "preferences".
        rules: the settings of the data section.

    Raises:
        BadRow: a form that is known, with something in it that cannot be used.
    """
    if "conversation" in values and not {"conversations", "messages", "prompt"} & set(values):
        others = {name: value for name, value in values.items() if name != "conversation"}
        values = others | {"conversations": values["conversation"]}
    answers = {k: [v] for k, v in values.items() if k in ANSWERS and isinstance(v, dict)}
    values = values | answers  # one message: a list of one
    if _is_sharegpt(values):
        values = _from_sharegpt(values)
    elif "instruction" in values and not {"prompt", "messages"} & set(values):
        values = _from_alpaca(values, kind, rules)
    sides = {"preferences": {"chosen", "rejected"}, "demonstrations": {"chosen"}}.get(kind, set())
    imitated = kind == "preferences" or rules.chosen_as_demonstrations
    if sides and imitated and {"messages", *sides} <= set(values):
        messages = values["messages"]
        values = {"prompt": messages} | {k: v for k, v in values.items() if k != "messages"}
    return values


def join_input(instruction: Any, given: Any) -> Any:
    """Alpaca's instruction with its `input` on a line of its own, as LLaMA-Factory joins them."""
    if given is None or (isinstance(given, str) and not given.strip()):
        return instruction
    if not isinstance(given, str) or not isinstance(instruction, str):
        raise BadRow("instruction and input must both be text", f"not {type(given).__name__}")
    return f"{instruction}\n{given}" if instruction.strip() else given


def _speaks(value: Any) -> bool:
    return isinstance(value, dict) and ("from" in value or "value" in value)


def _is_sharegpt(values: Values) -> bool:
    if isinstance(values.get("conversations"), list) and "messages" not in values:
        return True
    found = [values.get(name) for name in CONVERSATIONS]
    return any(map(_speaks, (part for item in found if isinstance(item, list) for part in item)))


def _from_sharegpt(values: Values) -> Values:
    """{"from", "value"} as {"role", "content"}, with the roles that chat templates know.

    TRL renames the keys, in place; the names of the speakers are ours to settle.
    """
    from trl.data_utils import maybe_convert_to_chatml

    if values.get("tools") not in (None, "", "[]", []):
        raise BadRow(
            "declares tools, which no stage shows to a model; remove the column `tools`, or the row"
        )
    copied, kept = dict(values), {}
    if "messages" in copied and "conversations" in copied:  # TRL would drop the former
        kept = {"conversations": copied.pop("conversations")}
    speaking = []
    for name in CONVERSATIONS:
        if isinstance(copied.get(name), list):
            copied[name] = [dict(m) if isinstance(m, dict) else m for m in copied[name]]
            if any(map(_speaks, copied[name])):
                speaking.append("messages" if name == "conversations" else name)
    made: Values = maybe_convert_to_chatml(copied) | kept
    for name in speaking:
        made[name] = [_with_role(item) for item in made[name]]
    system, messages = made.get("system"), made.get("messages")
    if isinstance(messages, list) and isinstance(system, str) and system.strip():
        first = messages[0] if messages and isinstance(messages[0], dict) else {}
        if first.get("role") != "system":
            made["messages"] = [{"role": "system", "content": system}, *messages]
    return made


def _with_role(message: Any) -> Any:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return message  # `read_text` says what is wrong with it
    speaker = message["role"].strip().lower()
    if speaker not in ROLE_OF:
        raise BadRow(
            f"a message is from someone who is not known (known: {', '.join(ROLE_OF)})",
            repr(message["role"]),
        )
    return message | {"role": ROLE_OF[speaker]}


def _from_alpaca(values: Values, kind: str, rules: DataConfig) -> Values:
    """instruction, input and output as a conversation; as plain text if messages are not wanted."""
    words = join_input(values["instruction"], values.get("input"))
    if not isinstance(words, str) or not words.strip():
        raise BadRow("instruction is empty, or no text")
    taken = {"instruction", "input"}
    earlier: list[dict[str, str]] = []
    system, history = values.get("system"), values.get("history")
    if isinstance(system, str) and system.strip():
        earlier.append({"role": "system", "content": system})
        taken.add("system")
    for turn in history if isinstance(history, list) else []:
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise BadRow("history must be a list of pairs: an instruction and its answer")
        roles = ("user", "assistant")
        earlier += [{"role": r, "content": t} for r, t in zip(roles, turn, strict=True)]
        taken.add("history")
    prompt: Any = [*earlier, {"role": "user", "content": words}]
    if rules.to_chat == "never":
        if earlier:
            raise BadRow("has a system text or a history, which data.to_chat = never cannot write")
        prompt = words
    made: Values = {"prompt": prompt}
    if kind == "demonstrations" and "output" in values and "completion" not in values:
        made["completion"] = values["output"]
        taken.add("output")
    return made | {name: value for name, value in values.items() if name not in taken}
