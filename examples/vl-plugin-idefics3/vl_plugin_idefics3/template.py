"""The checkpoint's own chat template, with the tokens that stand between the tiles of a picture."""

from __future__ import annotations

from vlcore import Checkpoint, ConfigError, Control, JinjaTemplate, OptionError, Rows, Text

_AROUND = "<fake_token_around_image>"
_END = "<end_of_utterance>"


class Idefics3Template(JinjaTemplate):
    """Rows of a picture's tiles, each behind its row and column, then those of the whole."""

    def expand(self, layout: tuple[int, int], num_rows: int) -> tuple[Text | Control | Rows, ...]:
        """Give the tiles line by line, and the whole picture last.

        Args:
            layout: lines and columns of tiles; ``(0, 0)`` where the picture was not cut.
            num_rows: rows of all tiles and of the whole.

        Source: ``Idefics3Processor.replace_image_token`` of transformers.
        """
        lines, columns = layout
        rows = Rows(num_rows // (lines * columns + 1))
        parts: list[Text | Control | Rows] = []
        for line in range(1, lines + 1):
            for column in range(1, columns + 1):
                parts += [Control(f"{_AROUND}<row_{line}_col_{column}>"), rows]
            parts.append(Control("\n"))
        before = "\n" if lines else ""
        return (*parts, Control(f"{before}{_AROUND}<global-img>"), rows, Control(_AROUND))


def load_chat_template(checkpoint: Checkpoint, name: str | None) -> Idefics3Template:
    """Give the template that the checkpoint ships.

    Raises:
        OptionError: a name is given.
        ConfigError: the checkpoint ships none.
    """
    if name is not None:
        raise OptionError(
            f"there is no chat template {name!r}: {checkpoint.name} has its own alone; name none"
        )
    if checkpoint.chat_template is None:
        raise ConfigError(
            f"{checkpoint.name} ships no chat template (chat_template.jinja, chat_template.json or "
            "chat_template in processor_config.json or tokenizer_config.json): take a checkpoint "
            "that was trained on conversations"
        )
    return Idefics3Template(
        checkpoint.chat_template, stop=(_END,), variables=checkpoint.special_tokens
    )
