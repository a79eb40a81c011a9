"""Walks the road from a prompt with pictures to text, on the event loop it is called from."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from vlcore._utils.progress import progress_bar
from vlcore.engines.base import Engine, EngineRequest
from vlcore.engines.generation import GenerationConfig
from vlcore.errors import OptionError
from vlcore.inference.response import Response, Session, error_response, join_responses
from vlcore.inference.user_input import Conversation, Prompt, is_batch, parse_prompt
from vlcore.prompts.chat_template import ChatTemplate, write_prompt
from vlcore.prompts.limits import PromptLimits
from vlcore.prompts.messages import Message, PromptPart, Text
from vlcore.prompts.tokenization import ImageLayout, PromptTokenizer, TokenizedPrompt
from vlcore.vision.encoder import ImageEncoder
from vlcore.vision.preprocessing import PreparedImage

_MAX_PROMPTS_IN_FLIGHT = 64
"""Of one list."""
_MAX_PROMPTS_ENCODING = 64
"""Of all callers: bounds the preprocessed pictures in memory."""


@dataclass(frozen=True)
class RequestRunner:
    """The stages of one model, and how a request passes through them.

    Nothing here blocks the loop: prompts are read and tokenised in its executor, and pictures and
    the models have threads of their own.
    """

    encoder: ImageEncoder
    template: ChatTemplate
    tokenizer: PromptTokenizer
    engine: Engine
    limits: PromptLimits = field(default_factory=PromptLimits)
    _encoding: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(_MAX_PROMPTS_ENCODING)
    )

    async def answer(
        self, conversation: Conversation, config: GenerationConfig, index: int = 0
    ) -> AsyncGenerator[Response]:
        """Walk the road once: pictures, rows, token ids, text."""
        async with self._encoding:
            prompt, rows = await self._encode(conversation)
        request = EngineRequest(prompt, rows, config, tuple(self.template.stop))
        num_generated = Counter[int]()
        num_rows = sum(map(len, rows))
        async with aclosing(self.engine.generate(request)) as pieces:
            async for piece in pieces:
                num_generated[piece.choice] += len(piece.token_ids)
                yield Response(
                    piece.text,
                    num_generated[piece.choice],
                    len(prompt.token_ids),
                    piece.finish_reason,
                    piece.token_ids,
                    index,
                    choice=piece.choice,
                    logprobs=piece.logprobs,
                    logits=piece.logits,
                    prompt_logits=piece.prompt_logits,
                    image_token_len=num_rows,
                )

    async def _encode(
        self, conversation: Conversation
    ) -> tuple[TokenizedPrompt, tuple[Tensor, ...]]:
        """Tokenize a prompt and encode its images."""
        self.limits.check_chars(conversation.messages)
        parts = await asyncio.to_thread(write_prompt, self.template, conversation.messages)
        prepared = await self.encoder.prepare(conversation.images, conversation.image_options)
        known = _known_layouts(prepared)
        if known is not None:  # a prompt that is too long is refused before it costs anything
            prompt = await self._build(parts, known)
            self._check_length(prompt)
        encoded = await self.encoder.encode_prepared(prepared)
        layouts = [ImageLayout(len(image.rows), image.layout) for image in encoded]
        if known is None or not _same(known, layouts):
            prompt = await self._build(parts, layouts)
            self._check_length(prompt)
        return prompt, tuple(image.rows for image in encoded)

    def _check_length(self, prompt: TokenizedPrompt) -> None:
        self.limits.check_tokens(len(prompt.token_ids))
        self.engine.check_length(len(prompt.token_ids))

    async def _build(
        self, parts: Sequence[PromptPart], layouts: Sequence[ImageLayout]
    ) -> TokenizedPrompt:
        return await asyncio.to_thread(self.tokenizer.build, parts, layouts, self.template)

    async def _whole(
        self, conversation: Conversation, config: GenerationConfig, index: int = 0
    ) -> Response:
        async with aclosing(self.answer(conversation, config, index)) as pieces:
            return join_responses([piece async for piece in pieces])

    async def infer(
        self,
        prompts: Prompt | Sequence[Any],
        config: GenerationConfig,
        *,
        shows_progress: bool = False,
    ) -> Response | list[Response]:
        """Answer a prompt, or every prompt of a list; in a list, one that fails fails alone."""
        if not is_batch(prompts):
            return await self._whole(await _parse(prompts), config)
        slots = asyncio.Semaphore(_MAX_PROMPTS_IN_FLIGHT)
        with progress_bar(
            len(prompts), description="answering", unit="prompt", shown=shows_progress
        ) as advance:

            async def answer(index: int, prompt: Prompt) -> Response:
                async with slots:
                    try:
                        return await self._whole(await _parse(prompt), config, index)
                    except Exception as error:  # the others keep their answers
                        return error_response(error, index)
                    finally:
                        advance()

            return list(await asyncio.gather(*(answer(*item) for item in enumerate(prompts))))

    async def stream(
        self,
        prompts: Prompt | Sequence[Any],
        config: GenerationConfig,
    ) -> AsyncGenerator[Response]:
        """Answer like :meth:`infer`, piece by piece as they come."""
        if not is_batch(prompts):
            conversation = await _parse(prompts)
            async with aclosing(self.answer(conversation, config)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        arrived: asyncio.Queue[Response | None] = asyncio.Queue()
        slots = asyncio.Semaphore(_MAX_PROMPTS_IN_FLIGHT)

        async def answer(index: int, prompt: Prompt) -> None:
            async with slots:
                try:
                    conversation = await _parse(prompt)
                    async with aclosing(self.answer(conversation, config, index)) as pieces:
                        async for piece in pieces:
                            arrived.put_nowait(piece)
                except Exception as error:  # the others keep their answers
                    arrived.put_nowait(error_response(error, index))
                finally:
                    arrived.put_nowait(None)

        tasks = [asyncio.create_task(answer(*item)) for item in enumerate(prompts)]
        try:
            num_running = len(tasks)
            while num_running:
                if (next_piece := await arrived.get()) is None:
                    num_running -= 1
                else:
                    yield next_piece
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def chat(
        self,
        prompt: Prompt,
        session: Session,
        config: GenerationConfig,
    ) -> Session:
        """Answer with a session's history, and add question and answer to it."""
        async with aclosing(self.stream_chat(prompt, session, config)) as pieces:
            async for _ in pieces:
                pass
        return session

    async def stream_chat(
        self,
        prompt: Prompt,
        session: Session,
        config: GenerationConfig,
    ) -> AsyncGenerator[Response]:
        """Answer like :meth:`chat`, piece by piece; a session that fails is left as it was."""
        if config.n != 1:
            raise OptionError(f"a session goes on with one answer: n must be 1; it is {config.n}")
        with session.answering():
            question = await _parse(prompt)
            # Kept decoded: a file may change, and a download would be repeated at every turn.
            question = replace(question, images=tuple(await self.encoder.load(question.images)))
            conversation = question
            if session.conversation is not None:
                conversation = session.conversation + question
            pieces = []
            async with aclosing(self.answer(conversation, config)) as answer:
                async for piece in answer:
                    pieces.append(piece)
                    if piece.finish_reason is not None:  # whoever reads may stop here
                        session.response = join_responses(pieces)
                        reply = Message("assistant", (Text(session.response.text),))
                        turns = (*conversation.messages, reply)
                        session.conversation = replace(conversation, messages=turns)
                    yield piece

    async def close(self) -> None:
        """Cancel what runs, and free the models."""
        await self.engine.close()
        await self.encoder.close()


async def _parse(prompt: Any) -> Conversation:
    """Read a prompt off the loop: telling a picture from a text may look at the disk."""
    return await asyncio.to_thread(parse_prompt, prompt)


def _known_layouts(images: Sequence[PreparedImage]) -> list[ImageLayout] | None:
    """Layouts of the images, if the plugin gave every number of rows beforehand."""
    layouts = []
    for image in images:
        if image.num_rows is None:
            return None
        layouts.append(ImageLayout(image.num_rows, image.layout))
    return layouts


def _same(known: Sequence[ImageLayout], actual: Sequence[ImageLayout]) -> bool:
    return all(
        before.num_rows == after.num_rows and before.layout is after.layout
        for before, after in zip(known, actual, strict=True)
    )
