"""The public road from a prompt with pictures to text."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import torch
from tqdm import tqdm

from vlcore._loop import LoopThread
from vlcore.conversation import Conversation, Prompt, is_batch, parse_prompt
from vlcore.encoder import EncoderStats, ImageEncoder, PreparedImage
from vlcore.engines.base import Engine, EngineRequest, FinishReason, GenerationConfig
from vlcore.engines.transformers import TransformersEngine, TransformersEngineConfig
from vlcore.errors import (
    EngineClosedError,
    EngineUnavailableError,
    OptionError,
    PluginContractError,
)
from vlcore.language import LanguageModel
from vlcore.loading import ModelStages, as_dtype
from vlcore.media import DEFAULT_LIMITS, ImageLimits, load_image
from vlcore.prompt import ImageLayout, PromptTokenizer
from vlcore.template import ChatTemplate, Message, Text
from vlcore.vision import ImageInputs, VisionModel

logger = logging.getLogger(__name__)

ENGINES = ("auto", TransformersEngine.name)
_MAX_PROMPTS_IN_FLIGHT = 64
"""Of one list: bounds the decoded pictures in memory."""


@dataclass(frozen=True)
class Response:
    """An answer, or the next piece of one."""

    text: str
    generate_token_len: int
    """Tokens generated so far."""
    input_token_len: int
    """Tokens and image rows of the prompt."""
    finish_reason: FinishReason | Literal["error"] | None = None
    """``None`` while more pieces follow; ``"error"`` where :attr:`error` says why."""
    token_ids: tuple[int, ...] = ()
    index: int = 0
    """Which prompt of a list it answers."""
    error: Exception | None = None
    """Why one prompt of a list has no answer; the others have theirs."""

    def raise_for_error(self) -> Self:
        """Raise :attr:`error` if there is one; otherwise give the response back."""
        if self.error is not None:
            raise self.error
        return self


@dataclass
class Session:
    """A conversation with its history; hand it to the next call of ``chat``."""

    conversation: Conversation | None = None
    response: Response | None = field(default=None, repr=False)
    """The last answer."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """Every turn so far, answers included."""
        return () if self.conversation is None else self.conversation.messages


class Pipeline:
    """A model ready to answer. Thread-safe; made by :func:`pipeline`.

    Args:
        vision_model: encodes pictures.
        template: writes prompts.
        tokenizer: turns them into token ids.
        engine: continues them.
        limits: what a picture may cost.
        max_batch_size: pictures in one forward of the vision model.
        cache_bytes: memory for the rows of earlier pictures.
    """

    def __init__(
        self,
        vision_model: VisionModel,
        template: ChatTemplate,
        tokenizer: PromptTokenizer,
        engine: Engine,
        *,
        limits: ImageLimits = DEFAULT_LIMITS,
        max_batch_size: int = 8,
        cache_bytes: int = 256 * 1024**2,
    ) -> None:
        if vision_model.hidden_size != engine.hidden_size:
            raise PluginContractError(
                f"{type(vision_model).__name__} gives rows of width {vision_model.hidden_size} "
                f"and the language model reads {engine.hidden_size}"
            )
        self.template = template
        self.engine = engine
        self._tokenizer = tokenizer
        self._limits = limits
        self._encoder = ImageEncoder(
            vision_model, max_batch_size=max_batch_size, cache_bytes=cache_bytes
        )
        self._loop = LoopThread("vlcore-pipeline")
        self._closed = False

    # -- synchronous

    def __call__(
        self,
        prompts: Prompt | list[Prompt],
        gen_config: GenerationConfig | Mapping[str, Any] | None = None,
        *,
        use_tqdm: bool = False,
    ) -> Any:
        """Answer a prompt, or each of a list of prompts.

        Args:
            prompts: a text, ``(text, image or images)`` in either order, OpenAI-style messages, or
                a list of any of these.
            gen_config: how answers are generated.
            use_tqdm: show a progress bar over a list.

        Returns:
            A :class:`Response`; for a list, a list of them in order, in which a prompt that
            cannot be answered has ``finish_reason="error"`` and the exception in ``error``.

        Raises:
            VlcoreError: a single prompt cannot be answered, or an option is wrong.
        """
        return self._run(self._infer(prompts, gen_config, use_tqdm))

    def stream_infer(
        self,
        prompts: Prompt | list[Prompt],
        gen_config: GenerationConfig | Mapping[str, Any] | None = None,
    ) -> Iterator[Response]:
        """Answer like a call of the pipeline, piece by piece.

        Each :class:`Response` holds the next piece of the answer to prompt ``index``.
        """
        self._check_open()
        return self._loop.iterate(self._stream(prompts, gen_config))

    def chat(
        self,
        prompt: Prompt,
        session: Session | None = None,
        gen_config: GenerationConfig | Mapping[str, Any] | None = None,
    ) -> Session:
        """Answer with the history of a session, which grows by question and answer.

        Returns:
            The session, a new one where none was given; its ``response`` is the answer. After an
            error the session is as it was.
        """
        grown: Session = self._run(self._chat(prompt, session or Session(), gen_config))
        return grown

    def stream_chat(
        self,
        prompt: Prompt,
        session: Session,
        gen_config: GenerationConfig | Mapping[str, Any] | None = None,
    ) -> Iterator[Response]:
        """Answer like :meth:`chat`, piece by piece."""
        self._check_open()
        return self._loop.iterate(self._stream_chat(prompt, session, gen_config))

    def close(self) -> None:
        """Cancel what runs, and free the threads and the models."""
        if self._closed:
            return
        self._closed = True
        self._loop.run(self._shut_down())
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- asynchronous twins

    async def ainfer(
        self,
        prompts: Prompt | list[Prompt],
        gen_config: GenerationConfig | Mapping[str, Any] | None = None,
        *,
        use_tqdm: bool = False,
    ) -> Any:
        """Await what a call of the pipeline gives."""
        self._check_open()
        return await self._loop.wait(self._infer(prompts, gen_config, use_tqdm))

    def astream_infer(
        self,
        prompts: Prompt | list[Prompt],
        gen_config: GenerationConfig | Mapping[str, Any] | None = None,
    ) -> AsyncIterator[Response]:
        """Iterate asynchronously over what :meth:`stream_infer` gives."""
        self._check_open()
        return self._loop.aiterate(self._stream(prompts, gen_config))

    async def achat(
        self,
        prompt: Prompt,
        session: Session | None = None,
        gen_config: GenerationConfig | Mapping[str, Any] | None = None,
    ) -> Session:
        """Await what :meth:`chat` gives."""
        self._check_open()
        return await self._loop.wait(self._chat(prompt, session or Session(), gen_config))

    def astream_chat(
        self,
        prompt: Prompt,
        session: Session,
        gen_config: GenerationConfig | Mapping[str, Any] | None = None,
    ) -> AsyncIterator[Response]:
        """Iterate asynchronously over what :meth:`stream_chat` gives."""
        self._check_open()
        return self._loop.aiterate(self._stream_chat(prompt, session, gen_config))

    async def aclose(self) -> None:
        """Close without blocking the caller's event loop."""
        await asyncio.to_thread(self.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def encoder_stats(self) -> EncoderStats:
        """Count what the image encoder did so far."""
        return self._encoder.stats()

    # -- the road, on the pipeline's own loop

    async def _answer(
        self, conversation: Conversation, config: GenerationConfig, index: int = 0
    ) -> AsyncGenerator[Response]:
        """Walk the road once: pictures, rows, token ids, text."""
        parts = self.template.messages2prompt(conversation.messages)
        images = await asyncio.gather(
            *(asyncio.to_thread(load_image, source, self._limits) for source in conversation.images)
        )
        prepared = await self._encoder.prepare(images, conversation.image_options)
        layouts = _known_layouts(prepared)
        if layouts is not None:  # a prompt that is too long is refused before it costs anything
            prompt = await asyncio.to_thread(self._tokenizer.build, parts, layouts, self.template)
            self.engine.check_length(len(prompt.token_ids))
        encoded = await self._encoder.encode(prepared)
        layouts = [ImageLayout(len(image.rows), image.layout) for image in encoded]
        prompt = await asyncio.to_thread(self._tokenizer.build, parts, layouts, self.template)
        request = EngineRequest(
            prompt, tuple(image.rows for image in encoded), config, tuple(self.template.stop)
        )
        num_generated = 0
        async with aclosing(self.engine.generate(request)) as pieces:
            async for piece in pieces:
                num_generated += len(piece.token_ids)
                yield Response(
                    piece.text,
                    num_generated,
                    len(prompt.token_ids),
                    piece.finish_reason,
                    piece.token_ids,
                    index,
                )

    async def _whole(
        self, conversation: Conversation, config: GenerationConfig, index: int = 0
    ) -> Response:
        async with aclosing(self._answer(conversation, config, index)) as pieces:
            return _join([piece async for piece in pieces])

    async def _infer(
        self,
        prompts: Prompt | list[Prompt],
        gen_config: GenerationConfig | Mapping[str, Any] | None,
        use_tqdm: bool,
    ) -> Response | list[Response]:
        config = _as_config(gen_config)
        if not is_batch(prompts):
            return await self._whole(parse_prompt(prompts), config)
        slots = asyncio.Semaphore(_MAX_PROMPTS_IN_FLIGHT)
        with tqdm(total=len(prompts), unit="prompt", disable=not use_tqdm) as bar:

            async def answer(index: int, prompt: Prompt) -> Response:
                async with slots:
                    try:
                        return await self._whole(parse_prompt(prompt), config, index)
                    except Exception as error:  # the others keep their answers
                        return _failed(error, index)
                    finally:
                        bar.update()

            return list(await asyncio.gather(*(answer(*item) for item in enumerate(prompts))))

    async def _stream(
        self,
        prompts: Prompt | list[Prompt],
        gen_config: GenerationConfig | Mapping[str, Any] | None,
    ) -> AsyncGenerator[Response]:
        config = _as_config(gen_config)
        if not is_batch(prompts):
            async with aclosing(self._answer(parse_prompt(prompts), config)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        arrived: asyncio.Queue[Response] = asyncio.Queue()
        slots = asyncio.Semaphore(_MAX_PROMPTS_IN_FLIGHT)

        async def answer(index: int, prompt: Prompt) -> None:
            async with slots:
                try:
                    async with aclosing(
                        self._answer(parse_prompt(prompt), config, index)
                    ) as pieces:
                        async for piece in pieces:
                            arrived.put_nowait(piece)
                except Exception as error:  # the others keep their answers
                    arrived.put_nowait(_failed(error, index))

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answer(*item)) for item in enumerate(prompts)]
            try:
                num_finished = 0
                while num_finished < len(tasks):
                    piece = await arrived.get()
                    num_finished += piece.finish_reason is not None
                    yield piece
            finally:
                for task in tasks:
                    task.cancel()

    async def _chat(
        self,
        prompt: Prompt,
        session: Session,
        gen_config: GenerationConfig | Mapping[str, Any] | None,
    ) -> Session:
        async with aclosing(self._stream_chat(prompt, session, gen_config)) as pieces:
            async for _ in pieces:
                pass
        return session

    async def _stream_chat(
        self,
        prompt: Prompt,
        session: Session,
        gen_config: GenerationConfig | Mapping[str, Any] | None,
    ) -> AsyncGenerator[Response]:
        config = _as_config(gen_config)
        conversation = parse_prompt(prompt)
        if session.conversation is not None:
            conversation = session.conversation + conversation
        pieces = []
        async with aclosing(self._answer(conversation, config)) as answer:
            async for piece in answer:
                pieces.append(piece)
                yield piece
        session.response = _join(pieces)
        reply = Message("assistant", (Text(session.response.text),))
        session.conversation = Conversation((*conversation.messages, reply), conversation.images)

    async def _shut_down(self) -> None:
        await self.engine.close()
        await self._encoder.close()

    def _run(self, coroutine: Any) -> Any:
        if self._closed:
            coroutine.close()
        self._check_open()
        return self._loop.run(coroutine)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosedError("the pipeline was closed: make a new one")


def pipeline(
    model: str | Path,
    *,
    engine: str = "auto",
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    plugin: str | None = None,
    chat_template: str | ChatTemplate | None = None,
    revision: str | None = None,
    engine_config: TransformersEngineConfig | None = None,
    image_limits: ImageLimits = DEFAULT_LIMITS,
    max_batch_size: int = 8,
    cache_bytes: int = 256 * 1024**2,
    progress: bool = False,
) -> Pipeline:
    """Load a model and make it ready to answer.

    Args:
        model: a checkpoint directory or hub id.
        engine: ``"transformers"``, or ``"auto"`` for the best one that can run here.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, …; ``"auto"`` is CUDA where there is any.
        dtype: of weights and rows; ``"auto"`` is float32 on a CPU and the checkpoint's on CUDA.
        plugin: the distribution to use where several would serve the checkpoint.
        chat_template: the name of one of the plugin's templates, or a template; ``None`` for the
            checkpoint's own.
        revision: of a hub repository.
        engine_config: settings of the engine.
        image_limits: what a picture may cost.
        max_batch_size: pictures in one forward of the vision model.
        cache_bytes: memory for the rows of earlier pictures.
        progress: show progress bars while weights load.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        PluginError: no plugin serves it, or several do.
        EngineUnavailableError: no engine can run it here.
        OptionError: an option is unknown or out of range.
    """
    if engine not in ENGINES:
        raise OptionError(f"engine must be one of {', '.join(ENGINES)}; it is {engine!r}")
    stages = ModelStages(model, plugin=plugin, revision=revision)
    place = _as_device(device)
    precision = _choose_dtype(dtype, place, stages.checkpoint.config)
    language_model = stages.language_model()
    _check_requirements(TransformersEngine, language_model)
    logger.info("%s runs on the transformers engine, %s, %s", model, place, precision)
    if not isinstance(chat_template, ChatTemplate):
        chat_template = stages.chat_template(chat_template)
    tokenizer = language_model.tokenizer()
    vision_model = stages.vision_model(place, precision)
    text_engine = TransformersEngine(
        language_model,
        tokenizer,
        device=place,
        dtype=precision,
        config=engine_config,
        progress=progress,
    )
    return Pipeline(
        vision_model,
        chat_template,
        PromptTokenizer(tokenizer),
        text_engine,
        limits=image_limits,
        max_batch_size=max_batch_size,
        cache_bytes=cache_bytes,
    )


def _check_requirements(engine: type[Engine], language_model: LanguageModel) -> None:
    if lacking := sorted(language_model.requires - engine.offers):
        raise EngineUnavailableError(
            f"the {engine.name} engine lacks {', '.join(lacking)}, which "
            f"{language_model.checkpoint.name} requires"
        )


def _as_device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise OptionError(
            f"device must be auto, cpu, cuda or cuda:N; it is {str(device)!r}: {error}"
        ) from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise EngineUnavailableError(
            f"device {str(device)!r} was asked for and torch {torch.__version__} sees no CUDA "
            "device: use device='cpu', or install a CUDA build of torch"
        )
    return place


def _choose_dtype(
    dtype: str | torch.dtype, device: torch.device, config: Mapping[str, Any]
) -> torch.dtype:
    if dtype != "auto":
        return as_dtype(dtype) or torch.float32
    if device.type == "cpu":
        return torch.float32
    stated = config.get("torch_dtype") or config.get("dtype")
    return torch.bfloat16 if stated == "bfloat16" else torch.float16


def _as_config(config: GenerationConfig | Mapping[str, Any] | None) -> GenerationConfig:
    if config is None:
        return GenerationConfig()
    if isinstance(config, GenerationConfig):
        return config
    if isinstance(config, Mapping):
        return GenerationConfig(**config)
    raise OptionError(
        f"gen_config must be a GenerationConfig or a mapping of its options, "
        f"not {type(config).__name__}"
    )


def _known_layouts(images: Sequence[PreparedImage]) -> list[ImageLayout] | None:
    """Layouts of the images, if the plugin gave every number of rows beforehand."""
    layouts = []
    for image in images:
        if not isinstance(image.inputs, ImageInputs) or image.inputs.num_rows is None:
            return None
        layouts.append(ImageLayout(image.inputs.num_rows, image.inputs.layout))
    return layouts


def _join(pieces: Sequence[Response]) -> Response:
    last = pieces[-1]
    return Response(
        "".join(piece.text for piece in pieces),
        last.generate_token_len,
        last.input_token_len,
        last.finish_reason,
        tuple(token_id for piece in pieces for token_id in piece.token_ids),
        last.index,
    )


def _failed(error: Exception, index: int) -> Response:
    logger.warning("prompt %d was not answered: %s", index, error)
    return Response("", 0, 0, "error", (), index, error)
