"""Reports words of the project's own making where the field has a standard term.

The list is ``scripts/words.toml``: what to avoid, what to write instead, and the exact contexts in
which a word is allowed because it belongs to a public name or to another project. Without paths,
every text file of the repository is checked, names of files included.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[1]
WORD_LIST = ROOT / "scripts" / "words.toml"

Scope = Literal["everywhere", "prose", "names"]
_SUFFIXES = (
    *(".py", ".pyi", ".md", ".html", ".js", ".css", ".svg", ".toml", ".yml", ".yaml"),
    *(".sh", ".jinja", ".txt", ".cfg", ".in", ".c", ".h"),
)
_FILE_NAMES = frozenset({"Makefile", "run"})

_GAP = r"(?:[\s_-]+(?:(?:\#|\*|//)\s+)?)"
"""What separates the words of a phrase: spaces, a line break in a comment, ``_`` or ``-``."""
_FENCE = re.compile(r"^( *)(```+|~~~+).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
_COMMENT_IN_FENCE = re.compile(r"(?<=\s)#\s.*")
_CODE_SPAN = re.compile(r"(?<!`)(`{1,2})(?!`)[^`]+?\1(?!`)")
_LINK_TARGET = re.compile(r"(?<=\])\([^()\s]*\)")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_FSTRING_QUOTE = re.compile(r"(?i:r?fr?)['\"]")
_REPLACEMENT_FIELD = re.compile(r"\{(?:[^{}]|\{[^{}]*\})*\}")
# From Python 3.12 on, an f-string is several tokens; before, it is one string.
_FSTRING_START = getattr(tokenize, "FSTRING_START", -1)
_FSTRING_END = getattr(tokenize, "FSTRING_END", -2)
_TOKENS = {tokenize.NAME, tokenize.COMMENT, tokenize.STRING, _FSTRING_START, _FSTRING_END}


@dataclass(frozen=True)
class Allowance:
    """A context in which a word is allowed: the word is a part of what ``pattern`` matches."""

    pattern: re.Pattern[str]
    reason: str
    files: str = "*"

    def covers(self, text: str, start: int, end: int, path: str) -> bool:
        """Return whether this context surrounds ``text[start:end]`` of the file at ``path``."""
        if not fnmatch(path, self.files):
            return False
        nearby = max(0, start - 200)
        matches = self.pattern.finditer(text, nearby, end + 200)
        return any(match.start() <= start and end <= match.end() for match in matches)


@dataclass(frozen=True)
class Rule:
    """Words to avoid, and what to write instead."""

    pattern: re.Pattern[str]
    use: str
    scope: Scope = "everywhere"
    files: str = "*"
    allowances: tuple[Allowance, ...] = ()
    needles: tuple[str, ...] = ("",)
    """In lower case; a text without any of them cannot match. Only for speed."""


@dataclass(frozen=True, order=True)
class Finding:
    """A word to replace; ``line`` is 0 for the name of the file itself."""

    path: str
    line: int
    column: int
    word: str
    use: str

    def __str__(self) -> str:
        """Format the finding as ``path:line:column: message``."""
        where = f"{self.path}:{self.line}:{self.column}" if self.line else f"{self.path} (name)"
        return f'{where}: "{self.word}": write {self.use}'


@dataclass
class Report:
    """The findings in some files, and the allowances that were needed there."""

    findings: list[Finding] = field(default_factory=list)
    used: set[Allowance] = field(default_factory=set)


def main(arguments: list[str] | None = None) -> int:
    """Check the files and return the exit status: 1 if a word must be replaced."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*", type=Path, help="files and directories (default: all)")
    parser.add_argument("--count", action="store_true", help="list the words, most frequent first")
    options = parser.parse_args(arguments)
    rules = read_rules(WORD_LIST)
    files = sorted(list_files(options.paths or [ROOT]))
    report = check_files(files, rules)
    if options.count:
        counts = Counter((finding.word.lower(), finding.use) for finding in report.findings)
        for (word, use), count in counts.most_common():
            print(f'{count:5}  "{word}": write {use}')
    else:
        print(*sorted(report.findings), sep="\n", end="\n" if report.findings else "")
    unused = unused_allowances(rules, report) if not options.paths else []
    for allowance in unused:
        print(
            f"{WORD_LIST.name}: nothing needs the allowance {allowance.pattern.pattern!r} any more"
        )
    if report.findings:
        print(f"{len(report.findings)} words to replace (see {WORD_LIST.name})", file=sys.stderr)
    return 1 if report.findings or unused else 0


def read_rules(path: Path) -> list[Rule]:
    """Read the word list.

    Raises:
        KeyError: an entry has a key that is not known, or lacks one that is needed.
    """
    return [_rule(entry) for entry in tomllib.loads(path.read_text("utf-8"))["word"]]


def _rule(entry: dict[str, Any]) -> Rule:
    unknown = entry.keys() - {"avoid", "regex", "use", "scope", "files", "allow"}
    if unknown:
        raise KeyError(f"unknown keys in an entry of the word list: {sorted(unknown)}")
    scope: Scope = entry.get("scope", "everywhere")
    patterns = [entry["regex"]] if "regex" in entry else []
    patterns += [_phrase_pattern(phrase, scope) for phrase in entry.get("avoid", ())]
    if not patterns:
        raise KeyError("an entry of the word list needs avoid or regex")
    return Rule(
        pattern=re.compile("|".join(patterns)),
        use=entry["use"],
        scope=scope,
        files=entry.get("files", "*"),
        allowances=tuple(
            Allowance(re.compile(allowed["pattern"]), allowed["why"], allowed.get("files", "*"))
            for allowed in entry.get("allow", ())
        ),
        needles=("",)
        if "regex" in entry
        else tuple({phrase.split()[0].lower() for phrase in entry["avoid"]}),
    )


def _phrase_pattern(phrase: str, scope: Scope) -> str:
    """Match a phrase in any capitalisation; outside prose also within an identifier."""
    words = [re.escape(word) for word in phrase.split()]
    capitals = [f"[{word[0].lower()}{word[0].upper()}]{word[1:]}" for word in words]
    if scope == "prose":
        phrase = r"\s+(?:(?:\#|\*|//)\s+)?".join(capitals)
        return rf"(?<![\w./-]){phrase}(?![\w/])(?!\.\w|-\w+[./])"
    lower = _GAP.join(capitals)
    camel = "".join([capitals[0], *(word.title() for word in words[1:])])
    title = words[0].title()
    upper = _GAP.join(word.upper() for word in words)
    return (
        rf"(?<![A-Za-z])(?:{lower}|{camel})(?![a-z])"
        rf"|(?<=[a-z0-9]){title}{''.join(word.title() for word in words[1:])}(?![a-z])"
        rf"|(?<![A-Za-z]){upper}(?![A-Za-z])"
    )


def list_files(paths: Iterable[Path]) -> Iterator[Path]:
    """List the text files of the repository at or below some paths; ignored files are left out."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--"]
    listed = subprocess.run(
        [*command, *(path.resolve() for path in paths)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = ROOT / name
        checked = path.suffix in _SUFFIXES or path.name in _FILE_NAMES
        if checked and path.is_file() and path != WORD_LIST:
            yield path


def check_files(files: Iterable[Path], rules: Iterable[Rule]) -> Report:
    """Look for the words in the files and in their names."""
    rules = list(rules)
    report = Report()
    for file in files:
        name = file.relative_to(ROOT).as_posix()
        for finding in _check_text(name, name, rules, report, views={"everywhere": name}):
            report.findings.append(Finding(name, 0, 0, finding.word, finding.use))
        text = file.read_text("utf-8")
        report.findings += _check_text(name, text, rules, report, views=scopes_of(text, name))
    return report


def check_text(text: str, path: str, rules: Iterable[Rule]) -> list[Finding]:
    """Look for the words in the text of one file."""
    return sorted(_check_text(path, text, list(rules), Report(), views=scopes_of(text, path)))


def _check_text(
    path: str, text: str, rules: list[Rule], report: Report, *, views: dict[Scope, str]
) -> Iterator[Finding]:
    starts = [0, *(match.end() for match in re.finditer("\n", text))]
    lowered = text.lower()
    for rule in rules:
        if rule.scope not in views or not fnmatch(path, rule.files):
            continue
        if not any(needle in lowered for needle in rule.needles):
            continue
        for match in rule.pattern.finditer(views[rule.scope]):
            allowance = _allowance_for(rule, text, match, path)
            if allowance is not None:
                report.used.add(allowance)
                continue
            line = bisect_right(starts, match.start())
            column = match.start() - starts[line - 1] + 1
            yield Finding(path, line, column, " ".join(match[0].split()), rule.use)


def _allowance_for(rule: Rule, text: str, match: re.Match[str], path: str) -> Allowance | None:
    for allowance in rule.allowances:
        if allowance.covers(text, match.start(), match.end(), path):
            return allowance
    return None


def unused_allowances(rules: Iterable[Rule], report: Report) -> list[Allowance]:
    """List the allowances that no file needed."""
    return [
        allowance for rule in rules for allowance in rule.allowances if allowance not in report.used
    ]


def scopes_of(text: str, path: str) -> dict[Scope, str]:
    """Return the text as each scope sees it: what does not belong to the scope is blank.

    Offsets are those of ``text``. Only Python files and templates of them have the scope ``names``.
    """
    if path.endswith((".py", ".pyi", ".py.jinja")):
        prose, names = _python_scopes(text)
        return {"everywhere": text, "prose": prose, "names": names}
    return {"everywhere": text, "prose": _markdown_prose(text) if path.endswith(".md") else text}


def _python_scopes(text: str) -> tuple[str, str]:
    """Return comments, docstrings and strings that hold a space; and the identifiers."""
    prose, names = _blank(text), _blank(text)
    for kind, start, end in _python_tokens(text):
        content = text[start:end]
        if kind == tokenize.NAME:
            names[start:end] = content
        elif kind == tokenize.COMMENT:
            prose[start:end] = _without(content, _CODE_SPAN)
        else:
            fields = [] if kind == tokenize.STRING else _REPLACEMENT_FIELD.finditer(content)
            for replaced in fields:
                code = _without(replaced[0], _QUOTED)
                names[start + replaced.start() : start + replaced.end()] = code
                blank = "\0" * len(code)
                content = content[: replaced.start()] + blank + content[replaced.end() :]
            if re.search(r"\s", content):
                prose[start:end] = _without(content, _CODE_SPAN)
    return "".join(prose), "".join(names)


def _python_tokens(text: str) -> Iterator[tuple[int, int, int]]:
    """Yield kind, start and end of names, comments and strings; an f-string is one token."""
    starts = [0, *(match.end() for match in re.finditer("\n", text))]
    f_string_start, depth = 0, 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _TOKENS:
            continue
        start = starts[token.start[0] - 1] + token.start[1]
        end = starts[token.end[0] - 1] + token.end[1]
        if token.type == _FSTRING_START:
            f_string_start = f_string_start if depth else start
            depth += 1
        elif token.type == _FSTRING_END:
            depth -= 1
            if not depth:
                yield _FSTRING_START, f_string_start, end
        elif not depth:
            is_f_string = token.type == tokenize.STRING and re.match(
                r"(?i)r?fr?['\"]", token.string
            )
            yield _FSTRING_START if is_f_string else token.type, start, end


def _markdown_prose(text: str) -> str:
    """Return Markdown without code, except for the comments in it, and without link targets."""

    def comments_only(fence: re.Match[str]) -> str:
        kept = _blank(fence[0])
        for comment in _COMMENT_IN_FENCE.finditer(fence[0]):
            kept[comment.start() : comment.end()] = comment[0]
        return "".join(kept)

    text = _FENCE.sub(comments_only, text)
    return _without(_without(text, _CODE_SPAN), _LINK_TARGET)


def _blank(text: str) -> list[str]:
    return [character if character == "\n" else " " for character in text]


def _without(text: str, pattern: re.Pattern[str], filler: str = " ") -> str:
    """Overwrite what the pattern matches, line breaks excepted."""
    return pattern.sub(lambda match: re.sub(r"[^\n]", filler, match[0]), text)


if __name__ == "__main__":
    sys.exit(main())
