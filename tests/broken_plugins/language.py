"""Faults of a language model."""

from __future__ import annotations

from broken_plugins.fault import Broken

LANGUAGE = [
    Broken(
        "a language model of no known type",
        "language-loads",
        "ConfigError",
        {
            'checkpoint.config["text_config"], tensors)': (
                'checkpoint.config["text_config"] | {"model_type": "lama"}, tensors)'
            ),
        },
        also=("rest",),
    ),
    Broken(
        "positions on several axes that are not declared",
        "requires-declared",
        "requires is []",
        {
            "return PatchworkLanguageModel(checkpoint, checkpoint": (
                'checkpoint.config["text_config"]["rope_scaling"] = '
                '{"type": "default", "mrope_section": [2, 3, 3]}\n'
                "    return PatchworkLanguageModel(checkpoint, checkpoint"
            ),
        },
    ),
    Broken(
        "a tokenizer without its files",
        "tokenizer-loads",
        "CheckpointError",
        {
            "class PatchworkLanguageModel(LanguageModel):\n    pass": """
class PatchworkLanguageModel(LanguageModel):
    def tokenizer(self):
        from vlcore import Checkpoint

        return Checkpoint(self.checkpoint.directory / "tokens").tokenizer()
"""
        },
        also=("rest",),
    ),
    Broken(
        "tensors of the head forgotten",
        "text-tensors",
        "lm_head.weight",
        {'{"language_model.": ""}': '{"language_model.model.": "model."}'},
        also=(
            "view-tensors",
            "view-logits",
        ),
    ),
    Broken(
        "the vision encoder's tensors in the view",
        "view-tensors",
        "projector.weight",
        {
            "class PatchworkLanguageModel(LanguageModel):\n    pass": """
class PatchworkLanguageModel(LanguageModel):
    def write_view(self, directory):
        own = dict(self.tensors)
        self.tensors |= renamed(self.checkpoint, {"projector.": "projector."})
        try:
            return super().write_view(directory)
        finally:
            self.tensors = own
"""
        },
        also=("view-logits",),
    ),
    Broken(
        "a view with another rotary base",
        "view-logits",
        "logits that differ",
        {
            "class PatchworkLanguageModel(LanguageModel):\n    pass": """
class PatchworkLanguageModel(LanguageModel):
    @property
    def view_config(self):
        rope = {"rope_type": "default", "rope_theta": 10.0}
        return super().view_config | {"rope_parameters": rope, "rope_theta": 10.0}
"""
        },
    ),
]
