"""The checkpoint's own chat template, with the tokens between the tiles of an image."""

from __future__ import annotations

from vlcore import Checkpoint, ConfigError, Control, JinjaTemplate, OptionError, Rows, Text

_AROUND = "<fake_token_around_image>"
_END = "<end_of_utterance>"


class Idefics3Template(JinjaTemplate):
    """Writes the row and column before the embeddings of each tile, and the whole image last."""

    def expand(self, layout: tuple[int, int], num_rows: int) -> tuple[Text | Control | Rows, ...]:
        """Return the tiles line by line, and the whole image last.

        Args:
            layout: lines and columns of tiles; ``(0, 0)`` if the image was not split.
            num_rows: number of embeddings of all tiles and of the whole image.

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
    """Return the chat template of the checkpoint.

    Raises:
        OptionError: a name is given.
        ConfigError: the checkpoint has none.
    """
    if name is not None:
        raise OptionError(
            f"there is no chat template {name!r}: {checkpoint.name} has only its own; leave the "
            "name out"
        )
    if checkpoint.chat_template is None:
        raise ConfigError(
            f"{checkpoint.name} ships no chat template (chat_template.jinja, chat_template.json or "
            "chat_template in processor_config.json or tokenizer_config.json): use a checkpoint "
            "that was trained on conversations"
        )
    return Idefics3Template(
        checkpoint.chat_template, stop=(_END,), variables=checkpoint.special_tokens
    )
