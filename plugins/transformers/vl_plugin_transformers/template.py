"""The checkpoint's own chat template, with the expansions of transformers' processors."""

from __future__ import annotations

from vl_plugin_transformers.families import FAMILIES
from vl_plugin_transformers.processor import FamilyProcessor, Layout
from vlcore import Checkpoint, ConfigError, Control, JinjaTemplate, Rows


class TransformersTemplate(JinjaTemplate):
    """The Jinja template of a checkpoint."""

    def expand(self, layout: Layout, num_rows: int) -> tuple[Control | Rows, ...]:  # noqa: ARG002
        """Return what the processor writes for an image or a video."""
        return tuple(Rows(run) if isinstance(run, int) else Control(run) for run in layout.runs)


def load_chat_template(checkpoint: Checkpoint) -> TransformersTemplate:
    """Load the template of a checkpoint.

    Raises:
        ConfigError: the checkpoint has none.
    """
    family = FAMILIES[checkpoint.config["model_type"]]
    source = checkpoint.chat_template or family.template
    if not source:
        raise ConfigError(
            f"{checkpoint.name} has no chat template: copy chat_template.jinja, or "
            "tokenizer_config.json with a chat_template, from the original repository"
        )
    special_tokens = checkpoint.special_tokens
    processor = FamilyProcessor(checkpoint)
    return TransformersTemplate(
        source,
        image_token=processor.image_token,
        video_token=processor.video_token,
        stop=tuple(filter(None, [special_tokens.get("eos_token")])),
        variables=special_tokens,
        adds_prefix=processor.adds_prefix,
        response_template=checkpoint.response_template,
    )
