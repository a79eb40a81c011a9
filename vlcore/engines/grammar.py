"""``Grammar``: the form that an answer must have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from vlcore.errors import GrammarError

MAX_GRAMMAR_BYTES = 128 * 1024
"""Maximum size of a JSON schema, a regular expression or a list of choices, in bytes of UTF-8."""
MAX_SCHEMA_DEPTH = 64
"""Maximum number of nested lists and objects in a JSON schema."""

GrammarKind = Literal["json_schema", "regex", "choice"]

_LABELS = {
    "json_schema": "JSON schema",
    "regex": "regular expression",
    "choice": "list of choices",
}


@dataclass(frozen=True)
class Grammar:
    """The form that an answer must have, for :attr:`GenerationConfig.grammar`.

    Create one with :meth:`json_schema`, :meth:`json_object`, :meth:`regex` or :meth:`choice`. The
    engine then chooses among the tokens that the form allows, and an answer ends when it is
    complete. An answer can be incomplete only if it reaches ``max_new_tokens``, the end of the
    context or a stop string.
    """

    kind: GrammarKind
    source: str
    """The JSON schema or the list of choices as JSON, or the regular expression."""

    @property
    def label(self) -> str:
        """The kind of grammar, for messages."""
        return _LABELS[self.kind]

    def __post_init__(self) -> None:
        num_bytes = len(self.source.encode(errors="surrogatepass"))
        if num_bytes > MAX_GRAMMAR_BYTES:
            raise GrammarError(
                f"a grammar must have at most {MAX_GRAMMAR_BYTES} bytes; this {self.label} has "
                f"{num_bytes}: shorten it"
            )
        try:
            self.source.encode()
        except UnicodeEncodeError as error:
            raise GrammarError(
                f"a grammar must be valid Unicode, without lone surrogates: {error.reason}"
            ) from None

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool | str) -> Self:
        """Require JSON that is valid for a schema.

        Args:
            schema: the JSON schema, or its text.

        Raises:
            GrammarError: the schema is not JSON, larger than 128 KiB, or nested more than 64 levels
                deep. Whether it can be compiled is checked by the engine.
        """
        if isinstance(schema, str):
            if len(schema) > MAX_GRAMMAR_BYTES:
                return cls("json_schema", schema)  # which raises the error about its size
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError) as error:
                raise GrammarError(f"the JSON schema is not JSON: {error}") from None
        if not isinstance(schema, Mapping | bool):
            raise GrammarError(
                f"a JSON schema must be an object, true or false, not {type(schema).__name__}"
            )
        _check_depth(schema)
        try:
            text = json.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except (TypeError, ValueError) as error:
            raise GrammarError(f"the JSON schema cannot be written as JSON: {error}") from None
        return cls("json_schema", text)

    @classmethod
    def json_object(cls) -> Self:
        """Require a JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Self:
        r"""Require that the whole answer matches a regular expression.

        Args:
            pattern: a regular expression in the syntax of Rust's ``regex`` crate, which has no
                look-around and no backreferences. ``^`` and ``$`` are not needed. ``\d``, ``\w``
                and ``\s`` are the classes of ASCII.

        Raises:
            GrammarError: the pattern is not a string, empty or larger than 128 KiB.
        """
        if not isinstance(pattern, str) or not pattern:
            raise GrammarError(
                f"a regular expression must be a string that is not empty; it is {pattern!r}"
            )
        return cls("regex", pattern)

    @classmethod
    def choice(cls, choices: Sequence[str]) -> Self:
        """Require one of several strings.

        Raises:
            GrammarError: there are no choices, one is empty or not a string, or together they are
                larger than 128 KiB.
        """
        is_list = isinstance(choices, Sequence) and not isinstance(choices, str)
        if not (is_list and choices and all(isinstance(c, str) and c for c in choices)):
            raise GrammarError(
                "the choices must be a list of strings that are not empty, with at least one; they "
                f"are {choices!s:.100}"
            )
        return cls("choice", json.dumps(list(choices), ensure_ascii=False))


def _check_depth(schema: object) -> None:
    """Check the nesting of a schema, level by level, so that no recursion limit is reached.

    Raises:
        GrammarError: the schema is nested too deeply, or contains itself.
    """
    level: list[Any] = [] if isinstance(schema, bool) else [schema]
    for _ in range(MAX_SCHEMA_DEPTH):
        level = [
            child
            for value in level
            for child in (value.values() if isinstance(value, Mapping) else value)
            if isinstance(child, Mapping | list | tuple)
        ]
        if len(level) > MAX_GRAMMAR_BYTES:
            raise GrammarError(
                f"a grammar must have at most {MAX_GRAMMAR_BYTES} bytes; this JSON schema has more "
                "values than that: shorten it"
            )
    if level:
        raise GrammarError(
            f"the JSON schema is nested more than {MAX_SCHEMA_DEPTH} levels deep: define parts of "
            "it in $defs, and refer to them with $ref"
        )
