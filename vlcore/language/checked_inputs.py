"""Reads the prompt inputs that a plugin's language model returns, and checks them."""

from __future__ import annotations

from collections.abc import Sequence

from vlcore.errors import PluginContractError, VlcoreError
from vlcore.language.model import LanguageModel
from vlcore.language.prompt_inputs import PromptInputs
from vlcore.prompts.tokenization import ImageLayout, TokenizedPrompt


def has_prompt_inputs(model: LanguageModel) -> bool:
    """Return whether a language model has other prompt inputs than the usual ones."""
    return type(model).prompt_inputs is not LanguageModel.prompt_inputs


def read_prompt_inputs(
    model: LanguageModel, prompt: TokenizedPrompt, layouts: Sequence[ImageLayout]
) -> PromptInputs:
    """Return the prompt inputs of a language model, and check them.

    Raises:
        PluginContractError: they are not those of the prompt, need a feature that the model does
            not require, or the plugin raised an exception that is not one of vlcore.
    """
    name = f"{type(model).__name__}.prompt_inputs"
    try:
        inputs: object = model.prompt_inputs(prompt, layouts)
    except VlcoreError:
        raise
    except Exception as error:
        raise PluginContractError(f"{name} failed: {type(error).__name__}: {error}") from error
    if not isinstance(inputs, PromptInputs):
        raise PluginContractError(f"{name} must return PromptInputs; it returned {inputs!r:.80}")
    if missing := sorted(inputs.features - model.requires):
        raise PluginContractError(
            f"{name} returned inputs that need {', '.join(missing)}, which requires does not name: "
            f"it is {sorted(model.requires)}"
        )
    return inputs
