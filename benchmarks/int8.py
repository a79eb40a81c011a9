"""8-bit weights next to the stored ones: memory, time, and what the rounding does to the logits."""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _smollm2 import SMOLLM2_135M
from measure import interleave, markdown_table, progress, ratios, spread
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from vlcore._utils.device import as_dtype
from vlcore.engines.transformers.cpu_linear import CpuLinear
from vlcore.engines.transformers.quantization import quantize_weights
from vlcore.media.image import load_image
from vlcore.plugins.stages import ModelStages
from vlcore.prompts.messages import ImageSlot, Message, Text
from vlcore.prompts.tokenization import ImageLayout, PromptTokenizer
from vlcore.vision.model import encode_batch

DEMO = Path(__file__).parents[1] / "demo"
TINY = SMOLLM2_135M | {"num_hidden_layers": 2, "vocab_size": 1024}
DTYPES = ("float32", "bfloat16")
PROMPT_LENGTH = 64
LONGEST_ANSWER = 16


def num_bytes(tensor: Any) -> int:
    """Return the size of a tensor in bytes, also of one with inner tensors."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(num_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    size: int = tensor.nbytes
    return size


def mebibytes(model: nn.Module) -> float:
    """Return the size of a model's weights in MiB, shared ones counted once."""
    # Each row has a scale and a zero point in addition to its 8-bit integers.
    converted = sum(
        (layer.in_features + 8) * layer.out_features
        for layer in model.modules()
        if isinstance(layer, CpuLinear)
    )
    return (converted + sum(map(num_bytes, model.parameters()))) / 2**20


def quantized(model: Any) -> Any:
    """Return a copy of a model with 8-bit weights."""
    converted = copy.deepcopy(model)
    quantize_weights(converted, "int8")
    return converted


def random_model(config: dict[str, Any], dtype: str) -> Any:
    """Create a Llama with random weights."""
    torch.manual_seed(0)
    model: nn.Module = LlamaForCausalLM(LlamaConfig(**config))
    return model.to(as_dtype(dtype)).train(False)


class Decoder:
    """Decoding steps of a batch of sequences, each after a prompt."""

    def __init__(self, model: Any, batch_size: int, num_steps: int) -> None:
        self.model = model
        self.num_steps = num_steps
        draw = torch.Generator().manual_seed(1)
        vocab_size = model.config.vocab_size
        self.prompt = torch.randint(vocab_size, (batch_size, PROMPT_LENGTH), generator=draw)
        self.next = torch.randint(vocab_size, (num_steps, batch_size, 1), generator=draw)

    def __call__(self) -> float:
        """Time one step, in seconds."""
        cache = DynamicCache(config=self.model.config)
        self._forward(self.prompt, cache)
        started = time.perf_counter()
        for token_ids in self.next:
            self._forward(token_ids, cache)
        return (time.perf_counter() - started) / self.num_steps

    @torch.inference_mode()
    def _forward(self, token_ids: Tensor, cache: DynamicCache) -> None:
        self.model(input_ids=token_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)


def compare(logits: Tensor, reference: Tensor) -> list[str]:
    """Return the differences as the cells of one table row.

    Shapes:
        logits, reference: [positions, vocab].
    """
    logits, reference = logits.float(), reference.float()
    difference = (logits - reference).abs()
    divergence = nn.functional.kl_div(
        logits.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    agreement = (logits.argmax(-1) == reference.argmax(-1)).float().mean()
    return [
        str(len(logits)),
        f"{reference.std():.3f}",
        f"{difference.max():.4f}",
        f"{difference.mean():.4f}",
        f"{divergence.mean():.2g}",
        f"{100 * agreement:.1f} %",
    ]


@torch.inference_mode()
def on_random_tokens(model: Any, converted: Any, shape: tuple[int, int]) -> list[str]:
    """Compare logits at every position of random tokens."""
    draw = torch.Generator().manual_seed(2)
    token_ids = torch.randint(model.config.vocab_size, shape, generator=draw)
    return compare(
        converted(input_ids=token_ids).logits.flatten(0, 1),
        model(input_ids=token_ids).logits.flatten(0, 1),
    )


class DemoQuestions:
    """The demo model's questions about its images, as embeddings."""

    def __init__(self, dtype: str, limit: int | None) -> None:
        stages = ModelStages(DEMO / "tiny-llava")
        language_model = stages.language_model()
        tokenizer = language_model.tokenizer()
        template = stages.chat_template()
        prompt_tokenizer = PromptTokenizer(tokenizer)
        vision_model = stages.vision_model("cpu", dtype)
        self.model: Any = language_model.to_transformers("cpu", dtype)
        self.converted = quantized(self.model)
        self._eos_id = tokenizer.eos_token_id
        self._embedding = self.model.get_input_embeddings()
        questions = json.loads((DEMO / "images" / "questions.json").read_text("utf-8"))
        self.prompts: list[Tensor] = []
        for filename, asked in list(questions.items())[:limit]:
            pixels = load_image(DEMO / "images" / filename)
            (image,) = encode_batch(vision_model, [vision_model.preprocess(pixels)])
            layout = ImageLayout(len(image.rows), image.layout)
            for question in asked:
                message = Message("user", (ImageSlot(0), Text(question)))
                parts = template.messages2prompt([message])
                prompt = prompt_tokenizer.build(parts, [layout], template)
                embeddings = self._embed(prompt.token_ids)
                for span in prompt.spans:
                    last_row = span.first_row + span.stop - span.start
                    embeddings[span.start : span.stop] = image.rows[span.first_row : last_row]
                self.prompts.append(embeddings)

    @torch.inference_mode()
    def compare(self) -> tuple[list[str], str]:
        """Compare logits along the stored weights' answers, and the two models' own answers."""
        logits, reference, num_equal = [], [], 0
        for prompt in self.prompts:
            answer = self._answer(self.model, prompt)
            num_equal += answer == self._answer(self.converted, prompt)
            whole = torch.cat([prompt, self._embed(answer[:-1])])[None]
            logits.append(self._logits(self.converted, whole, len(answer)))
            reference.append(self._logits(self.model, whole, len(answer)))
        row = compare(torch.cat(logits), torch.cat(reference))
        return row, f"{num_equal} of {len(self.prompts)}"

    def _answer(self, model: Any, prompt: Tensor) -> list[int]:
        answer: list[int] = []
        while len(answer) < LONGEST_ANSWER and self._eos_id not in answer:
            embeddings = torch.cat([prompt, self._embed(answer)])[None]
            answer.append(int(self._logits(model, embeddings, 1).argmax()))
        return answer

    def _logits(self, model: Any, embeddings: Tensor, num_last: int) -> Tensor:
        logits: Tensor = model(inputs_embeds=embeddings, logits_to_keep=num_last).logits[0]
        return logits

    def _embed(self, token_ids: Sequence[int]) -> Tensor:
        embeddings: Tensor = self._embedding(torch.tensor(token_ids, dtype=torch.long))
        return embeddings


def main() -> None:
    """Print the comparison as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny model, two rounds")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    config = TINY if options.quick else SMOLLM2_135M
    rounds, num_steps = (2, 1) if options.quick else (options.rounds, 4)
    shape = (2, 16) if options.quick else (4, 128)
    costs, effects = [], []
    for dtype in DTYPES:
        progress(f"{dtype}: a random Llama")
        model = random_model(config, dtype)
        converted = quantized(model)
        cells = [dtype, f"{mebibytes(model):.0f}", f"{mebibytes(converted):.0f}"]
        for batch_size in (1, 8):
            measured = interleave(
                rounds,
                {
                    "stored": Decoder(model, batch_size, num_steps),
                    "int8": Decoder(converted, batch_size, num_steps),
                },
            )
            cells.append(spread(ratios(measured["int8"], measured["stored"])))
        costs.append(cells)
        random_row = on_random_tokens(model, converted, shape)
        effects.append([f"random model and tokens, {dtype}", *random_row, "–"])
        progress(f"{dtype}: the demo model's questions")
        demo_row, equal = DemoQuestions(dtype, 2 if options.quick else None).compare()
        effects.append([f"demo model and questions, {dtype}", *demo_row, equal])
    shape_name = "a toy's" if options.quick else "SmolLM2-135M's"
    print("## 8-bit weights\n")
    print(
        '`quantize_weights(model, "int8")` next to the weights as stored, on the CPU with '
        f"{torch.get_num_threads()} thread(s). The embedding stays as stored, and a copy of it is "
        f"converted as the output layer. Costs are those of a random Llama of {shape_name} "
        f"shape: its weights in MiB, and the time of a decoding step after {PROMPT_LENGTH} tokens "
        f"as a ratio to the stored weights' in the same of {rounds} interleaved rounds, as median "
        "(lowest..highest); above 1 is slower. Logits are compared at every position of random "
        "tokens, and along the demo model's answers to the questions about its images.\n"
    )
    print(
        markdown_table(
            ["dtype", "stored, MiB", "int8, MiB", "step time, batch of 1", "batch of 8"], costs
        )
    )
    print()
    print(
        markdown_table(
            [
                "logits of",
                "positions",
                "standard deviation",
                "largest difference",
                "mean difference",
                "mean KL divergence, nats",
                "same most likely token",
                "same answer",
            ],
            effects,
        )
    )


if __name__ == "__main__":
    main()
