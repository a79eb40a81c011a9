"""Weights in 8 and 4 bits next to those as loaded: memory, time, and the effect on the logits."""

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
from vlcore.engines.transformers.quantization import WEIGHTS, quantize_weights
from vlcore.engines.transformers.weight_packing import pack_weights
from vlcore.media.image import load_image
from vlcore.plugins.stages import ModelStages
from vlcore.prompts.messages import ImageSlot, Message, Text
from vlcore.prompts.tokenization import ImageLayout, PromptTokenizer
from vlcore.vision.model import encode_batch

DEMO = Path(__file__).parents[1] / "demo"
TINY = SMOLLM2_135M | {"num_hidden_layers": 2, "vocab_size": 1024}
DTYPES = ("float32", "bfloat16")
PROMPT_LENGTH = 64
LONG_PROMPT_LENGTH = 576
LONGEST_ANSWER = 16


def mebibytes(model: nn.Module) -> float:
    """Return the size of a model's weights in MiB, shared ones counted once."""
    products = {
        id(layer._shared._product): layer._shared._product
        for layer in model.modules()
        if isinstance(layer, CpuLinear)
    }
    tensors: list[Tensor] = [*model.parameters()]
    for product in products.values():
        tensors += [value for value in vars(product).values() if isinstance(value, Tensor)]
    return sum(tensor.nbytes for tensor in tensors) / 2**20


def quantized(model: Any, weights: str) -> Any:
    """Return a copy of a model with weights in another format."""
    converted = copy.deepcopy(model)
    quantize_weights(converted, weights)
    return converted


def packed(model: Any) -> Any:
    """Return a copy of a model with packed weights, which is the engine's default."""
    converted = copy.deepcopy(model)
    pack_weights(converted)
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
        self.long_prompt = torch.randint(vocab_size, (1, LONG_PROMPT_LENGTH), generator=draw)
        self.next = torch.randint(vocab_size, (num_steps, batch_size, 1), generator=draw)

    def __call__(self) -> float:
        """Time one step, in seconds."""
        cache = DynamicCache(config=self.model.config)
        self._forward(self.prompt, cache)
        started = time.perf_counter()
        for token_ids in self.next:
            self._forward(token_ids, cache)
        return (time.perf_counter() - started) / self.num_steps

    def first_token(self) -> float:
        """Time a long prompt, in seconds."""
        started = time.perf_counter()
        self._forward(self.long_prompt, DynamicCache(config=self.model.config))
        return time.perf_counter() - started

    @torch.inference_mode()
    def _forward(self, token_ids: Tensor, cache: DynamicCache) -> None:
        self.model(input_ids=token_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)


def compare(logits: Tensor, reference: Tensor) -> list[str]:
    """Return the differences as the cells of one table row.

    Shapes:
        logits, reference: [positions, vocab].
    """
    reference = reference.float()
    spread_of_logits = reference.std()
    logits, reference = logits.float().log_softmax(-1), reference.log_softmax(-1)
    difference = (logits - reference).abs()
    divergence = nn.functional.kl_div(logits, reference, log_target=True, reduction="none").sum(-1)
    agreement = (logits.argmax(-1) == reference.argmax(-1)).float().mean()
    return [
        str(len(logits)),
        f"{spread_of_logits:.3f}",
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
    def compare(self, weights: str) -> tuple[list[str], str]:
        """Compare along the answers of the weights as loaded, and the two models' own answers."""
        converted = quantized(self.model, weights)
        logits, reference, num_equal = [], [], 0
        for prompt in self.prompts:
            answer = self._answer(self.model, prompt)
            num_equal += answer == self._answer(converted, prompt)
            whole = torch.cat([prompt, self._embed(answer[:-1])])[None]
            logits.append(self._logits(converted, whole, len(answer)))
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
    costs: list[list[str]] = []
    effects: list[list[str]] = []
    for dtype in DTYPES:
        progress(f"{dtype}: a random Llama")
        model = random_model(config, dtype)
        models = {"as loaded": model, "packed": packed(model)}
        models |= {weights: quantized(model, weights) for weights in WEIGHTS}
        cells = {
            name: [f"{dtype}, {name}", f"{mebibytes(one):.0f}"] for name, one in models.items()
        }
        for batch_size in (1, 8):
            decoders = {name: Decoder(one, batch_size, num_steps) for name, one in models.items()}
            measured = interleave(rounds, decoders)
            for name in models:
                cells[name].append(spread(ratios(measured["as loaded"], measured[name])))
        prompts = {name: decoder.first_token for name, decoder in decoders.items()}
        measured = interleave(rounds, prompts)
        for name in models:
            cells[name].append(spread(ratios(measured[name], measured["as loaded"])))
        costs += cells.values()
        progress(f"{dtype}: the demo model's questions")
        questions = DemoQuestions(dtype, 2 if options.quick else None)
        for weights in WEIGHTS:
            random_row = on_random_tokens(model, models[weights], shape)
            effects.append([f"random model and tokens, {dtype}, {weights}", *random_row, "–"])
            demo_row, equal = questions.compare(weights)
            effects.append([f"demo model and questions, {dtype}, {weights}", *demo_row, equal])
    shape_name = "a toy's" if options.quick else "SmolLM2-135M's"
    print("## Weights in 8 and 4 bits\n")
    print(
        '`weights="int8"` and `"int4"` next to the weights as loaded and to packed ones, the '
        f"default, on the CPU with {torch.get_num_threads()} thread(s), in transformers' own loop. "
        f"Costs are those of a random Llama of {shape_name} shape: its weights in MiB, where the "
        "embedding stays as loaded and a copy of it is packed or converted as the output layer; "
        f"decoding steps after {PROMPT_LENGTH} tokens; and the time of a prompt of "
        f"{LONG_PROMPT_LENGTH} tokens. Ratios to the weights as loaded are taken in the same of "
        f"{rounds} interleaved rounds, as median (lowest..highest). Log-probabilities of all "
        "tokens are compared at every position of random tokens, and along the demo model's "
        "answers to the questions about its images.\n"
    )
    print(
        markdown_table(
            [
                "weights",
                "MiB",
                "steps/s, batch of 1, times as loaded",
                "batch of 8",
                "time of a prompt, times as loaded",
            ],
            costs,
        )
    )
    print()
    print(
        markdown_table(
            [
                "log-probabilities of",
                "positions",
                "standard deviation of logits",
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
