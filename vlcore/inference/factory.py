"""``pipeline()``: loads all stages of a model and connects them."""

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
    """Load a vision-language model for inference.

    For example::

        with vlcore.pipeline("path/to/checkpoint") as pipe:
            response = pipe(("What is in this image?", "photo.jpg"))
            print(response.text)

    Args:
        model: Checkpoint directory or Hub repo id.
        engine: Engine that runs the language model: ``"turbomind"`` (needs the extra
            ``vlcore[turbomind]``), ``"vllm"`` (needs the extra ``vlcore[vllm]``),
            ``"transformers"``, or ``"auto"`` for the first of them that can run the model here.
        device: Device of the model, such as ``"cpu"``, ``"cuda"`` or ``"cuda:1"``. ``"auto"``
            selects CUDA if it is available.
        dtype: Data type of weights and image embeddings. On CPU, ``"auto"`` selects bfloat16 if the
            processor supports it natively and the checkpoint does not specify float32, and float32
            otherwise. On CUDA, it selects the data type of the checkpoint, or float16 if the
            checkpoint does not specify one.
        plugin: Name of the plugin's distribution. Only needed if several plugins support the
            checkpoint.
        chat_template: Name of one of the plugin's chat templates, or a :class:`ChatTemplate`.
            ``None`` for the checkpoint's default.
        revision: Branch, tag or commit of a Hub repository.
        engine_config: Settings of the engine: a :class:`TransformersEngineConfig`, lmdeploy's
            ``TurbomindEngineConfig``, or vLLM's ``AsyncEngineArgs``. The latter two are passed on
            unchanged, and also determine the engine's data type and devices. With
            ``engine="auto"``, it selects the engine it belongs to. With ``engine="vllm"``, it may
            be a dictionary of fields of ``AsyncEngineArgs``.
        self_test: Whether TurboMind or vLLM checks at start-up that it computes with image
            embeddings correctly.
        max_prompt_tokens: Maximum length of a prompt in tokens, including one for each image
            embedding. ``None`` for the engine's context length.
        max_prompt_chars: Maximum number of characters in all texts of a conversation, checked
            before they are tokenized. ``None`` for no limit.
        vision_devices: Devices of the vision model. With several devices, each has a replica, and
            the images of all requests are distributed among them. ``None`` for ``device``.
        vision_device_map: How to split a vision encoder that does not fit on one device; see
            :func:`load_vision_model`.
        vision_max_memory: Maximum memory that the vision encoder may use on each device.
        progress: Whether to show progress bars while weights are loaded.
        encoder_options: Settings of :class:`ImageEncoder`, such as ``max_batch_size``,
            ``cache_bytes``, ``image_limits`` and ``image_access``.

    Returns:
        The loaded model. Close it, or use it as a context manager, to free its memory.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        PluginError: No plugin supports the checkpoint, or several do.
        EngineUnavailableError: The selected engine, or every engine, cannot run the model here.
        OptionError: An option is unknown or invalid.
        ViewError: The text view for TurboMind or vLLM cannot be written.
    """
    if unknown := sorted(encoder_options.keys() - EncoderOptions.__annotations__.keys()):
        raise OptionError(
            f"unknown option(s) {', '.join(unknown)}; in addition to its own options, pipeline() "
            f"accepts those of ImageEncoder: {', '.join(EncoderOptions.__annotations__)}"
        )
    limits = PromptLimits(max_prompt_tokens, max_prompt_chars)
    stages = ModelStages(model, plugin=plugin, revision=revision)
    main_device = as_device(device)
    model_dtype = choose_dtype(dtype, main_device, stages.checkpoint.config)
    language_model = stages.language_model()
    selected = select_engine(
        engine,
        language_model,
        device=main_device,
        dtype=model_dtype,
        config=engine_config,
        self_test=self_test,
        progress=progress,
    )
    if not isinstance(chat_template, ChatTemplate):
        chat_template = stages.chat_template(chat_template)
    tokenizer = language_model.tokenizer()
    replica_devices = [main_device] if vision_devices is None else _as_devices(vision_devices)
    if selected.engine.takes_rows_on_host:
        encoder_options.setdefault("rows_device", "cpu")
    elif replica_devices != [main_device]:
        encoder_options.setdefault("rows_device", main_device)
    vision_models = [
        stages.vision_model(
            replica_device, model_dtype, device_map=vision_device_map, max_memory=vision_max_memory
        )
        for replica_device in replica_devices
    ]
    if vision_models[0].row_width != language_model.row_width:
        raise PluginContractError(
            f"{type(vision_models[0]).__name__} returns image embeddings of width "
            f"{vision_models[0].row_width}, and the language model of {stages.checkpoint.name} "
            f"expects {language_model.row_width}"
        )
    encoder = ImageEncoder(vision_models, **encoder_options)
    prompt_tokenizer = PromptTokenizer(tokenizer)
    # The engine is started last because it starts a thread, and because TurboMind allocates a share
    # of the remaining memory for its cache.
    text_engine = selected.start(tokenizer)
    return Pipeline(
        RequestRunner(encoder, chat_template, prompt_tokenizer, text_engine, limits, language_model)
    )


def _as_devices(devices: Sequence[int | str | torch.device]) -> list[torch.device]:
    if isinstance(devices, str) or not devices:
        raise OptionError(
            f"vision_devices must be a list of devices, such as [0, 1]; it is {devices!r}"
        )
    return [as_device(f"cuda:{item}" if isinstance(item, int) else item) for item in devices]
