"""The blocks of code and the commands of Markdown pages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_FENCE = re.compile(r"^```([\w{}-]*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ([\w./-]+\.(?:py|toml))\n")


@dataclass(frozen=True)
class Block:
    document: Path
    line: int
    """The line of the document before its first."""
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"

    def run(self) -> None:
        """Run a block of Python, as if its document were the file."""
        source = "\n" * self.line + self.text
        exec(compile(source, str(self.document), "exec"), {"__name__": "__main__"})

    @property
    def file(self) -> str | None:
        """The file of a package that the block is, by its first line."""
        found = _FILE.match(self.text)
        return found[1] if found else None

    @property
    def commands(self) -> list[str]:
        lines = self.text.splitlines() if self.language == "sh" else []
        return [line.split("  #")[0].strip() for line in lines if line.strip()]


def blocks_of(documents: Iterable[Path]) -> list[Block]:
    blocks = []
    for document in documents:
        text = document.read_text("utf-8")
        for found in _FENCE.finditer(text):
            line = text.count("\n", 0, found.start(2))
            blocks.append(Block(document, line, found[1], found[2]))
    return blocks


def commands_of(blocks: Iterable[Block]) -> list[str]:
    return [command for block in blocks for command in block.commands]


def write_files(blocks: Iterable[Block], directory: Path) -> list[Path]:
    """Write the blocks that are files of a package."""
    written = []
    for block in blocks:
        if block.file is not None:
            path = directory / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
            written.append(path)
    return written
