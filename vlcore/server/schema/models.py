"""``ModelList``: the list of models."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class Model(BaseModel):
    """The served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "vlcore"


class ModelList(BaseModel):
    """The list of served models, which is the one model."""

    object: Literal["list"] = "list"
    data: list[Model]
