"""``PromptBuilder``: the prompt of a conversation as an engine reads it, without an engine."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vlcore._utils.event_loop import LoopThread
from vlcore.checkpoint.checkpoint import Checkpoint
from vlcore.inference.user_input import Prompt, parse_prompt
from vlcore.language.model import LanguageModel
from vlcore.media.policy import DEFAULT_LIMITS, ImageLimits
from vlcore.media.video import Video
from vlcore.plugins.stages import ModelStages
from vlcore.prompts.chat_template import ChatTemplate, write_prompt
from vlcore.prompts.conversation import Conversation
from vlcore.prompts.tokenization import ImageLayout, PromptTokenizer, TokenizedPrompt
from vlcore.vision.encoder import ImageEncoder
from vlcore.vision.model import VisionModel, image_layout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_T = TypeVar("_T")


@dataclass(frozen=True)
class MeasuredImage:
    """An image or video of a conversation, and the number and layout of its embeddings."""

    size: tuple[int, int]
    """Width and height, in pixels."""
    num_frames: int | None
    """Number of frames that the model receives; ``None`` for an image."""
    layout: ImageLayout
    was_encoded: bool
    """Whether the image had to be encoded to determine the number of embeddings."""


class PromptBuilder:
    """Builds prompts from conversations: token ids, and the spans of image embeddings.

    The prompts are those that a pipeline passes to its engine. The weights of the language model
    are not read. The vision model is loaded with the first image, and encodes only images for which
    ``preprocess`` does not state the number of embeddings.

    Args:
        stages: Checkpoint and plugin; see :func:`load_prompt_builder`.
        chat_template: Name of one of the plugin's chat templates, or a :class:`ChatTemplate`.
            ``None`` for the checkpoint's default.
        image_limits: Limits of each image.
    """

    def __init__(
        self,
        stages: ModelStages,
        chat_template: str | ChatTemplate | None = None,
        image_limits: ImageLimits = DEFAULT_LIMITS,
    ) -> None:
        self._stages = stages
        self._image_limits = image_limits
        self.language_model: LanguageModel = stages.language_model()
        self.template = (
            chat_template
            if isinstance(chat_template, ChatTemplate)
            else stages.chat_template(chat_template)
        )
        self.transformers_tokenizer: PreTrainedTokenizerBase = self.language_model.tokenizer()
        self.tokenizer = PromptTokenizer(self.transformers_tokenizer)

    @cached_property
    def vision_model(self) -> VisionModel:
        """Vision model of the checkpoint, on the CPU in float32."""
        return self._stages.vision_model()

    def build(self, prompt: Prompt) -> TokenizedPrompt:
        """Return the token ids of a prompt, and the spans of its image embeddings.

        Args:
            prompt: A text, a pair of a text and an image, a video or a list of them in either
                order, or OpenAI-style messages.

        Raises:
            PromptError: The prompt cannot be read, or the template does not support it.
            ImageError: An image cannot be loaded or preprocessed.
            VideoError: A video cannot be loaded or preprocessed, or the model takes no videos.
            OptionError: The vision model does not know an option of an image or video.
            PluginContractError: The plugin breaks its contract.
        """
        return self.build_measured(prompt)[0]

    def build_measured(self, prompt: Prompt) -> tuple[TokenizedPrompt, list[MeasuredImage]]:
        """Build a prompt like :meth:`build`, and return what is known about its media."""
        conversation = parse_prompt(prompt)
        parts = write_prompt(self.template, conversation)
        images = self._measure(conversation)
        layouts = [image.layout for image in images]
        return self.tokenizer.build(parts, layouts, self.template), images

    def _measure(self, conversation: Conversation) -> list[MeasuredImage]:
        if not conversation.images:  # a prompt without images needs no vision model
            return []
        return _run(self._measure_media(conversation))

    async def _measure_media(self, conversation: Conversation) -> list[MeasuredImage]:
        measured = []
        async with ImageEncoder(
            self.vision_model, cache_bytes=0, image_limits=self._image_limits
        ) as encoder:
            loaded = await encoder.load(conversation.images)
            prepared = await encoder.prepare(loaded, conversation.image_options)
            for media, inputs in zip(loaded, prepared, strict=True):
                layout = inputs.layout
                was_encoded = layout is None
                if layout is None:
                    (encoded,) = await encoder.encode_prepared([inputs])
                    layout = image_layout(encoded)
                num_frames = len(media.frames) if isinstance(media, Video) else None
                measured.append(MeasuredImage(media.size, num_frames, layout, was_encoded))
        return measured


def load_prompt_builder(
    model: str | Path | Checkpoint,
    *,
    chat_template: str | ChatTemplate | None = None,
    plugin: str | None = None,
    revision: str | None = None,
) -> PromptBuilder:
    """Load what turns conversations into token ids and spans of image embeddings.

    For example::

        builder = vlcore.load_prompt_builder("path/to/checkpoint")
        prompt = builder.build([{"role": "user", "content": "What is a lighthouse?"}])
        print(prompt.token_ids, prompt.spans)

    Args:
        model: Checkpoint directory, Hub repo id, or an opened checkpoint.
        chat_template: Name of one of the plugin's chat templates, or a :class:`ChatTemplate`.
            ``None`` for the checkpoint's default.
        plugin: Name of the plugin's distribution. Only needed if several plugins support the
            checkpoint.
        revision: Branch, tag or commit of a Hub repository.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        PluginError: No plugin supports the checkpoint, or several do.
        OptionError: The plugin has no template of this name.
    """
    return PromptBuilder(ModelStages(model, plugin=plugin, revision=revision), chat_template)


def _run(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine in a thread of its own, since this thread may have a running event loop."""
    loop = LoopThread("vlcore-prompt")
    try:
        return loop.run(coroutine)
    finally:
        loop.close()
