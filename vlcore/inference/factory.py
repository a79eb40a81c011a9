"""``pipeline()``: loads a model and makes it ready to answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import torch

from vlcore._utils.device import as_device, choose_dtype
from vlcore._utils.device_map import DeviceMap, MaxMemory
from vlcore.engines.selection import select_engine
from vlcore.errors import OptionError, PluginContractError
from vlcore.inference.pipeline import Pipeline
from vlcore.inference.request_runner import RequestRunner
from vlcore.plugins.stages import ModelStages
from vlcore.prompts.chat_template import ChatTemplate
from vlcore.prompts.limits import PromptLimits
from vlcore.prompts.tokenization import PromptTokenizer
from vlcore.vision.encoder import EncoderOptions, ImageEncoder


def pipeline(
    model: str | Path,
    *,
    engine: str = "auto",
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    plugin: str | None = None,
    chat_template: str | ChatTemplate | None = None,
    revision: str | None = None,
    engine_config: Any = None,
    self_test: bool = True,
    max_prompt_tokens: int | None = None,
    max_prompt_chars: int | None = None,
    vision_devices: Sequence[int | str | torch.device] | None = None,
    vision_device_map: DeviceMap | None = None,
    vision_max_memory: MaxMemory | None = None,
    progress: bool = False,
    **encoder_options: Unpack[EncoderOptions],
) -> Pipeline:
    """Load a model and make it ready to answer.

    Args:
        model: a checkpoint directory or hub id.
        engine: ``"turbomind"`` (extra ``vlcore[turbomind]``), ``"transformers"``, or ``"auto"``:
            TurboMind where CUDA, lmdeploy and the model allow, else transformers.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, …; ``"auto"`` is CUDA where there is any.
        dtype: of weights and rows. ``"auto"`` on a CPU is bfloat16 where the processor has it
            natively and the checkpoint does not state float32, or else float32; on CUDA it is what
            the checkpoint states, or else float16.
        plugin: the distribution to use where several would serve the checkpoint.
        chat_template: the name of one of the plugin's templates, or a template; ``None`` for the
            checkpoint's own.
        revision: of a hub repository.
        engine_config: settings of the engine: a :class:`TransformersEngineConfig`, or lmdeploy's
            ``TurbomindEngineConfig``, which is passed on as it is and states TurboMind's dtype and
            devices. Either one chooses its engine.
        self_test: let TurboMind prove at start-up that it takes image rows for what they are.
        max_prompt_tokens: refuse longer prompts, in tokens and image rows together; the engine's
            context bounds them anyway.
        max_prompt_chars: refuse longer texts before they are tokenised, counted over the whole
            conversation.
        vision_devices: where the vision model goes: one device, or several for a replica on each,
            which share the pictures of all requests. ``None`` for ``device``.
        vision_device_map: spreads a vision tower that does not fit on one device, as
            :func:`load_vision_model` does.
        vision_max_memory: what it may use of each device.
        progress: show progress bars while weights load.
        encoder_options: settings of :class:`ImageEncoder`, such as ``max_batch_size``,
            ``cache_bytes``, ``image_limits`` and ``image_access``.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        PluginError: no plugin serves it, or several do.
        EngineUnavailableError: no engine, or not the one asked for, can run it here.
        OptionError: an option is unknown or out of range.
        ViewError: TurboMind's text view cannot be written.
    """
    if unknown := sorted(encoder_options.keys() - EncoderOptions.__annotations__.keys()):
        raise OptionError(
            f"unknown option(s) {', '.join(unknown)}; beside its own, pipeline() takes those of "
            f"ImageEncoder: {', '.join(EncoderOptions.__annotations__)}"
        )
    limits = PromptLimits(max_prompt_tokens, max_prompt_chars)
    stages = ModelStages(model, plugin=plugin, revision=revision)
    place = as_device(device)
    precision = choose_dtype(dtype, place, stages.checkpoint.config)
    language_model = stages.language_model()
    chosen = select_engine(
        engine,
        language_model,
        device=place,
        dtype=precision,
        config=engine_config,
        self_test=self_test,
        progress=progress,
    )
    if not isinstance(chat_template, ChatTemplate):
        chat_template = stages.chat_template(chat_template)
    tokenizer = language_model.tokenizer()
    vision_places = [place] if vision_devices is None else _as_devices(vision_devices)
    if chosen.engine.takes_rows_on_host:
        encoder_options.setdefault("rows_device", "cpu")
    elif vision_places != [place]:
        encoder_options.setdefault("rows_device", place)
    vision_models = [
        stages.vision_model(
            of_replica, precision, device_map=vision_device_map, max_memory=vision_max_memory
        )
        for of_replica in vision_places
    ]
    if vision_models[0].hidden_size != language_model.hidden_size:
        raise PluginContractError(
            f"{type(vision_models[0]).__name__} gives rows of width "
            f"{vision_models[0].hidden_size} and the language model of {stages.checkpoint.name} "
            f"reads {language_model.hidden_size}"
        )
    encoder = ImageEncoder(vision_models, **encoder_options)
    prompt_tokenizer = PromptTokenizer(tokenizer)
    # Last, because it starts a thread, and because TurboMind takes a share of the memory that is
    # left for its cache.
    text_engine = chosen.start(tokenizer)
    return Pipeline(RequestRunner(encoder, chat_template, prompt_tokenizer, text_engine, limits))


def _as_devices(devices: Sequence[int | str | torch.device]) -> list[torch.device]:
    if isinstance(devices, str) or not devices:
        raise OptionError(
            f"vision_devices must be a list of devices such as [0, 1]; it is {devices!r}"
        )
    return [as_device(f"cuda:{one}" if isinstance(one, int) else one) for one in devices]
