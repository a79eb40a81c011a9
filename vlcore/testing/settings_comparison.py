"""Comparisons of settings with those of transformers: a wrong one may change nothing in a test.

An epsilon, a rotary base or an end token shows in the results of a tiny random model only by luck.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from vlcore.language.model import LanguageModel
from vlcore.media.video import VideoSampling
from vlcore.testing.report import DoesNotApplyError, fail
from vlcore.testing.transformers_reference import TransformersReference

_WITHOUT_EFFECT = frozenset(
    {
        *("_name_or_path", "architectures", "dtype", "transformers_version", "initializer_range"),
        *("use_cache", "return_dict", "output_attentions", "output_hidden_states"),
        *("is_encoder_decoder", "chunk_size_feed_forward"),
        *("id2label", "label2id", "problem_type", "tie_word_embeddings"),
    }
)
"""Settings that change no logits, and those that are compared as what they do."""
_VIDEOS = ((10, 25.0), (37, 29.97), (300, 30.0), (2000, 12.5))
"""Frames, and frames a second, of the videos whose sampled frames are compared."""


def compare_language_settings(
    language_model: LanguageModel, reference: TransformersReference
) -> None:
    """Compare the settings of the language model, with all defaults filled in.

    Args:
        language_model: that of the plugin.
        reference: the model of transformers.

    Raises:
        CheckFailedError: a setting differs, or an end token is missing.
        DoesNotApplyError: it is described as another architecture than in transformers.
    """
    where = "LanguageModel: its configuration, and end_token_ids"
    expected_ends = reference.end_token_ids
    if expected_ends != set(language_model.end_token_ids):
        fail(
            expected=f"the end tokens of transformers: {sorted(expected_ends)}",
            actual=f"{sorted(language_model.end_token_ids)}",
            where=where,
            advice="read them from generation_config.json, as LanguageModel does; further stops "
            "belong to the chat template",
        )
    ours, theirs = language_model.transformers_config, reference.model.config.get_text_config()
    if ours.model_type != theirs.model_type:
        raise DoesNotApplyError(
            f"the language model is described as {ours.model_type!r}; in transformers, it is "
            f"{theirs.model_type!r}"
        )
    expected, actual = _settings(theirs), _settings(ours)
    if ours.tie_word_embeddings and not reference.ties_embeddings:
        expected["tie_word_embeddings"], actual["tie_word_embeddings"] = False, True
    differing = [key for key in sorted(expected) if expected[key] != actual.get(key)]
    if differing:
        fail(
            expected=_listed(expected, differing),
            actual=_listed(actual, differing),
            where=where,
            advice="read the settings through the configuration class of transformers, from the "
            "section of config.json in which it reads them, with its defaults",
        )


def compare_sampling(sampling: VideoSampling, video_processor: Any) -> None:
    """Compare which frames of a video are sampled with those that a video processor samples.

    Raises:
        CheckFailedError: they differ.
        DoesNotApplyError: the processor states no sampling.
    """
    if not hasattr(video_processor, "sample_frames"):
        raise DoesNotApplyError("the video processor has no sample_frames")
    settings = {
        name: getattr(video_processor, name, None)
        for name in inspect.signature(video_processor.sample_frames).parameters
        if name not in {"metadata", "kwargs"}
    }
    if not any((video_processor.do_sample_frames, settings.get("fps"), settings.get("num_frames"))):
        raise DoesNotApplyError(
            "the video processor samples no frames by itself: do_sample_frames is false, and "
            "neither fps nor num_frames is set"
        )
    from transformers.video_utils import VideoMetadata

    for total_frames, fps in _VIDEOS:
        metadata = VideoMetadata(
            total_num_frames=total_frames, fps=fps, duration=total_frames / fps
        )
        expected = [int(i) for i in video_processor.sample_frames(metadata=metadata, **settings)]
        actual = list(sampling.indices(total_frames, fps))
        if actual != expected:
            fail(
                expected=f"{len(expected)} frames: {_shortened(expected)}",
                actual=f"{len(actual)}: {_shortened(actual)}",
                where=f"video_sampling of the vision model, a video of {total_frames} frames at "
                f"{fps:g} frames a second",
                advice="compare fps or num_frames, min_frames, max_frames, multiple_of and "
                "position with sample_frames of the video processor",
            )


def _settings(config: Any) -> dict[str, Any]:
    values: dict[str, Any] = config.to_dict()
    return {
        key: value
        for key, value in values.items()
        if key not in _WITHOUT_EFFECT and "dropout" not in key and "token_id" not in key
    }


def _listed(settings: Mapping[str, Any], names: list[str]) -> str:
    return ", ".join(f"{name} {settings.get(name, 'absent')!r}" for name in names)


def _shortened(indices: list[int]) -> str:
    shown = [
        *map(str, indices[:8]),
        *(["…"] if len(indices) > 9 else []),
        *map(str, indices[8:][-1:]),
    ]
    return ", ".join(shown)
