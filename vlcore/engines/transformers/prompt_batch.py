"""``PromptBatch``: prompts that are computed in one forward pass, padded on the right."""

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
    """The inputs of a model for one or several prompts.

    Prompts with images and without, with positions of their own and without, share a batch.

    Args:
        requests: the requests, each with its prompt.
        embed: looks up the embeddings of token ids, [tokens] int64 to [tokens, hidden_size].
        device: device of the model.
    """

    def __init__(
        self,
        requests: Sequence[EngineRequest],
        embed: Callable[[Tensor], Tensor],
        device: torch.device,
    ) -> None:
        self.lengths = [len(request.prompt.token_ids) for request in requests]
        """Length of each prompt, in tokens."""
        self.longest = max(self.lengths)
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
            "position_ids": pad_positions(self._inputs, self.longest).to(self._device),
        }
        if self._added:
            hidden_size = self._embeddings[0].shape[1]
            inputs["visual_pos_masks"] = self._is_image.to(self._device)
            added = torch.cat(self._added)
            inputs["deepstack_visual_embeds"] = list(torch.split(added, hidden_size, dim=1))
        return inputs

    def attention_groups(self) -> Tensor | None:
        """Return the attention groups of all prompts, or ``None`` where there are none.

        Shapes:
            result: [prompts, longest] int64.
        """
        groups = [inputs.attention_groups for inputs in self._inputs]
        if all(group is None for group in groups):
            return None
        padded = torch.full((len(groups), self.longest), -1)
        for row, group in zip(padded, groups, strict=True):
            if group is not None:
                row[: len(group)] = group
        return padded.to(self._device)

    def _embed(
        self, index: int, request: EngineRequest, embed: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Look up the embeddings of a prompt's tokens, and insert the image embeddings.

        Shapes:
            result: [tokens, hidden_size].
        """
        embeddings = embed(torch.tensor(request.prompt.token_ids, device=self._device))
        width = embeddings.shape[1]
        for span in sorted(request.prompt.spans, key=lambda span: span.start):
            last_row = span.first_row + span.stop - span.start
            rows = request.rows[span.image][span.first_row : last_row].to(embeddings)
            embeddings[span.start : span.stop] = rows[:, :width]
            if rows.shape[1] > width:
                self._added.append(rows[:, width:])
                self._is_image[index, span.start : span.stop] = True
        return embeddings


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
