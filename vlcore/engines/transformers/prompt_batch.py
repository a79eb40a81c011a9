"""The inputs of prompts that are computed in one forward pass, padded on the right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from vlcore.language.prompt_inputs import PromptInputs


def pad_positions(inputs: Sequence[PromptInputs], longest: int) -> Tensor:
    """Pad the positions of prompts, on as many axes as any of them has.

    Shapes:
        result: [prompts, longest] int64, or [axes, prompts, longest] with several axes.
    """
    steps = torch.arange(longest)
    stated = [one.position_ids for one in inputs]
    num_axes = max((len(ids) for ids in stated if ids is not None), default=1)
    padded = [
        (steps[None] if ids is None else pad(ids.cpu(), (0, longest - ids.shape[1]))).expand(
            num_axes, -1
        )
        for ids in stated
    ]
    return torch.stack(padded, dim=1) if num_axes > 1 else torch.cat(padded)
