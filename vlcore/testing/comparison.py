"""``compare_with_transformers``: a plugin against the model and the processor of transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlcore.checkpoint.checkpoint import Checkpoint
from vlcore.errors import OptionError
from vlcore.inference.factory import pipeline
from vlcore.inference.prompt_builder import PromptBuilder
from vlcore.inference.response import Response
from vlcore.prompts.tokenization import TokenizedPrompt
from vlcore.testing.check import Check, check_expected_failures
from vlcore.testing.conversations import (
    Messages,
    first_difference,
    ids_with_embeddings,
    images_of,
    sample_conversations,
    sample_video_conversations,
    videos_of,
)
from vlcore.testing.report import CheckFailedError, DoesNotApplyError, NotRunError, Report, fail
from vlcore.testing.samples import encode
from vlcore.testing.settings_comparison import compare_language_settings, compare_sampling
from vlcore.testing.subject import Subject
from vlcore.testing.transformers_reference import TransformersReference
from vlcore.vision.model import ImageInputs, encode_batch

ROWS_TOLERANCE = 1e-4
LOGITS_TOLERANCE = 1e-3
_NUM_CONTEXT_TOKENS = 8
"""Number of tokens before and after a difference in a message."""


def compare_with_transformers(
    checkpoint: str | Path | Checkpoint,
    *,
    plugin: str | None = None,
    conversations: Mapping[str, Messages] | Sequence[Messages] | None = None,
    processor: Any = None,
    row_token: str | None = None,
    num_tokens: int = 12,
    rows_tolerance: float = ROWS_TOLERANCE,
    logits_tolerance: float = LOGITS_TOLERANCE,
    excused: Mapping[str, str] | None = None,
) -> Report:
    """Compare a plugin with the model and the processor that transformers has for a checkpoint.

    Both run on the CPU in float32. The comparisons are ``transformers-pixels``,
    ``transformers-rows``, ``transformers-videos``, ``transformers-ids``, ``transformers-frames``,
    ``transformers-settings``, ``transformers-logits`` and ``transformers-tokens``: the pixels and
    the embeddings of single images, the embeddings of single videos, the token ids of
    conversations, which frames of a video are sampled, the settings of the language model, and the
    logits and most likely answer of conversations. Conversations that the chat template refuses
    are left out, if others with an image remain. Videos are compared if the plugin takes them, and
    the processor too: transformers' own need torchvision.

    Args:
        checkpoint: a directory, a Hub repo id or an opened checkpoint, preferably a tiny one, whose
            ``architectures`` names a class of transformers.
        plugin: the distribution name; without one, the plugin that serves the checkpoint.
        conversations: OpenAI-style messages with PIL images under ``image``, and
            :class:`~vlcore.Video` values under ``video``, by their names; by default nine
            conversations without images, with several and of several turns, and three with videos
            if the plugin takes them.
        processor: the processor of transformers; by default the one of the checkpoint's
            ``model_type``, which is loaded without torchvision where possible.
        row_token: the token in whose place image embeddings come; by default, the one whose id
            ``config.json`` states.
        num_tokens: the length of an answer.
        rows_tolerance: the largest difference of pixels and embeddings that passes, as a share of
            the largest absolute value.
        logits_tolerance: the same for logits.
        excused: comparisons that are expected to fail, by name, each with the reason.

    Raises:
        OptionError: transformers has no class for the checkpoint, or an option is invalid.
        NoPluginError: there is no such plugin, or none for the checkpoint.
        ConfigError: the processor cannot be built from the settings of the checkpoint, does not fit
            its model, or supports none of the conversations with an image.
        PluginContractError: the plugin cannot load the vision model.
        PluginError: a package that the processor needs is not installed.
    """
    expected_failures = dict(excused or {})
    is_default = conversations is None
    if conversations is None:
        conversations = sample_conversations()
    elif not isinstance(conversations, Mapping):
        conversations = {f"conversation {i}": each for i, each in enumerate(conversations)}
    if not any(map(images_of, conversations.values())):
        raise OptionError("the conversations to compare must have an image")
    with Subject(plugin, checkpoint) as subject:
        subject.load("vision_model")  # without it, there is nothing to compare
        if is_default and subject.vision_model.takes_video:
            conversations = {**conversations, **sample_video_conversations()}
        reference = TransformersReference(
            subject.checkpoint, processor=processor, row_token=row_token
        )
        comparison = _Comparison(
            subject, reference, conversations, num_tokens, rows_tolerance, logits_tolerance
        )
        checks = comparison.checks()
        check_expected_failures(expected_failures, checks)
        results = [check.run(subject, expected_failures.get(check.name)) for check in checks]
        return Report(subject.name, subject.version, subject.checkpoint.name, tuple(results))


class _Comparison:
    """The comparisons of one plugin, which share prompts and answers."""

    def __init__(
        self,
        subject: Subject,
        reference: TransformersReference,
        conversations: Mapping[str, Messages],
        num_tokens: int,
        rows_tolerance: float,
        logits_tolerance: float,
    ) -> None:
        self._subject = subject
        self._reference = reference
        self._all = conversations
        self._inputs = reference.supported(conversations)
        """The reference's inputs for each conversation that it supports."""
        self._expected_rows = {
            name: reference.rows(inputs)
            for name, inputs in self._inputs.items()
            if images_of(conversations[name]) and not videos_of(conversations[name])
        }
        for name, rows in self._expected_rows.items():
            reference.check_settings(name, self._inputs[name], len(rows))
        self._num_tokens = num_tokens
        self._rows_tolerance = rows_tolerance
        self._logits_tolerance = logits_tolerance

    def checks(self) -> list[Check]:
        """Return the comparisons as checks."""
        functions: dict[str, tuple[str, Callable[[], None]]] = {
            "transformers-pixels": (
                "preprocess gives the pixels of transformers' processor",
                self._compare_pixels,
            ),
            "transformers-rows": (
                "rows equal the image features of transformers' model",
                self._compare_rows,
            ),
            "transformers-videos": (
                "rows of videos equal the features of transformers' model",
                self._compare_videos,
            ),
            "transformers-ids": (
                "prompts have the token ids of transformers' processor, and embeddings in the "
                "same positions",
                self._compare_ids,
            ),
            "transformers-frames": (
                "the frames of a video that are sampled are those of transformers' processor",
                self._compare_frames,
            ),
            "transformers-settings": (
                "the settings and the end tokens of the language model are those of transformers",
                self._compare_settings,
            ),
            "transformers-logits": (
                "logits of the prompts equal those of transformers' model",
                self._compare_logits,
            ),
            "transformers-tokens": (
                "the most likely answers equal those of transformers' generate",
                self._compare_tokens,
            ),
        }
        return [
            Check(name, about, lambda _, compare=compare: compare())  # type: ignore[misc]
            for name, (about, compare) in functions.items()
        ]

    @cached_property
    def _builder(self) -> PromptBuilder:
        return PromptBuilder(self._subject.stages())

    @cached_property
    def _prompts(self) -> dict[str, TokenizedPrompt]:
        return {name: self._builder.build(self._all[name]) for name in self._inputs}

    @cached_property
    def _responses(self) -> dict[str, Response]:
        """The answers to all conversations, which run at the same time."""
        options = {
            "max_new_tokens": self._num_tokens,
            "skip_special_tokens": False,
            "output_logits": "all",
        }
        with pipeline(
            self._subject.checkpoint.directory,
            plugin=self._subject.name,
            engine="transformers",
            device="cpu",
            dtype="float32",
        ) as pipe:
            responses = pipe([list(self._all[name]) for name in self._inputs], options)
        return {
            name: response.raise_for_error()
            for name, response in zip(self._inputs, responses, strict=True)
        }

    @cached_property
    def _single_images(self) -> list[tuple[str, str, Image.Image]]:
        """The name and the description of each conversation with one image, and the image."""
        found = [(name, images_of(self._all[name])) for name in self._inputs]
        return [
            (name, f"the image of {name!r} ({_size(images[0])})", images[0])
            for name, images in found
            if len(images) == 1 and not videos_of(self._all[name])
        ]

    def _need_single_images(self) -> None:
        if not self._single_images:
            raise DoesNotApplyError("no conversation has a single image")

    def _compare_pixels(self) -> None:
        self._need_single_images()
        model = self._builder.vision_model
        for name, where, image in self._single_images:
            preprocessed = model.preprocess(image)
            if not isinstance(preprocessed, ImageInputs):
                raise DoesNotApplyError(
                    f"preprocess returns {type(preprocessed).__name__} instead of ImageInputs; "
                    "transformers-rows compares what follows from it"
                )
            expected = self._reference.pixels(self._inputs[name])
            _expect_close(
                preprocessed.pixels,
                expected.reshape(preprocessed.pixels.shape)
                if expected.numel() == preprocessed.pixels.numel()
                else expected,
                self._rows_tolerance,
                f"preprocess of {type(model).__name__}, {where}",
                "compare the resampling filter, the size, the number and order of tiles, mean and "
                "standard deviation with the settings of the image processor",
            )

    def _compare_rows(self) -> None:
        self._need_single_images()
        model = self._builder.vision_model
        for name, where, image in self._single_images:
            _expect_close(
                encode(model, [image])[0].rows,
                self._expected_rows[name],
                self._rows_tolerance,
                f"{type(model).__name__}, {where}",
                "compare stage by stage: pixels, hidden states and which layer, the order of "
                "patches and tiles, projector; activations, norms and their epsilon, buffers that "
                "are computed, such as rotary frequencies (empty_weights keeps them)",
            )

    def _compare_videos(self) -> None:
        asked = {name: videos_of(messages) for name, messages in self._all.items()}
        single = [
            name for name in asked if len(asked[name]) == 1 and not images_of(self._all[name])
        ]
        if not single:
            raise DoesNotApplyError("no conversation has a single video")
        self._need_videos()
        model = self._builder.vision_model
        for name in single:
            if name not in self._inputs:
                raise NotRunError(f"the processor refuses the conversation {name!r}")
            (video,) = asked[name]
            expected = self._reference.video_rows(self._inputs[name])
            placed = self._reference.token_ids(self._inputs[name]).count(self._reference.row_id)
            if placed != len(expected):
                raise DoesNotApplyError(
                    f"of {len(expected)} features of a video, transformers' model places {placed} "
                    "in the prompt; transformers-logits compares what follows from them"
                )
            _expect_close(
                encode_batch(model, [model.preprocess_frames(video)])[0].rows,
                expected,
                self._rows_tolerance,
                f"{type(model).__name__}, the video of {name!r}",
                "compare the size of the frames, the resampling filter, how frames are merged in "
                "time, and the order of the rows; the processor must not sample again",
            )

    def _compare_frames(self) -> None:
        model = self._builder.vision_model
        if not model.takes_video:
            raise DoesNotApplyError("the vision model takes no videos")
        self._need_videos()
        compare_sampling(model.video_sampling, self._reference.processor.video_processor)

    def _need_videos(self) -> None:
        if not self._reference.takes_video:
            raise NotRunError(
                "the processor takes no videos: install torchvision, or pass a processor that does"
            )

    def _compare_settings(self) -> None:
        compare_language_settings(self._subject.language_model, self._reference)

    def _compare_ids(self) -> None:
        tokenizer = self._builder.transformers_tokenizer
        for name, prompt in self._prompts.items():
            expected = self._reference.token_ids(self._inputs[name])
            actual = ids_with_embeddings(prompt, self._reference.row_id)
            if actual == expected:
                continue
            first = first_difference(actual, expected)
            around = slice(max(0, first - _NUM_CONTEXT_TOKENS), first + _NUM_CONTEXT_TOKENS)
            fail(
                expected=f"{len(expected)} tokens, at position {first} "
                f"{tokenizer.decode(expected[around])!r}",
                actual=f"{len(actual)} tokens, there {tokenizer.decode(actual[around])!r}",
                where=f"the prompt of the conversation {name!r}",
                advice="compare the chat template, expand, restarts_after_image, and the number of "
                "embeddings (vlcore explain)",
            )

    def _compare_logits(self) -> None:
        self._need_equal_ids()
        for name, response in self._responses.items():
            logits = response.prompt_logits
            assert logits is not None  # noqa: S101  (for mypy: output_logits is "all")
            _expect_close(
                logits,
                self._reference.logits(self._inputs[name]),
                self._logits_tolerance,
                f"the language model, the conversation {name!r}",
                "compare transformers-rows and transformers-settings first; then what the language "
                "model reads in addition to embeddings (LanguageModel.requires), and its tensors",
            )

    def _compare_tokens(self) -> None:
        self._need_equal_ids()
        for name, response in self._responses.items():
            expected = self._reference.generate(self._inputs[name], self._num_tokens)
            actual = list(response.token_ids)
            rest = expected[len(actual) :]
            # The end token is not part of the response. Of several, each ends the answer.
            ended = response.finish_reason == "stop" and len(rest) == 1
            ended = ended and rest[0] in self._reference.end_token_ids
            if actual == (expected[:-1] if ended else expected):
                continue
            fail(
                expected=f"the answer {expected}",
                actual=f"{actual}, which ends by {response.finish_reason!r}",
                where=f"the conversation {name!r}",
                advice="compare transformers-logits first; then the end tokens in "
                "generation_config.json, and stop of the chat template",
            )

    def _need_equal_ids(self) -> None:
        try:
            self._compare_ids()
        except CheckFailedError as error:
            raise NotRunError("the prompts differ: see transformers-ids") from error


def _expect_close(
    values: Tensor, expected: Tensor, tolerance: float, where: str, advice: str
) -> None:
    """Fail unless tensors are equal up to a share of the largest absolute value."""
    actual = f"a tensor {list(values.shape)}"
    if values.shape == expected.shape:
        difference = float((values.float() - expected.float()).abs().max())
        largest = float(expected.float().abs().max())
        share = difference / max(largest, torch.finfo(torch.float32).tiny)
        if share <= tolerance:
            return
        actual = f"values that differ by {share:.2g} of the largest"
    fail(
        expected=f"the values of transformers: {list(expected.shape)}, to {tolerance:g} of the "
        "largest",
        actual=actual,
        where=where,
        advice=advice,
    )


def _size(image: Image.Image) -> str:
    return f"{image.width} x {image.height} pixels"
