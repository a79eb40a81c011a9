"""LLaVA's chat templates, by their names in the reference implementation.

Source: ``conversation.py`` of the LLaVA reference implementation; for llava-hf checkpoints, the
Jinja template of the checkpoint.
"""

from __future__ import annotations

from dataclasses import replace

from vl_plugin_llava.parts import is_hf
from vlcore import ChatTemplate, Checkpoint, JinjaTemplate, OptionError, RoleTemplate

_VICUNA_SYSTEM = (
    "A chat between a curious {who} and an artificial intelligence assistant. The assistant "
    "gives helpful, detailed, and polite answers to the {who}'s questions."
)

VICUNA_V1 = RoleTemplate(
    system=_VICUNA_SYSTEM.format(who="user"),
    system_suffix=" ",
    user_prefix="USER: ",
    user_suffix=" ",
    assistant_prefix="ASSISTANT:",
    answer_prefix=" ",
    answer_suffix="</s>",
    stop=("</s>",),
)
MISTRAL_INSTRUCT = RoleTemplate(
    system_prefix="<<SYS>>\n",
    system_suffix="\n<</SYS>>\n\n",
    system_inside_first_turn=True,
    user_prefix="[INST] ",
    user_suffix=" [/INST]",
    assistant_prefix="",
    answer_prefix=" ",
    answer_suffix=" </s>",
    stop=("</s>",),
)

TEMPLATES = {
    "vicuna_v1": VICUNA_V1,
    "llava_v1": replace(VICUNA_V1, system=_VICUNA_SYSTEM.format(who="human")),
    "mistral_instruct": MISTRAL_INSTRUCT,
    "chatml_direct": RoleTemplate(
        system="Answer the questions.",
        system_prefix="<|im_start|>system\n",
        system_suffix="<|im_end|>",
        user_prefix="<|im_start|>user\n",
        user_suffix="<|im_end|>",
        assistant_prefix="<|im_start|>assistant\n",
        answer_suffix="<|im_end|>",
        stop=("<|im_end|>",),
    ),
    "llava_llama_2": replace(
        MISTRAL_INSTRUCT,
        system=(
            "You are a helpful language and vision assistant. You are able to understand the "
            "visual content that the user provides, and assist the user with a variety of tasks "
            "using natural language."
        ),
        answer_suffix=" </s><s>",
    ),
}


def load_chat_template(checkpoint: Checkpoint, name: str | None) -> ChatTemplate:
    """Return the named template, or the checkpoint's own.

    Raises:
        OptionError: there is no template with this name.
    """
    if name is None:
        return _own_template(checkpoint)
    if name not in TEMPLATES:
        raise OptionError(
            f"LLaVA has no chat template {name!r}; it has {', '.join(sorted(TEMPLATES))}"
        )
    template = _with_image_tokens(checkpoint, TEMPLATES[name])
    return replace(template, restarts_after_image=not is_hf(checkpoint.config))


def _own_template(checkpoint: Checkpoint) -> ChatTemplate:
    config = checkpoint.config
    if is_hf(config):
        return _hf_template(checkpoint)
    if "LlavaMistralForCausalLM" in config["architectures"]:
        name = "mistral_instruct"
    elif _uses_chatml(checkpoint):
        name = "chatml_direct"
    else:
        name = "vicuna_v1"
    return _with_image_tokens(checkpoint, TEMPLATES[name])


def _hf_template(checkpoint: Checkpoint) -> ChatTemplate:
    source = checkpoint.chat_template
    if source is not None:
        processor = checkpoint.read_json("processor_config.json") or {}
        special_tokens = checkpoint.special_tokens
        return JinjaTemplate(
            source,
            image_token=processor.get("image_token", "<image>"),
            stop=tuple(filter(None, [special_tokens.get("eos_token")])),
            variables=special_tokens,
            response_template=checkpoint.response_template,
        )
    config = checkpoint.config
    if (config.get("text_config") or {}).get("model_type") == "mistral":
        template = replace(MISTRAL_INSTRUCT, system_inside_first_turn=False)
    elif _uses_chatml(checkpoint):
        template = TEMPLATES["chatml_direct"]
    elif "LlavaNextForConditionalGeneration" in config["architectures"]:
        template = TEMPLATES["llava_v1"]
    else:
        template = replace(VICUNA_V1, system="")
    return replace(template, restarts_after_image=False)


def _uses_chatml(checkpoint: Checkpoint) -> bool:
    """Whether the tokenizer has ChatML's special tokens, like that of the 34B model."""
    return any(
        "<|im_end|>" in str(checkpoint.read_json(filename) or "")
        for filename in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    )


def _with_image_tokens(checkpoint: Checkpoint, template: RoleTemplate) -> RoleTemplate:
    if not checkpoint.config.get("mm_use_im_start_end"):
        return template
    return replace(template, image_prefix="<im_start>", image_suffix="<im_end>\n")
