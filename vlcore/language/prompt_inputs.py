"""``PromptInputs``: what some language models read of a prompt in addition to its embeddings.

A plugin's ``LanguageModel.prompt_inputs`` returns it. The functions of this module write the usual
ones. Engines know no layouts of images: they pass on what is here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlcore.errors import PluginContractError
from vlcore.prompts.tokenization import Span, TokenizedPrompt


def _check_ids(name: str, ids: object, shape: str, *, minimum: int) -> None:
    """Check the dtype, the number of dimensions and the lowest of some positions or groups."""
    if ids is None:
        return
    if not isinstance(ids, Tensor):
        raise PluginContractError(f"{name} must be a tensor {shape} or None; it is {ids!r:.80}")
    if ids.ndim != shape.count(",") + 1 or ids.dtype != torch.int64 or not ids.numel():
        raise PluginContractError(
            f"{name} must have the shape {shape} and the dtype int64; it has {list(ids.shape)} "
            f"and {str(ids.dtype).removeprefix('torch.')}"
        )
    if (lowest := int(ids.min())) < minimum:
        raise PluginContractError(f"{name} must be at least {minimum}; one is {lowest}")


@dataclass(frozen=True, eq=False)
class PromptInputs:
    """Positions and attention groups of a prompt's tokens and image embeddings.

    Shapes:
        position_ids: [axes, tokens] int64, not negative.
        attention_groups: [tokens] int64, -1 or a group.

    Raises:
        PluginContractError: a value has another type, shape or dtype, or is out of range.
    """

    position_ids: Tensor | None = None
    """Position of each token on each axis; ``None`` where every token is one step further, on all
    axes. A language model whose ``requires`` names ``"mrope"`` may have them."""
    rope_delta: int = 0
    """Position of the first generated token, less the number of tokens before it; each further
    token is one step further, on all axes."""
    attention_groups: Tensor | None = None
    """Tokens of one group attend to each other in both directions, and to all tokens before them.
    Those with -1 attend to the tokens before them only. A sliding window hides the same earlier
    tokens as without groups, and no later ones. A language model whose ``requires`` names
    ``"attention_groups"`` may have them."""

    def __post_init__(self) -> None:
        _check_ids("position_ids", self.position_ids, "[axes, tokens]", minimum=0)
        _check_ids("attention_groups", self.attention_groups, "[tokens]", minimum=-1)
        if not isinstance(self.rope_delta, int) or isinstance(self.rope_delta, bool):
            raise PluginContractError(
                f"rope_delta must be an integer; it is {type(self.rope_delta).__name__}"
            )

    @property
    def features(self) -> frozenset[str]:
        """The names of ``LanguageModel.requires`` that these inputs need."""
        names = set()
        if self.position_ids is not None or self.rope_delta:
            names.add("mrope")
        if self.attention_groups is not None:
            names.add("attention_groups")
        return frozenset(names)

    def check(self, num_tokens: int, max_position: int) -> None:
        """Check that the inputs belong to a prompt.

        Args:
            num_tokens: length of the prompt, in tokens.
            max_position: the highest position that any of them may have.

        Raises:
            PluginContractError: the inputs are longer or shorter than the prompt, or positions are
                out of range.
        """
        for name in ("position_ids", "attention_groups"):
            ids = getattr(self, name)
            if ids is not None and ids.shape[-1] != num_tokens:
                raise PluginContractError(
                    f"{name} of the prompt must have {num_tokens} columns, one for each token and "
                    f"image embedding; they have {ids.shape[-1]}"
                )
        highest = max(num_tokens + self.rope_delta, 0)
        if self.position_ids is not None:
            highest = max(highest, int(self.position_ids.max()))
        if num_tokens + self.rope_delta < 0 or highest > max_position:
            raise PluginContractError(
                f"positions must be in 0..{max_position}; the highest one is {highest}, and the "
                f"first generated token has {num_tokens + self.rope_delta} ({num_tokens} tokens "
                f"before it, rope_delta {self.rope_delta})"
            )


USUAL_INPUTS = PromptInputs()
"""Those of most language models: one position after another, and causal attention."""


def grid_positions(
    prompt: TokenizedPrompt,
    grids: Sequence[Sequence[int]],
    *,
    time_steps: Sequence[float] | None = None,
    passes_time: bool = True,
) -> PromptInputs:
    """Write the positions of images and videos whose embeddings form a grid, as in Qwen2-VL.

    The first embedding of an image has the position that a token would have there, and the others
    are ``t``, ``h`` and ``w`` steps further on the three axes. The next token is one step further
    than the highest position of the image. Where tokens divide the embeddings of an image into
    several runs, such as the frames of a video, each run begins where a token would.

    Args:
        prompt: the prompt.
        grids: the number of frames, lines and columns of each image, ``(t, h, w)``, after patches
            are merged. Its embeddings are in the order of the grid, line by line.
        time_steps: for each image, the steps on the time axis from one frame to the next, which are
            rounded down after they are added up; 1 by default.
        passes_time: whether positions on the time axis count as the highest ones of an image. If
            they do not, as in transformers 5, the token after a long video has a lower position
            than its last frames; the first generated token is one step further than all positions.

    Shapes:
        result: position_ids [3, tokens].

    Raises:
        PluginContractError: an image has another number of embeddings than its grid.

    Source:
        Qwen2-VL, https://arxiv.org/abs/2409.12191, section 2.1.
    """
    _check_grids(prompt, grids)
    time_steps = [1.0] * len(grids) if time_steps is None else time_steps
    steps = [_grid_steps(grid, step) for grid, step in zip(grids, time_steps, strict=True)]
    num_tokens = len(prompt.token_ids)
    position_ids = torch.empty(3, num_tokens, dtype=torch.int64)
    column = position = 0  # of the next token
    for span in sorted(prompt.spans, key=lambda span: span.start):
        if span.start == span.stop:
            continue
        num_before = span.start - column
        position_ids[:, column : span.start] = torch.arange(position, position + num_before)
        run = steps[span.image][:, span.first_row : span.first_row + span.stop - span.start]
        run = run - run.amin(dim=1, keepdim=True) + position + num_before
        position_ids[:, span.start : span.stop] = run
        column = span.stop
        position = int((run if passes_time else run[1:]).max()) + 1
    position_ids[:, column:] = torch.arange(position, position + num_tokens - column)
    return PromptInputs(position_ids, rope_delta=int(position_ids.max()) + 1 - num_tokens)


def _grid_steps(grid: Sequence[int], time_step: float) -> Tensor:
    """Return the steps of each embedding of a grid.

    Shapes:
        result: [3, t * h * w] int64.
    """
    frames, lines, columns = map(torch.arange, grid)
    # In the precision of the reference implementation, since the result is rounded down.
    times = (frames * torch.tensor(time_step, dtype=torch.float32)).long()
    return torch.cartesian_prod(times, lines, columns).T


def image_groups(prompt: TokenizedPrompt) -> Tensor:
    """Write attention groups in which the embeddings of an image attend to each other.

    Where tokens divide the embeddings of an image into several runs, each run is a group.

    Shapes:
        result: [tokens] int64.
    """
    groups = torch.full((len(prompt.token_ids),), -1)
    group = -1
    last: Span | None = None
    for span in sorted(prompt.spans, key=lambda span: span.start):
        if last is None or (last.image, last.stop) != (span.image, span.start):
            group += 1
        groups[span.start : span.stop] = group
        last = span
    return groups


def whole_prompt_group(prompt: TokenizedPrompt) -> Tensor:
    """Write a single attention group, in which the whole prompt attends to itself.

    Shapes:
        result: [tokens] int64.
    """
    return torch.zeros(len(prompt.token_ids), dtype=torch.int64)


def _check_grids(prompt: TokenizedPrompt, grids: Sequence[Sequence[int]]) -> None:
    num_rows = Counter[int]()
    for span in prompt.spans:
        num_rows[span.image] += span.stop - span.start
    for image in range(max(len(grids), *(index + 1 for index in num_rows), 0)):
        grid = tuple(grids[image]) if image < len(grids) else None
        if grid is None or len(grid) != 3 or math.prod(grid) != num_rows[image]:
            raise PluginContractError(
                f"image {image} has {num_rows[image]} embeddings in the prompt, and must have a "
                f"grid (t, h, w) of as many; its grid is {grid}"
            )
