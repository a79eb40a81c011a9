"""Chat templates and special tokens in the metadata files of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlcore.checkpoint.files import CheckpointFiles


def read_chat_template(directory: Path, files: CheckpointFiles) -> str | None:
    """Read the source of the Jinja chat template; returns ``None`` without one.

    Raises:
        ConfigError: a file is not a JSON object.
    """
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text("utf-8")
    for filename in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        template = (files.read_json(filename) or {}).get("chat_template")
        if isinstance(template, str):
            return template
    return None


def read_response_template(files: CheckpointFiles) -> dict[str, Any] | None:
    """Read how answers call tools; returns ``None`` if no file describes it for transformers.

    Raises:
        ConfigError: a file is not a JSON object.
    """
    template = (files.read_json("tokenizer_config.json") or {}).get("response_template")
    return template if isinstance(template, dict) else None


def read_special_tokens(files: CheckpointFiles) -> dict[str, str]:
    """Read the text of each special token of the tokenizer, by role such as ``eos_token``.

    Raises:
        ConfigError: a file is not a JSON object.
    """
    tokens: dict[str, str] = {}
    for filename in ("tokenizer_config.json", "special_tokens_map.json"):
        for role, token in (files.read_json(filename) or {}).items():
            text = token.get("content") if isinstance(token, dict) else token
            if role.endswith("_token") and isinstance(text, str):
                tokens[role] = text
    return tokens
