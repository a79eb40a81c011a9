from __future__ import annotations

import re

import pytest

from vlcore import errors

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, Exception)
}


def drawn_tree() -> dict[str, tuple[str, ...]]:
    """Read the bases of each class off the tree in the module's docstring."""
    assert errors.__doc__ is not None
    bases: dict[str, tuple[str, ...]] = {}
    path: list[str] = []
    for line in errors.__doc__.splitlines():
        found = re.match(
            r"    (?P<bars>[│├└─ ]*)(?P<name>[A-Z]\w+Error)( \((?P<also>\w+)\))?", line
        )
        if found is None:
            continue
        depth = len(found["bars"]) // 4
        del path[depth:]
        also = (found["also"],) if found["also"] else ()
        bases[found["name"]] = (*path[-1:], *also) if path else ("Exception",)
        path.append(found["name"])
    return bases


def test_the_docstring_draws_the_classes() -> None:
    assert drawn_tree() == {
        name: tuple(base.__name__ for base in cls.__bases__) for name, cls in CLASSES.items()
    }


@pytest.mark.parametrize("name", CLASSES)
def test_every_exception_is_caught_as_vlcore_error(name: str) -> None:
    with pytest.raises(errors.VlcoreError, match=r"^what came$"):
        raise CLASSES[name]("what came")


@pytest.mark.parametrize("name", CLASSES)
def test_every_exception_is_documented(name: str) -> None:
    docstring = CLASSES[name].__doc__
    assert docstring is not None
    assert docstring.endswith(".")
