"""The embedded engine on a GPU, next to a plain loop over transformers' forward."""

from __future__ import annotations

import asyncio
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _cuda import DRY_RUN, device, device_name, parser
from _llama import LLAMA_7B, NUM_ROWS, NUM_TEXT, SMALL, requests, seconds_for, write_model
from engine import Bare
from measure import interleave, markdown_table, progress, ratios, spread

from vlcore.engines.transformers.config import TransformersEngineConfig
from vlcore.engines.transformers.engine import TransformersEngine

BATCH_SIZES = (1, 8, 32, 128)
PREFILLS = (1, 8)
TITLE = "## The embedded engine on a GPU\n"
HEADERS = ["", "tokens/s", "transformers alone", "ratio"]


def report(shape: dict[str, Any], rounds: int, num_new: int, sizes: tuple[int, ...]) -> str:
    """Measure decoding and prefill, and write the table."""
    with tempfile.TemporaryDirectory() as name:
        progress("writing the model")
        model = write_model(Path(name), shape, device())
        engine = TransformersEngine(
            model,
            model.tokenizer(),
            device=device(),
            dtype=torch.float16 if device().type == "cuda" else torch.float32,
            config=TransformersEngineConfig(
                max_num_seqs=max(sizes), session_len=1024, prefix_caching=False
            ),
        )
    rows: list[tuple[Any, ...]] = []

    def compare(title: str, *, num: int, num_new: int, with_image: bool, counted: int) -> None:
        asked = requests(shape, num=num, num_new=num_new, with_image=with_image)
        prompts = [request.prompt.token_ids for request in asked]
        contenders = {
            "engine": partial(seconds_for, engine, asked),
            "bare": partial(Bare(engine._model, num_new).decode, prompts),
        }
        for warm in contenders.values():
            warm()
        seconds = interleave(rounds, contenders)
        rates = {who: [counted / each for each in seconds[who]] for who in seconds}
        rows.append(
            (
                title,
                spread(rates["engine"], 0),
                spread(rates["bare"], 0),
                spread(ratios(rates["engine"], rates["bare"])),
            )
        )

    try:
        for num in sizes:
            title = f"new tokens, {num} requests of text"
            compare(title, num=num, num_new=num_new, with_image=False, counted=num * num_new)
        for num in sizes:
            title = f"new tokens, {num} requests with an image"
            compare(title, num=num, num_new=num_new, with_image=True, counted=num * num_new)
        for num in PREFILLS:
            title = f"prompt tokens, {num} requests with an image"
            counted = num * (NUM_TEXT + NUM_ROWS)
            compare(title, num=num, num_new=1, with_image=True, counted=counted)
    finally:
        asyncio.run(engine.close())
    return markdown_table(HEADERS, rows)


def main() -> None:
    """Measure and print."""
    command = parser(__doc__, rounds=3)
    command.add_argument("--layers", type=int, default=8)
    options = command.parse_args()
    print(TITLE)
    if not (options.dry_run or torch.cuda.is_available()):
        print("Not measured here: torch sees no CUDA device. Run it where there is one.\n")
        print(markdown_table(HEADERS, [("new tokens", *["not measured"] * 3)]))
        return
    tiny = options.quick or options.dry_run
    shape = SMALL if tiny else LLAMA_7B | {"num_hidden_layers": options.layers}
    sizes = BATCH_SIZES[:2] if tiny else BATCH_SIZES
    rounds, num_new = (1, 4) if tiny else (options.rounds, 64)
    print(
        f"{DRY_RUN if options.dry_run else 'Measured'} on {device_name()}: a random Llama of "
        f"{shape['num_hidden_layers']} layers of width {shape['hidden_size']} in float16. Prompts "
        f"have {NUM_TEXT} tokens of text, with the {NUM_ROWS} embeddings of an image or without; "
        f"all requests arrive at once and get {num_new} new tokens each. Next to the engine, the "
        "same prompts as one batch in a plain loop over transformers' forward. The time of the "
        "prompts counts in all rows, and the last rows ask for one new token. Median (min..max) "
        f"of {rounds} round(s).\n"
    )
    print(report(shape, rounds, num_new, sizes))


if __name__ == "__main__":
    main()
