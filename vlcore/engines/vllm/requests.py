"""``VllmRequest``: one answer that vLLM generates."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from vlcore.engines.external.prompt import HostPrompt
from vlcore.engines.external.request import ExternalRequest
from vlcore.engines.external.sequence import ExternalSequence
from vlcore.engines.vllm.translation import to_vllm_prompt
from vlcore.errors import EngineClosedError, EngineError

ENDED = (
    "vLLM's engine process has ended; its last messages are in the log. Create the pipeline "
    "again, or restart the server"
)
MAX_BANNED_IDS = 64
"""How many tokens are tried where each would complete a banned string."""


class VllmRequest(ExternalRequest):
    """Generates one answer with vLLM. All methods are called on one event loop.

    Args:
        sequence: receives the tokens of the answer.
        prompt: the prompt on the host.
        llm: vLLM's ``AsyncLLM``.
        make_options: creates vLLM's ``SamplingParams`` for the rest of the answer.
    """

    library = "vLLM"

    def __init__(
        self,
        sequence: ExternalSequence,
        prompt: HostPrompt,
        llm: Any,
        make_options: Callable[[ExternalSequence], Any],
    ) -> None:
        super().__init__(sequence, prompt)
        self._llm = llm
        self._make_options = make_options
        self.has_started = False
        """Whether vLLM has returned the first token."""

    async def _generate(self) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        try:
            while not self.sequence.is_finished:
                await self._generate_rest()
        except EngineDeadError:
            raise EngineClosedError(ENDED) from None
        except EngineGenerateError as error:  # which has no message of its own
            cause = error.__cause__ or error
            if isinstance(cause, EngineError):
                raise cause from None
            raise EngineError(f"vLLM failed: {type(cause).__name__}: {cause}") from None

    async def _generate_rest(self) -> None:
        """Generate the rest of the answer, up to its end or to a token that is not allowed.

        Raises:
            EngineError: vLLM failed, or every likely token would complete a banned string.
        """
        sequence = self.sequence
        if len(sequence.banned_token_ids) > MAX_BANNED_IDS:
            raise EngineError(
                f"bad_words exclude all of the {len(sequence.banned_token_ids)} most likely next "
                "tokens, so the answer cannot be continued: use fewer or longer bad_words"
            )
        options = self._make_options(sequence)
        max_num_tokens = len(sequence.token_ids) + options.max_tokens
        prompt = _as_input(self.prompt, sequence.token_ids)
        # Closing the generator aborts the request in vLLM.
        async with aclosing(self._llm.generate(prompt, options, uuid4().hex)) as outputs:
            async for output in outputs:
                self.has_started = True
                (completion,) = output.outputs
                is_accepted = sequence.accept(
                    completion.token_ids, logprobs=_logprobs(completion.logprobs)
                )
                if not is_accepted or sequence.is_finished:
                    return
                if completion.finish_reason not in (None, "stop", "length"):
                    raise EngineError(
                        f"vLLM ended the request by itself ({completion.finish_reason})"
                    )
                if completion.finish_reason and len(sequence.token_ids) < max_num_tokens:
                    sequence.end()


def _as_input(prompt: HostPrompt, generated: list[int]) -> Any:
    from vllm.inputs import embeds_input, tokens_input

    translated = to_vllm_prompt(prompt, generated)
    if translated.embeddings is None:
        return tokens_input(translated.token_ids)
    return embeds_input(
        translated.embeddings,
        prompt_token_ids=translated.token_ids,
        is_token_ids=translated.is_token,
    )


def _logprobs(positions: Any) -> list[dict[int, float]] | None:
    """Return the values of vLLM's log-probabilities: the token's own first, for each position."""
    if positions is None:
        return None
    return [
        {token_id: float(value.logprob) for token_id, value in position.items()}
        for position in positions
    ]
