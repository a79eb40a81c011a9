"""``ChatRequest``: the supported subset of OpenAI's chat request, and its extensions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
)

from vlcore.server.schema.messages import MAX_TOOLS, ChatMessage
from vlcore.server.schema.output_format import Choices, ResponseFormat, StructuredOutputs
from vlcore.server.schema.tools import ChosenTool, Tool
from vlcore.server.schema.values import (
    EXTENSION,
    NO_EFFECT,
    UNSUPPORTED,
    EmptyDict,
    EmptyList,
    Ignored,
    Integer,
    RequestModel,
    let_threads_run,
)

MAX_MESSAGES = 4096
"""Maximum number of messages of a request."""
_MAX_STOP_STRINGS = 16
_MAX_BIASED_TOKENS = 1024

StopString = Annotated[str, Field()]
StopStrings = Annotated[list[StopString], Field(max_length=_MAX_STOP_STRINGS, fail_fast=True)]


LogitBias = Annotated[
    dict[
        Annotated[str, Field(pattern="^[0-9]{1,9}$")],
        Annotated[float, Field(ge=-100, le=100)],
    ],
    Field(max_length=_MAX_BIASED_TOKENS, fail_fast=True),
]


class StreamOptions(RequestModel):
    """Options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = Field(None, description=NO_EFFECT)
    continuous_usage_stats: Literal[False] | None = Field(None, description=UNSUPPORTED)

    @property
    def has_effect(self) -> bool:
        """Whether an option has another value than its default."""
        return bool(self.include_usage)


class ChatRequest(RequestModel):
    """A conversation to continue. Unknown fields are ignored, and named in ``warnings``."""

    model: str
    messages: Annotated[
        list[Annotated[ChatMessage, AfterValidator(let_threads_run)]],
        Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True),
    ]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Integer | None = Field(None, ge=1)
    max_completion_tokens: Integer | None = Field(None, ge=1)
    temperature: float | None = Field(
        None, ge=0, le=2, description="0 (or less than 0.00001) selects the most likely token."
    )
    top_p: float | None = Field(None, ge=0, le=1, description="0 selects the most likely token.")
    n: Integer | None = Field(None, ge=1)
    stop: str | StopStrings | None = None
    seed: Integer | None = Field(None, ge=-(2**63), lt=2**63)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: LogitBias | None = Field(
        None, description="A number to add to the logit of each token, by its id."
    )
    logprobs: bool | None = None
    top_logprobs: Integer | None = Field(None, ge=0, le=20)
    top_k: Integer | None = Field(None, ge=-1, description=f"{EXTENSION} 0 and -1: no limit.")
    min_p: float | None = Field(None, ge=0, le=1, description=EXTENSION)
    min_tokens: Integer | None = Field(None, ge=0, description=EXTENSION)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100, description=EXTENSION)
    ignore_eos: bool | None = Field(None, description=EXTENSION)
    skip_special_tokens: bool | None = Field(None, description=EXTENSION)
    stop_token_ids: Annotated[list[Integer], Field(max_length=256, fail_fast=True)] | None = Field(
        None, description=EXTENSION
    )
    add_generation_prompt: bool | None = Field(
        None, description=f"{EXTENSION} False if the last message is continued, or else true."
    )
    continue_final_message: bool | None = Field(
        None,
        description=f"{EXTENSION} Continue a last message of the assistant, which is the default, "
        "or start a new message after it.",
    )

    add_special_tokens: Literal[False] | None = Field(None, description=UNSUPPORTED)
    allowed_token_ids: EmptyList | None = Field(None, description=UNSUPPORTED)
    audio: None = Field(None, description=UNSUPPORTED)
    bad_words: EmptyList | None = Field(None, description=UNSUPPORTED)
    best_of: Literal[1] | None = Field(None, description=UNSUPPORTED)
    chat_template: None = Field(None, description=UNSUPPORTED)
    chat_template_kwargs: EmptyDict | None = Field(None, description=UNSUPPORTED)
    documents: EmptyList | None = Field(None, description=UNSUPPORTED)
    early_stopping: Literal[False] | None = Field(None, description=UNSUPPORTED)
    echo: Literal[False] | None = Field(None, description=UNSUPPORTED)
    function_call: Literal["none", "auto"] | None = Field(None, description=UNSUPPORTED)
    functions: EmptyList | None = Field(None, description=UNSUPPORTED)
    guided_choice: Choices | None = Field(None, description=EXTENSION)
    guided_grammar: None = Field(None, description=UNSUPPORTED)
    guided_json: dict[str, Any] | str | None = Field(None, description=EXTENSION)
    guided_regex: Annotated[str, Field(min_length=1)] | None = Field(None, description=EXTENSION)
    include_stop_str_in_output: Literal[False] | None = Field(None, description=UNSUPPORTED)
    length_penalty: float | None = Field(None, ge=1, le=1, description=UNSUPPORTED)
    logits_processors: EmptyList | None = Field(None, description=UNSUPPORTED)
    mm_processor_kwargs: EmptyDict | None = Field(None, description=UNSUPPORTED)
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = Field(
        None, description=UNSUPPORTED
    )
    prompt_logprobs: None = Field(None, description=UNSUPPORTED)
    reasoning_effort: Literal["none"] | None = Field(None, description=UNSUPPORTED)
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = Field(None, description=EXTENSION)
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = Field(
        None, description="auto by default. none leaves the tools out of the prompt."
    )
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = Field(
        None, description="Functions that the model may call, if its chat template supports them."
    )
    truncate_prompt_tokens: None = Field(None, description=UNSUPPORTED)
    typical_p: float | None = Field(None, ge=1, le=1, description=UNSUPPORTED)
    use_beam_search: Literal[False] | None = Field(None, description=UNSUPPORTED)
    verbosity: Literal["medium"] | None = Field(None, description=UNSUPPORTED)
    web_search_options: None = Field(None, description=UNSUPPORTED)

    metadata: Ignored = Field(None, description=NO_EFFECT)
    parallel_tool_calls: bool | None = Field(
        None, description="False for one call with the tool choice required; otherwise no effect."
    )
    prediction: Ignored = Field(None, description=NO_EFFECT)
    prompt_cache_key: str | None = Field(None, description=NO_EFFECT)
    prompt_cache_retention: str | None = Field(None, description=NO_EFFECT)
    safety_identifier: str | None = Field(None, description=NO_EFFECT)
    service_tier: str | None = Field(None, description=NO_EFFECT)
    spaces_between_special_tokens: bool | None = Field(None, description=NO_EFFECT)
    store: bool | None = Field(None, description=NO_EFFECT)
    user: str | None = Field(None, description=NO_EFFECT)
