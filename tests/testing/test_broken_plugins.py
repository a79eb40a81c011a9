"""Plugins that are each wrong in one way: the intended check reports it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from distributions import Site, make_site
from patchwork import ARCHITECTURE, NAME, REQUIRES, install_patchwork, write_patchwork

from vlcore.testing import CHECKS, Outcome, check_plugin
from vlcore.testing.checks import isolation

SLOW = {isolation.no_network.name, isolation.no_remote_code.name, isolation.no_files_written.name}
"""What these need is looked at in a separate process, which takes seconds."""
QUICK = [check.name for check in CHECKS if check.name not in SLOW]
IN_PROCESS = [name for name in QUICK if name not in {"light-import", "quiet-import"}]
"""Those that start no process, for faults of a plugin that is imported as it should be."""


@dataclass(frozen=True)
class Broken:
    """A plugin that is wrong in one way."""

    fault: str
    check: str
    """The one that is meant for it."""
    actual: str
    """A fragment of the report."""
    edits: Mapping[str, str] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    """Other checks that cannot but see it, next to answers; ``"rest"`` for those that need it."""
    requires: Sequence[str] = REQUIRES
    architectures: Sequence[str] = (ARCHITECTURE,)
    more: str = ""


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
VISION = [
    Broken(
        "a vision model that does not load",
        "vision-loads",
        "TensorError",
        {'{"projector.": ""}': '{"projektor.": ""}'},
        also=("rest",),
    ),
    Broken(
        "an exit out of a hook",
        "vision-loads",
        "SystemExit: no",
        {'        self.patch = checkpoint.config["patch_size"]': '        raise SystemExit("no")'},
        also=("rest",),
    ),
    Broken(
        "a module that cannot be imported alone",
        "light-import",
        "No module named 'patchwork_extras'",
        {
            "import hookimpl\n": (
                "import hookimpl\nimport sys\nif 'pytest' not in sys.modules:\n"
                "    import patchwork_extras\n"
            )
        },
        also=("quiet-import",),
    ),
    Broken(
        "rows with a batch dimension",
        "rows-shape",
        "a tensor [1, 8, 32]",
        {"patches.transpose(1, 2)[0]": "patches.transpose(1, 2)"},
        also=("spans-sum", "rows-announced"),
    ),
    Broken(
        "rows of the vision encoder's width",
        "rows-shape",
        "48",
        {
            '["text_config"]["hidden_size"]': '["text_config"]["intermediate_size"]',
            "self.projector(patches.transpose(1, 2)[0])": "patches.transpose(1, 2)[0]",
            "checkpoint.load_module(self.projector, sources, device=device, dtype=dtype)": (
                "self.projector.to(device, dtype)"
            ),
        },
    ),
    Broken(
        "one result for two images",
        "plain-pictures",
        "1 result(s)",
        {"for image in inputs]": "for image in inputs[:1]]"},
        also=("batch-equals-singles",),
    ),
    Broken(
        "NaN where an image has a black corner",
        "rows-finite",
        "NaN or Inf",
        {
            "ImageRows(rows, image.layout)": "ImageRows(rows / (rows > 0), image.layout)",
        },
        also=("odd-images",),
    ),
    Broken(
        "rows in float32 whatever was asked for",
        "rows-dtype",
        "torch.float32",
        {
            "device=device, dtype=dtype)": "device=device, dtype=torch.float32)",
        },
    ),
    Broken(
        "a wrong number of rows beforehand",
        "rows-announced",
        "num_rows=9",
        {"num_rows=rows * columns": "num_rows=rows * columns + 1"},
    ),
    Broken(
        "dropout that is left on",
        "rows-repeat",
        "rows that differ",
        {
            "ImageRows(rows, image.layout)": "ImageRows(nn.Dropout(0.5)(rows), image.layout)",
        },
        also=("batch-equals-singles", "threads"),
    ),
    Broken(
        "statistics over the batch",
        "batch-equals-singles",
        "rows that differ",
        {
            "        return [self.encode(image) for image in inputs]": (
                "        mean = torch.stack([image.pixels.mean() for image in inputs]).mean()\n"
                "        return [ImageRows(self.encode(i).rows - mean, i.layout) for i in inputs]"
            )
        },
    ),
    Broken(
        "results in another order than the images",
        "batch-equals-singles",
        "rows that differ",
        {
            "for image in inputs]": "for image in sorted(inputs, key=lambda i: i.pixels.mean())]",
        },
    ),
    Broken(
        "state of one image kept between threads",
        "threads",
        "",
        {
            "        columns, rows = grid\n": (
                "        import time\n        self.grid = grid\n        time.sleep(1e-4)\n"
                "        columns, rows = self.grid\n"
            ),
        },
    ),
    Broken(
        "three channels taken for granted",
        "odd-images",
        "RuntimeError",
        {'image.convert("RGB").resize(': "image.resize("},
    ),
    Broken(
        "a division by the shape of the image",
        "odd-images",
        "ZeroDivisionError",
        {
            "rows = grid\n": "rows = grid\n        image.width // (image.height // 20)\n",
        },
    ),
    Broken(
        "an image made small in place",
        "image-unchanged",
        "another one",
        {
            "rows = grid\n": "rows = grid\n        image.thumbnail((20, 20))\n",
        },
    ),
]
TEMPLATES = [
    Broken(
        "a template that does not load",
        "template-loads",
        "UnboundLocalError",
        {"    return TEMPLATE\n": "    return TEMPLATE\n    TEMPLATE = None\n"},
        also=("rest",),
    ),
    Broken(
        "a template for any name",
        "template-name",
        "a PatchworkTemplate",
        {'if name not in (None, "plain"):': "if False:"},
    ),
    Broken(
        "all images but the first forgotten",
        "one-slot-per-image",
        "slots [0]",
        more="""
    def messages2prompt(self, messages):
        parts = super().messages2prompt(messages)
        return tuple(part for part in parts if getattr(part, "index", 0) == 0)
""",
        also=("turns-in-order",),
    ),
    Broken(
        "a slot too many next to a text",
        "one-slot-per-image",
        "slots [0, 0]",
        more="""
    def append_image_token(self, prompt, num_images):
        parts = super().append_image_token(prompt, num_images)
        return (ImageSlot(0), *parts) if num_images else parts
""",
        also=("spans-sum", "turns-in-order", "user-text-is-text"),
    ),
    Broken(
        "a row left out between the others",
        "spans-sum",
        "12 rows",
        {"for _ in range(rows) for part": "for _ in range(3) for part"},
    ),
    Broken(
        "user text among the template's own",
        "user-text-is-text",
        "<s>",
        more="""
    def messages2prompt(self, messages):
        parts = super().messages2prompt(messages)
        return tuple(Control(part.text) if hasattr(part, "text") else part for part in parts)
""",
    ),
    Broken(
        "a mark in the text taken for an image",
        "user-text-is-text",
        "slots [0, 1]",
        more="""
    def messages2prompt(self, messages):
        found = []
        for part in super().messages2prompt(messages):
            text = getattr(part, "text", "")
            found.append(part)
            if "<image>" in text:
                found.append(ImageSlot(1))
        return tuple(found)
""",
    ),
    Broken(
        "neighbouring texts joined as the template's own",
        "user-text-is-text",
        "'</s>': 1",
        more="""
    def messages2prompt(self, messages):
        joined = []
        for part in super().messages2prompt(messages):
            before = joined[-1] if joined else None
            if type(part).__name__ == type(before).__name__ == "Text":
                joined[-1] = Control(before.text + part.text.removeprefix("\\n"))
            else:
                joined.append(part)
        return tuple(joined)
""",
    ),
    Broken(
        "only the last turn",
        "turns-in-order",
        "['Kiwi? 4']",
        more="""
    def messages2prompt(self, messages):
        first = [m for m in messages[:1] if m["role"] == "system"]
        return super().messages2prompt([*first, *messages[-1:]])
""",
        also=("one-slot-per-image", "continued-answer", "joined-messages"),
    ),
    Broken(
        "the system text left out",
        "system-text",
        "USER",
        more="""
    def messages2prompt(self, messages):
        return super().messages2prompt([m for m in messages if m["role"] != "system"])
""",
        also=("user-text-is-text", "continued-answer", "joined-messages"),
    ),
    Broken(
        "an end mark after the answer to continue",
        "continued-answer",
        "</s>",
        more="""
    def messages2prompt(self, messages):
        return (*super().messages2prompt(messages), Control("</s>"))
""",
    ),
    Broken(
        "an answer that is always continued",
        "continued-answer",
        "the two is",
        more="""
    def messages2prompt(self, messages):
        return super().messages2prompt(list(messages))
""",
    ),
    Broken(
        "a mark where two messages have the same role",
        "joined-messages",
        "Look.",
        more="""
    def messages2prompt(self, messages):
        roles = [message["role"] for message in messages if isinstance(message, dict)]
        is_doubled = any(first == second for first, second in zip(roles, roles[1:]))
        return (*super().messages2prompt(messages), *[Control("</s>")] * is_doubled)
""",
    ),
    Broken(
        "a stop that is a string of letters",
        "stop-words",
        "'###'",
        {'    stop=("</s>",),': '    stop=("###"),'},
    ),
    Broken(
        "a stop that is misspelt",
        "stop-words",
        "no added token of this name",
        {'    stop=("</s>",),': '    stop=("</S>",),'},
    ),
]
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
OTHER_FAULTS = [
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
CASES = [*PACKAGES, *MATCHES, *VISION, *TEMPLATES, *LANGUAGE]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    yield from make_site(tmp_path / "site", monkeypatch)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_patchwork(tmp_path_factory.mktemp("model") / "patchwork")


def install(site: Site, broken: Broken) -> None:
    edits = dict(broken.edits)
    if broken.more:  # more methods of the template
        edits["\n\nTEMPLATE = "] = f"{broken.more}\n\nTEMPLATE = "
    install_patchwork(site, edits, requires=broken.requires, architectures=broken.architectures)


def test_the_plugin_that_is_not_broken_passes_everything(site: Site, checkpoint: Path) -> None:
    install_patchwork(site)
    report = check_plugin(checkpoint, plugin=NAME)
    assert report.ok, report
    others = {result.name for result in report.results if result.outcome is not Outcome.PASSED}
    assert others == {"reference-rows", "reference-logits", "reference-conversations"}


@pytest.mark.parametrize("broken", CASES, ids=lambda broken: broken.fault)
def test_a_fault_is_found_by_the_check_that_is_meant_for_it(
    site: Site, checkpoint: Path, broken: Broken
) -> None:
    install(site, broken)
    checks = (
        QUICK
        if broken in PACKAGES
        else sorted({*IN_PROCESS, broken.check, *broken.also} - {"rest"})
    )
    report = check_plugin(checkpoint, plugin=NAME, only=checks)
    result = report[broken.check]
    assert result.outcome is Outcome.FAILED, report
    assert result.failure is not None
    assert broken.actual in result.failure.actual, result.failure
    assert all(vars(result.failure).values())
    others = {result.name for result in report.of(Outcome.FAILED)} - {broken.check}
    if "rest" in broken.also:  # other checks are not run, and refer to it
        assert others == set()
        assert all(broken.check in one.reason for one in report.of(Outcome.NOT_RUN))
    else:
        found = {one.name for one in report.of(Outcome.FAILED, Outcome.NOT_RUN)}
        assert found - {broken.check, "answers"} == set(broken.also), report


@pytest.mark.slow
@pytest.mark.parametrize("broken", OTHER_FAULTS, ids=lambda broken: broken.fault)
def test_a_side_effect_is_found(site: Site, checkpoint: Path, broken: Broken) -> None:
    install(site, broken)
    report = check_plugin(checkpoint, plugin=NAME, only=sorted(SLOW))
    result = report[broken.check]
    assert result.failure is not None
    assert broken.actual in result.failure.actual, result.failure
    assert [one.name for one in report.of(Outcome.FAILED)] == [broken.check]
    rest = report.of(Outcome.NOT_RUN)
    if "rest" in broken.also:  # the plugin could not be used completely
        assert len(rest) == len(SLOW) - 1
        assert all("the conformance kit blocks remote code" in one.reason for one in rest)
    else:
        assert rest == ()
