"""``ChatCompletion``: the response to a chat request."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class TokenLogprob(BaseModel):
    """The log-probability of a token."""

    token: str
    logprob: float
    bytes: list[int] | None
    """The token's UTF-8 bytes; ``None`` if the token is a part of a character."""


class GeneratedTokenLogprob(TokenLogprob):
    """The log-probabilities of a generated token and of its most likely alternatives."""

    top_logprobs: list[TokenLogprob]


class Logprobs(BaseModel):
    """The log-probabilities of each token of a completion."""

    content: list[GeneratedTokenLogprob]


class CompletionRegion(BaseModel):
    """A rectangle of the last image that a completion refers to."""

    label: str
    box: tuple[float, float, float, float]
    """Left, top, right and bottom, as fractions of the image's width and height."""


class CompletionFunction(BaseModel):
    """The function that a completion calls."""

    name: str
    arguments: str
    """The arguments, as JSON."""


class CompletionToolCall(BaseModel):
    """A call of a tool."""

    id: str
    type: Literal["function"] = "function"
    function: CompletionFunction


class CompletionMessage(BaseModel):
    """The generated message."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    """The text; ``None`` if there are only calls of tools."""
    refusal: None = None
    tool_calls: list[CompletionToolCall] | None = None


class Choice(BaseModel):
    """One of the completions of a request."""

    index: int
    message: CompletionMessage
    finish_reason: Literal["stop", "length", "tool_calls"]
    logprobs: Logprobs | None = None
    regions: list[CompletionRegion] | None = None


class PromptDetails(BaseModel):
    """The kinds of tokens in a prompt."""

    image_tokens: int
    """Number of image embeddings in the prompt."""
    video_tokens: int = 0
    """Number of embeddings of videos in the prompt."""
    cached_tokens: int = 0
    """Number of tokens that were not computed, because the engine had kept them."""


class Usage(BaseModel):
    """The token counts of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class ChatCompletion(BaseModel):
    """The response to a chat request."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    warnings: list[str] | None = None
    """Parts of the request that had no effect."""
