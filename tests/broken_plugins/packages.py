"""Faults of a plugin's package, and of its vl_match."""

from __future__ import annotations

from patchwork import ARCHITECTURE

from broken_plugins.fault import Broken

PACKAGES = [
    Broken(
        "an architecture that is no name",
        "entry-point",
        "'Patchwork-2' 1 time(s)",
        architectures=(ARCHITECTURE, "Patchwork-2"),
    ),
    Broken("no requirement of vlcore", "requires-vlcore", "none", requires=()),
    Broken(
        "a requirement without an end",
        "requires-vlcore",
        "vlcore>=0.1",
        requires=("vlcore>=0.1",),
    ),
    Broken(
        "a requirement of another vlcore",
        "requires-vlcore",
        "vlcore<0.2,>=0.1.7",
        requires=("vlcore>=0.1.7,<0.2",),
    ),
    Broken(
        "a hook that is misspelt",
        "hooks",
        "unknown hook 'vl_chat_templat'",
        {"def vl_chat_template(checkpoint, name)": "def vl_chat_templat(checkpoint, name)"},
        also=("rest",),
    ),
    Broken(
        "a hook without its mark",
        "hooks",
        "lacks the hook(s) vl_language_model",
        {"@hookimpl\ndef vl_language_model": "def vl_language_model"},
        also=("rest",),
    ),
    Broken(
        "a hook with an argument that no one passes",
        "hooks",
        "{'place'}",
        {"def vl_language_model(checkpoint)": "def vl_language_model(checkpoint, place)"},
        also=("rest",),
    ),
    Broken(
        "a hook whose argument has a default",
        "hooks",
        "name with a default or a star",
        {"def vl_chat_template(checkpoint, name)": "def vl_chat_template(checkpoint, name=None)"},
    ),
    Broken(
        "torch at import",
        "light-import",
        "it imports torch",
        {"from vlcore import hookimpl\n": "from vlcore import hookimpl\nimport torch\n"},
    ),
    Broken(
        "a greeting at import",
        "quiet-import",
        "welcome to patchwork",
        {
            "import hookimpl\n": "import hookimpl\nprint('welcome to patchwork')\n",
        },
    ),
]
MATCHES = [
    Broken(
        "a match that returns nothing",
        "match-own",
        "its vl_match returned None",
        {'    return True if "patch_size"': '    True if "patch_size"'},
        also=("match-siblings",),
    ),
    Broken(
        "a match that writes into the configuration",
        "match-own",
        "changed values of architectures",
        {
            '    return True if "': '    config.pop("architectures")\n    return True if "',
        },
    ),
    Broken(
        "a match of everything with a vision_config",
        "match-siblings",
        "True",
        {'"patch_size" in config': '"patch_size" in config or "vision_config" in config'},
    ),
    Broken(
        "a match that takes a key for granted",
        "match-siblings",
        "its vl_match raised KeyError",
        {'"patch_size" in config': 'config["patch_size"]'},
    ),
]
