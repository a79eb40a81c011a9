"""``RequestRunner``: runs requests through the stages of a model, on the caller's event loop."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from vlcore._utils.progress import progress_bar
from vlcore.engines.base import Engine, EngineRequest
from vlcore.engines.generation import GenerationConfig
from vlcore.errors import OptionError
from vlcore.inference.response import Response, Session, error_response, join_responses
from vlcore.inference.user_input import Prompt, is_batch, parse_prompt
from vlcore.language.checked_inputs import has_prompt_inputs, read_prompt_inputs
from vlcore.language.model import LanguageModel
from vlcore.language.prompt_inputs import USUAL_INPUTS
from vlcore.prompts.chat_template import ChatTemplate, write_prompt
from vlcore.prompts.conversation import Conversation
from vlcore.prompts.limits import PromptLimits
from vlcore.prompts.messages import Control, PromptPart, Text
from vlcore.prompts.tokenization import ImageLayout, PromptTokenizer, TokenizedPrompt
from vlcore.vision.interface import Encoder, check_videos
from vlcore.vision.model import image_layout

_MAX_RUNNING_PROMPTS = 64
"""Maximum number of prompts of one list that run at a time."""
_MAX_ENCODING_PROMPTS = 64
"""Maximum number of prompts, of all callers, whose preprocessed images are in memory."""


@dataclass(frozen=True)
class RequestRunner:
    """Runs requests through the stages of one model.

    Nothing blocks the event loop: prompts are parsed and tokenized in its executor, and the image
    encoder and the engine have their own threads.
    """

    encoder: Encoder[Any]
    template: ChatTemplate
    tokenizer: PromptTokenizer
    engine: Engine
    limits: PromptLimits = field(default_factory=PromptLimits)
    language_model: LanguageModel | None = None
    """Returns the prompt inputs, if they are not the usual ones."""
    _encoding: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(_MAX_ENCODING_PROMPTS)
    )

    async def generate(
        self, prompt: Prompt, config: GenerationConfig, index: int = 0
    ) -> AsyncGenerator[Response]:
        """Generate the response to one prompt, as a stream."""
        await self.engine.prepare(config)
        conversation = await _read(prompt, config)
        async with self._encoding:
            request = await self._encode(conversation, config)
        num_generated = Counter[int]()
        num_rows = Counter[str]()
        for slot, rows in zip(conversation.slots, request.rows, strict=True):
            num_rows[slot.kind] += len(rows)
        async with aclosing(self.engine.generate(request)) as outputs:
            async for output in outputs:
                num_generated[output.choice] += len(output.token_ids)
                yield Response(
                    output.text,
                    num_generated[output.choice],
                    len(request.prompt.token_ids),
                    output.finish_reason,
                    output.token_ids,
                    index,
                    choice=output.choice,
                    logprobs=output.logprobs,
                    logits=output.logits,
                    prompt_logits=output.prompt_logits,
                    image_token_len=num_rows["image"],
                    video_token_len=num_rows["video"],
                    cached_tokens=output.cached_tokens,
                )

    async def _encode(self, conversation: Conversation, config: GenerationConfig) -> EngineRequest:
        """Tokenize the prompt of a conversation, and encode its images and videos."""
        self.limits.check_chars(conversation)
        check_videos(self.encoder, conversation.images)
        parts = await asyncio.to_thread(write_prompt, self.template, conversation)
        prepared = await self.encoder.prepare(
            conversation.images, conversation.image_options, room=self._room(parts)
        )
        known = [image.layout for image in prepared if image.layout is not None]
        are_known = len(known) == len(prepared)
        if are_known:  # a prompt that is too long is rejected before its images are encoded
            prompt = await self._build(parts, known)
            self._check_length(prompt)
        encoded = await self.encoder.encode_prepared(prepared)
        layouts = [image_layout(image) for image in encoded]
        if not are_known or not _are_equal(known, layouts):
            prompt = await self._build(parts, layouts)
            self._check_length(prompt)
        inputs = USUAL_INPUTS
        if self.language_model is not None and has_prompt_inputs(self.language_model):
            inputs = await asyncio.to_thread(
                read_prompt_inputs, self.language_model, prompt, layouts
            )
        return EngineRequest(
            prompt,
            tuple(image.rows for image in encoded),
            config,
            tuple(self.template.stop),
            inputs,
            tuple(image.key for image in prepared),
        )

    def _room(self, parts: Sequence[PromptPart]) -> int:
        """Return how many embeddings a prompt certainly has room for.

        A token has at least a byte of text. Half of what remains is left to the texts that a
        template puts around images, which depend on their layouts.
        """
        limit = self.engine.context_length - 1
        if self.limits.max_prompt_tokens is not None:
            limit = min(limit, self.limits.max_prompt_tokens)
        texts = [part.text for part in parts if isinstance(part, Text | Control)]
        num_bytes = sum(len(text.encode("utf-8", "replace")) for text in texts)
        return max(0, limit - num_bytes) // 2

    def _check_length(self, prompt: TokenizedPrompt) -> None:
        self.limits.check_tokens(len(prompt.token_ids))
        self.engine.check_length(len(prompt.token_ids))

    async def _build(
        self, parts: Sequence[PromptPart], layouts: Sequence[ImageLayout]
    ) -> TokenizedPrompt:
        return await asyncio.to_thread(self.tokenizer.build, parts, layouts, self.template)

    async def _generate_whole(
        self, prompt: Prompt, config: GenerationConfig, index: int = 0
    ) -> Response:
        async with aclosing(self.generate(prompt, config, index)) as chunks:
            return join_responses([chunk async for chunk in chunks])

    async def infer(
        self,
        prompts: Prompt | Sequence[Any],
        config: GenerationConfig,
        *,
        shows_progress: bool = False,
    ) -> Response | list[Response]:
        """Generate the response to a prompt, or to each prompt of a list.

        In a list, the failure of one prompt does not affect the others.
        """
        if not is_batch(prompts):
            return await self._generate_whole(prompts, config)
        permits = asyncio.Semaphore(_MAX_RUNNING_PROMPTS)
        with progress_bar(
            len(prompts), description="generating", unit="prompt", shown=shows_progress
        ) as advance:

            async def run(index: int, prompt: Prompt) -> Response:
                async with permits:
                    try:
                        return await self._generate_whole(prompt, config, index)
                    except Exception as error:  # the other prompts are not affected
                        return error_response(error, index)
                    finally:
                        advance()

            return list(await asyncio.gather(*(run(*item) for item in enumerate(prompts))))

    def stream(
        self, prompts: Prompt | Sequence[Any], config: GenerationConfig
    ) -> AsyncGenerator[Response]:
        """Generate responses like :meth:`infer`, as a stream."""
        if is_batch(prompts):
            return self._stream_batch(prompts, config)
        return self.generate(prompts, config)

    async def _stream_batch(
        self, prompts: Sequence[Any], config: GenerationConfig
    ) -> AsyncGenerator[Response]:
        responses: asyncio.Queue[Response | None] = asyncio.Queue()
        permits = asyncio.Semaphore(_MAX_RUNNING_PROMPTS)

        async def run(index: int, prompt: Prompt) -> None:
            async with permits:
                try:
                    async with aclosing(self.generate(prompt, config, index)) as chunks:
                        async for chunk in chunks:
                            responses.put_nowait(chunk)
                except Exception as error:  # the other prompts are not affected
                    responses.put_nowait(error_response(error, index))
                finally:
                    responses.put_nowait(None)

        tasks = [asyncio.create_task(run(*item)) for item in enumerate(prompts)]
        try:
            num_running = len(tasks)
            while num_running:
                if (response := await responses.get()) is None:
                    num_running -= 1
                else:
                    yield response
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
        """Generate a response with the history of a session, and append both messages to it."""
        async with aclosing(self.stream_chat(prompt, session, config)) as chunks:
            async for _ in chunks:
                pass
        return session

    async def stream_chat(
        self,
        prompt: Prompt,
        session: Session,
        config: GenerationConfig,
    ) -> AsyncGenerator[Response]:
        """Generate a response like :meth:`chat`, as a stream."""
        if config.n != 1:
            raise OptionError(
                f"a session continues with one response: n must be 1; it is {config.n}"
            )
        with session.reserved():
            turn = await _read(prompt, config)
            # Images and videos are kept decoded: a file may change, and a download would be
            # repeated with every request.
            turn = replace(turn, images=tuple(await self.encoder.load(turn.images)))
            conversation = turn
            if session.conversation is not None:
                conversation = session.conversation + turn
            chunks = []
            async with aclosing(self.generate(conversation, config)) as responses:
                async for chunk in responses:
                    chunks.append(chunk)
                    if chunk.finish_reason is not None:  # the caller may stop reading here
                        session.response = join_responses(chunks)
                        session.conversation = conversation.with_response(session.response.text)
                    yield chunk


async def _read(prompt: Prompt, config: GenerationConfig) -> Conversation:
    """Read a prompt in a thread, because telling an image from a text may access the disk."""
    if not isinstance(prompt, Conversation):
        prompt = await asyncio.to_thread(parse_prompt, prompt)
    return replace(prompt, continue_final_message=config.continue_final_message)


def _are_equal(known: Sequence[ImageLayout], actual: Sequence[ImageLayout]) -> bool:
    return all(
        before.num_rows == after.num_rows and before.layout is after.layout
        for before, after in zip(known, actual, strict=True)
    )
