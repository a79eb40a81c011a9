"""``PromptBatch``: prompts, or parts of them, that are computed in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from vlcore.engines.base import EngineRequest
from vlcore.language.prompt_inputs import PromptInputs


class PromptBatch:
    """The inputs of a model for parts of one or several prompts, padded on the right.

    Prompts with images and without, with positions of their own and without, share a batch.

    Args:
        requests: the requests, each with its prompt.
        columns: the positions in each prompt that are computed.
        embed: looks up the embeddings of token ids, [tokens] int64 to [tokens, hidden_size].
        device: device of the model.
    """

    def __init__(
        self,
        requests: Sequence[EngineRequest],
        columns: Sequence[range],
        embed: Callable[[Tensor], Tensor],
        device: torch.device,
    ) -> None:
        self.columns = columns
        self.longest = max(map(len, columns))
        """Number of columns of the longest part."""
        self._device = device
        self._inputs = [request.inputs for request in requests]
        self._embeddings: list[Tensor] = []
        self._added: list[Tensor] = []
        """What the image embeddings of each span add after the first layers, if anything."""
        self._is_image = torch.zeros(len(requests), self.longest, dtype=torch.bool)
        for index, request in enumerate(requests):
            self._embeddings.append(self._embed(index, request, embed))

    def model_inputs(self) -> dict[str, Any]:
        """Return the keyword arguments of the model, except the attention mask.

        Shapes:
            inputs_embeds: [prompts, longest, hidden_size].
            position_ids: [prompts, longest], or [axes, prompts, longest] with several axes.
            visual_pos_masks: [prompts, longest] bool, and deepstack_visual_embeds: [image
                embeddings of all prompts, hidden_size] for each of the first layers, where a model
                adds image embeddings to its hidden states.
        """
        inputs: dict[str, Any] = {
            "inputs_embeds": pad_sequence(self._embeddings, batch_first=True),
            "position_ids": pad_positions(self._inputs, self.columns).to(self._device),
        }
        if self._added:
            hidden_size = self._embeddings[0].shape[1]
            inputs["visual_pos_masks"] = self._is_image.to(self._device)
            added = torch.cat(self._added)
            inputs["deepstack_visual_embeds"] = list(torch.split(added, hidden_size, dim=1))
        return inputs

    def attention_groups(self) -> Tensor | None:
        """Return the groups of the columns up to the last one, or ``None`` if there are none.

        Shapes:
            result: [prompts, last column + 1] int64.
        """
        groups = [inputs.attention_groups for inputs in self._inputs]
        if all(group is None for group in groups):
            return None
        padded = torch.full((len(groups), max(one.stop for one in self.columns)), -1)
        for row, group, columns in zip(padded, groups, self.columns, strict=True):
            if group is not None:
                row[: columns.stop] = group[: columns.stop]
        return padded.to(self._device)

    def _embed(
        self, index: int, request: EngineRequest, embed: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Look up the embeddings of a part's tokens, and insert the image embeddings.

        Shapes:
            result: [columns, hidden_size].
        """
        columns = self.columns[index]
        token_ids = request.prompt.token_ids[columns.start : columns.stop]
        embeddings = embed(torch.tensor(token_ids, device=self._device))
        width = embeddings.shape[1]
        for span in sorted(request.prompt.spans, key=lambda span: span.start):
            start, stop = max(span.start, columns.start), min(span.stop, columns.stop)
            if start >= stop:
                continue
            first_row = span.first_row + start - span.start
            rows = request.rows[span.image][first_row : first_row + stop - start].to(embeddings)
            start, stop = start - columns.start, stop - columns.start
            embeddings[start:stop] = rows[:, :width]
            if rows.shape[1] > width:
                self._added.append(rows[:, width:])
                self._is_image[index, start:stop] = True
        return embeddings


def pad_positions(inputs: Sequence[PromptInputs], columns: Sequence[range]) -> Tensor:
    """Pad the positions of parts of prompts, on as many axes as any of them has.

    Args:
        inputs: the inputs of each prompt.
        columns: the columns of each of them.

    Shapes:
        result: [prompts, longest] int64, or [axes, prompts, longest] with several axes.
    """
    longest = max(map(len, columns))
    stated = [one.position_ids for one in inputs]
    num_axes = max((len(ids) for ids in stated if ids is not None), default=1)
    padded = []
    for ids, own in zip(stated, columns, strict=True):
        if ids is None:
            part = torch.arange(own.start, own.start + longest)[None]
        else:
            part = pad(ids[:, own.start : own.stop].cpu(), (0, longest - len(own)))
        padded.append(part.expand(num_axes, -1))
    return torch.stack(padded, dim=1) if num_axes > 1 else torch.cat(padded)
