"""``ClusterModel``: what the server of an ingress serves; it has no weights."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from ray.serve.handle import DeploymentHandle

from vlcore.cluster.arguments import ClusterArguments
from vlcore.cluster.messages import EncoderFacts, EngineFacts
from vlcore.cluster.remote_encoder import RemoteEncoder
from vlcore.cluster.remote_engine import RemoteEngine
from vlcore.engines.base import Engine
from vlcore.engines.generation import GenerationConfig
from vlcore.engines.sampling_defaults import read_sampling_defaults
from vlcore.errors import PluginContractError
from vlcore.inference.request_runner import RequestRunner
from vlcore.inference.response import Response
from vlcore.plugins.stages import ModelStages
from vlcore.prompts.chat_template import ChatTemplate
from vlcore.prompts.conversation import Conversation
from vlcore.prompts.limits import PromptLimits
from vlcore.prompts.tokenization import PromptTokenizer
from vlcore.server.app import create_app
from vlcore.server.settings import API_KEY_VARIABLE, parse_api_keys, within_engine_limits
from vlcore.vision.stats import EncoderStats


class ClusterModel:
    """A model whose encoder and engine run elsewhere, for a server on the same event loop.

    Args:
        runner: The stages of the model.
    """

    def __init__(self, runner: RequestRunner) -> None:
        self._runner = runner

    @property
    def template(self) -> ChatTemplate:
        """Chat template of the model."""
        return self._runner.template

    @property
    def engine(self) -> Engine:
        """Engine that runs the language model."""
        return self._runner.engine

    @property
    def image_options(self) -> frozenset[str]:
        """Names of the options that an image may have."""
        return self._runner.encoder.image_options

    def token_text(self, token_id: int) -> str:
        """Return the text of a token, with U+FFFD for an incomplete character."""
        return self._runner.tokenizer.token_text(token_id)

    def encoder_stats(self) -> EncoderStats:
        """Return the statistics of this ingress's images."""
        return self._runner.encoder.stats()

    def astream_infer(
        self, prompts: Conversation, gen_config: GenerationConfig
    ) -> AsyncGenerator[Response]:
        """Generate the response to one prompt, as a stream."""
        return self._runner.generate(prompts, gen_config)


async def create_ingress(
    arguments: ClusterArguments,
    encoder: DeploymentHandle[Any],
    language_model: DeploymentHandle[Any],
) -> FastAPI:
    """Create the server's application over the replicas of the two other deployments.

    It waits until a replica of each is ready.

    Raises:
        PluginContractError: The widths of image embeddings differ.
    """
    encoder_facts: EncoderFacts = await encoder.facts.remote()
    engine_facts: EngineFacts = await language_model.facts.remote()
    if encoder_facts.row_width != engine_facts.row_width:
        raise PluginContractError(
            f"the vision model returns image embeddings of width {encoder_facts.row_width}, and "
            f"the language model of {arguments.model} expects {engine_facts.row_width}"
        )
    stages = ModelStages(arguments.model, plugin=arguments.plugin, revision=arguments.revision)
    text_model = stages.language_model()
    runner = RequestRunner(
        RemoteEncoder(encoder, encoder_facts, arguments.limits, arguments.access),
        stages.chat_template(arguments.chat_template),
        PromptTokenizer(text_model.tokenizer()),
        RemoteEngine(language_model, engine_facts),
        PromptLimits(arguments.max_prompt_tokens, arguments.max_prompt_chars),
        text_model,
    )
    settings = arguments.settings
    if (listed := os.environ.get(API_KEY_VARIABLE)) is not None:
        settings = replace(settings, api_keys=settings.api_keys + parse_api_keys(listed))
    if arguments.generation_config:
        defaults = read_sampling_defaults(stages.checkpoint) | dict(settings.sampling_defaults)
        settings = replace(settings, sampling_defaults=defaults)
    return create_app(ClusterModel(runner), within_engine_limits(settings, runner.engine))
