"""Side effects of a plugin, which are observed in a separate process."""

from __future__ import annotations

from broken_plugins.fault import Broken

SIDE_EFFECTS = [
    Broken(
        "a version looked up in the network",
        "no-network",
        "urllib.Request 'http://example.invalid/version'",
        {
            '        self.patch = checkpoint.config["patch_size"]': """
        import urllib.request

        try:
            urllib.request.urlopen("http://example.invalid/version")
        except OSError:
            pass
        self.patch = checkpoint.config["patch_size"]
"""
        },
    ),
    Broken(
        "remote code trusted",
        "no-remote-code",
        "vlcore_planted_code.py",
        {
            "class PatchworkLanguageModel(LanguageModel):\n    pass": """
class PatchworkLanguageModel(LanguageModel):
    def tokenizer(self):
        from transformers import AutoConfig

        AutoConfig.from_pretrained(self.checkpoint.directory, trust_remote_code=True)
        return super().tokenizer()
"""
        },
        also=("rest",),
    ),
    Broken(
        "pickles read as they come",
        "no-remote-code",
        "unpickled",
        {
            '        self.patch = checkpoint.config["patch_size"]': """
        import collections
        import pickle

        pickle.loads(pickle.dumps(collections.OrderedDict()))
        self.patch = checkpoint.config["patch_size"]
"""
        },
    ),
    Broken(
        "a cache next to the weights",
        "no-files-written",
        "cache.json",
        {
            '        self.patch = checkpoint.config["patch_size"]': """
        (checkpoint.directory / "cache.json").write_text("{}")
        self.patch = checkpoint.config["patch_size"]
"""
        },
    ),
    Broken(
        "tensors kept in the working directory",
        "no-files-written",
        "kept.safetensors",
        {
            '        self.patch = checkpoint.config["patch_size"]': """
        from safetensors.torch import save_file

        save_file({"kept": torch.zeros(1)}, "kept.safetensors")
        self.patch = checkpoint.config["patch_size"]
"""
        },
    ),
]
