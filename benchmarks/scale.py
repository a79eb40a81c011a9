"""Simulates how many encoders, language models and CPUs a load needs, from measured costs.

Nothing is measured here. ``Costs`` states where each figure comes from, and ``Load`` what is
assumed of the users. The simulation is of events: images are decoded by CPU cores, encoded in
batches by encoders, and prompts are prefilled and continued in batches by language models, each in
the order of arrival.
"""

from __future__ import annotations

import argparse
import heapq
import random
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count

from measure import markdown_table, progress

TITLE = "## A million images a day and a thousand chats at once, simulated"
DAY_S = 86_400
GIB = 2**30


@dataclass(frozen=True)
class Costs:
    """Costs of LLaVA 1.5 with 7 billion parameters in float16, on an H200 and a CPU core.

    They are medians of RESULTS.md, with the title of the section.
    """

    decode_s: float = 1 / 33.5
    """A JPEG of 1920 x 1080, from its bytes to pixels, on a core ("Preprocessing")."""
    encode_s: tuple[tuple[int, float], ...] = (
        (1, 0.00188),
        (2, 0.00266),
        (4, 0.00427),
        (8, 0.00765),
    )
    """A batch of images, replayed ("CUDA graphs of the vision encoder")."""
    encoder_share: float = 0.95
    """The image encoder, of the replayed vision encoder alone ("The image encoder on a GPU")."""
    step_s: tuple[tuple[int, float], ...] = ((1, 1 / 214), (8, 8 / 1607))
    """A decoding step of a batch without images ("TurboMind, a model of 32 layers")."""
    image_rates: tuple[tuple[int, float], ...] = ((8, 1228), (32, 2701), (128, 3883))
    """New tokens a second with an image in each prompt, answers of 128 tokens (the same)."""
    rows: int = 576
    row_bytes: int = 4096 * 2
    kv_token_bytes: int = 524_288
    """Keys and values of a token (docs/families.md)."""
    gpu_bytes: int = 140 * GIB
    weight_bytes: int = 13_500_000_000
    image_bytes: int = 575 * 1024
    transfer_s: float = 0.01
    """Embeddings from the encoder to the language model ("A cluster on one machine": the limit)."""
    token_cpu_s: float = 0.0004
    """CPU time that a token takes in Ray and the ingress, beyond that of a single process ("A
    cluster on one machine")."""

    def prefill_s(self) -> float:
        """Time to prefill a prompt of 624 tokens with an image.

        Eight requests with an image take as much longer than eight without as their prefill does.
        """
        num_tokens = 128
        _, step_s = self.step_s[1]
        number, rate = self.image_rates[0]
        return (number * num_tokens / rate - num_tokens * step_s) / number

    def step_line(self) -> tuple[float, float]:
        """Return the time of a step of one sequence, and of each further sequence in it.

        A least squares fit to the steps without images, and to those with images less the prefill.
        """
        prefill_s = self.prefill_s()
        points = list(self.step_s)
        for number, rate in self.image_rates[1:]:
            points.append((number, (number * 128 / rate - number * prefill_s) / 128))
        slope, intercept = statistics.linear_regression(*zip(*points, strict=True))
        return intercept + slope, slope

    def batch_s(self, num_images: int) -> float:
        """Time to encode a batch, interpolated between the measured ones."""
        lower = max(point for point in self.encode_s if point[0] <= num_images)
        upper = min((p for p in self.encode_s if p[0] >= num_images), default=lower)
        if upper[0] == lower[0]:
            return lower[1] / self.encoder_share
        part = (num_images - lower[0]) / (upper[0] - lower[0])
        return (lower[1] + part * (upper[1] - lower[1])) / self.encoder_share

    def num_sequences(self, tokens: int) -> int:
        """Return how many sequences of a length fit into a language model's memory."""
        free = 0.9 * self.gpu_bytes - self.weight_bytes
        return int(free / (tokens * self.kv_token_bytes))


@dataclass(frozen=True)
class Load:
    """What the users do."""

    num_chats: int = 1000
    """Chats at once: as soon as one ends, another one begins."""
    num_turns: int = 3
    """Questions in a chat. The image comes with the first one."""
    question_tokens: int = 48
    answer_tokens: int = 150
    """Mean length of an answer; their lengths are distributed exponentially."""
    think_s: float = 0.0
    """Mean time from an answer to the next question, distributed exponentially."""
    shares_prefixes: bool = False
    """Whether later turns reuse what was computed for earlier ones, or prefill it all again."""
    fixed_answers: bool = False
    """Whether all answers have the mean length."""


@dataclass(frozen=True)
class Plan:
    """What serves the load."""

    num_cores: int
    """Cores that decode images."""
    num_encoders: int
    num_language_models: int


@dataclass
class Turn:
    """A question that is being answered."""

    chat: int
    number: int
    asked: float
    has_image: bool
    prompt_tokens: int
    answer_tokens: int
    first_token: float = 0.0


class Simulation:
    """Runs a load on a plan.

    Args:
        costs: the costs of each stage.
        load: what the users do.
        plan: what serves them.
        seed: of the random numbers.
    """

    def __init__(self, costs: Costs, load: Load, plan: Plan, seed: int = 1) -> None:
        self._costs, self._load, self._plan = costs, load, plan
        self._random = random.Random(seed)  # noqa: S311  (seeded)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self.now = 0.0
        self._first_step_s, self._next_step_s = costs.step_line()
        self._prefill_token_s = costs.prefill_s() / (costs.rows + 48)
        self._decoding: deque[Turn] = deque()
        self._encoding: deque[Turn] = deque()
        self._free_cores, self._free_encoders = plan.num_cores, plan.num_encoders
        longest = costs.rows + load.num_turns * (load.question_tokens + load.answer_tokens)
        self._models = [
            LanguageModelReplica(costs.num_sequences(longest))
            for _ in range(plan.num_language_models)
        ]
        self.busy_s = {"cores": 0.0, "encoders": 0.0, "language models": 0.0}
        self.first_token_s: list[float] = []
        self.token_s: list[float] = []
        self.num_tokens = 0

    def run(self, warm_up_s: float, measured_s: float) -> None:
        """Simulate, and forget what happened while the system filled."""
        for chat in range(self._load.num_chats):
            self._after(self._random.uniform(0, warm_up_s / 2), partial(self._ask, chat, 0))
        self._run_until(warm_up_s)
        self.busy_s = dict.fromkeys(self.busy_s, 0.0)
        self.first_token_s, self.token_s, self.num_tokens = [], [], 0
        self._run_until(warm_up_s + measured_s)

    def _run_until(self, end: float) -> None:
        while self._events and self._events[0][0] <= end:
            self.now, _, action = heapq.heappop(self._events)
            action()
        self.now = end

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), action))

    def _ask(self, chat: int, number: int) -> None:
        load = self._load
        answer = load.answer_tokens
        if not load.fixed_answers:
            answer = max(1, round(self._random.expovariate(1 / load.answer_tokens)))
        earlier = self._costs.rows + number * (load.question_tokens + load.answer_tokens)
        computed = 0 if load.shares_prefixes and number else earlier
        turn = Turn(chat, number, self.now, number == 0, computed + load.question_tokens, answer)
        if turn.has_image:
            self._decoding.append(turn)
            self._decode_images()
        else:
            self._after(0.0, partial(self._prefill, turn))

    def _decode_images(self) -> None:
        while self._free_cores and self._decoding:
            turn = self._decoding.popleft()
            self._free_cores -= 1
            self.busy_s["cores"] += self._costs.decode_s
            self._after(self._costs.decode_s, partial(self._encode, turn))

    def _encode(self, turn: Turn) -> None:
        self._free_cores += 1
        self._encoding.append(turn)
        self._decode_images()
        self._start_batches()

    def _start_batches(self) -> None:
        while self._free_encoders and self._encoding:
            batch = [self._encoding.popleft() for _ in range(min(8, len(self._encoding)))]
            self._free_encoders -= 1
            seconds = self._costs.batch_s(len(batch))
            self.busy_s["encoders"] += seconds
            self._after(seconds, partial(self._send, batch))

    def _send(self, batch: Sequence[Turn]) -> None:
        self._free_encoders += 1
        for turn in batch:
            self._after(self._costs.transfer_s, partial(self._prefill, turn))
        self._start_batches()

    def _prefill(self, turn: Turn) -> None:
        model = min(self._models, key=lambda one: one.num_running + len(one.waiting))
        model.waiting.append(turn)
        if not model.is_stepping:
            model.is_stepping = True
            self._step(model)

    def _step(self, model: LanguageModelReplica) -> None:
        """Prefill one waiting prompt if there is room, and continue all answers by a token."""
        seconds = 0.0
        entered = None
        if model.waiting and model.num_running < model.max_sequences:
            entered = model.waiting.popleft()
            seconds += entered.prompt_tokens * self._prefill_token_s
        num_answers = model.num_running + (entered is not None)
        if not num_answers:
            model.is_stepping = False
            return
        seconds += self._first_step_s + (num_answers - 1) * self._next_step_s
        self.busy_s["language models"] += seconds
        self._after(seconds, partial(self._finish_step, model, entered))

    def _finish_step(self, model: LanguageModelReplica, entered: Turn | None) -> None:
        model.num_steps += 1
        if entered is not None:
            entered.first_token = self.now
            self.first_token_s.append(self.now - entered.asked)
            last_step = model.num_steps + entered.answer_tokens - 1
            heapq.heappush(model.running, (last_step, next(self._order), entered))
        self.num_tokens += model.num_running
        while model.running and model.running[0][0] <= model.num_steps:
            _, _, turn = heapq.heappop(model.running)
            if turn.answer_tokens > 1:
                self.token_s.append((self.now - turn.first_token) / (turn.answer_tokens - 1))
            number = (turn.number + 1) % self._load.num_turns
            think_s = self._random.expovariate(1 / self._load.think_s) if self._load.think_s else 0
            self._after(think_s, partial(self._ask, turn.chat, number))
        self._step(model)


class LanguageModelReplica:
    """The state of one language model."""

    def __init__(self, max_sequences: int) -> None:
        self.max_sequences = max_sequences
        self.waiting: deque[Turn] = deque()
        self.running: list[tuple[int, int, Turn]] = []
        self.num_steps = 0
        self.is_stepping = False

    @property
    def num_running(self) -> int:
        """Number of answers in the batch."""
        return len(self.running)


def percentile(values: Sequence[float], percent: int) -> float:
    """Return a percentile."""
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


@dataclass(frozen=True)
class ImageKind:
    """Images of a day, and what the model makes of one."""

    name: str
    decode_s: float
    file_bytes: int
    tiles: int
    rows: int


IMAGE_KINDS = (
    ImageKind("1920 x 1080, LLaVA 1.5", 1 / 33.5, 575 * 1024, 1, 576),
    ImageKind("4000 x 3000, LLaVA 1.5", 1 / 4.1, 3078 * 1024, 1, 576),
    ImageKind("4000 x 3000, LLaVA 1.5, shrunk on load", 0.0518, 3078 * 1024, 1, 576),
    ImageKind("1920 x 1080, LLaVA 1.6, 5 tiles", 1 / 33.5, 575 * 1024, 5, 2880),
)
TILES_S = 967
"""Tiles a second of the image encoder ("The image encoder on a GPU", batches of 8)."""
PEAK = 3.0
"""The busiest second of the day, next to the mean."""
UTILIZATION = 0.6
"""The share of a resource that a plan uses at the peak."""


def images_rows(costs: Costs, num_images: int) -> list[list[str]]:
    """Write what the images of a day take."""
    rows = []
    for kind in IMAGE_KINDS:
        per_s = PEAK * num_images / DAY_S
        stored = kind.rows * costs.row_bytes * num_images
        rows.append(
            [
                kind.name,
                f"{per_s:.0f}",
                f"{num_images * kind.decode_s / 3600:.0f}",
                f"{per_s * kind.decode_s / UTILIZATION:.1f}",
                f"{num_images * kind.tiles / TILES_S / 3600:.2f}",
                f"{per_s * kind.tiles / TILES_S / UTILIZATION:.2f}",
                f"{per_s * kind.file_bytes / 1e6:.0f}",
                f"{stored / 1e12:.1f}",
                f"{per_s * kind.rows * costs.row_bytes / 1e6:.0f}",
            ]
        )
    return rows


def chats_row(costs: Costs, load: Load, plan: Plan, seconds: float) -> list[str]:
    """Simulate chats, and return the results."""
    progress(f"{load} {plan}")
    simulation = Simulation(costs, load, plan)
    simulation.run(seconds / 2, seconds)
    tokens_s = simulation.num_tokens / seconds
    return [
        f"{load.think_s:.0f}",
        "yes" if load.shares_prefixes else "no",
        str(plan.num_language_models),
        f"{percentile(simulation.first_token_s, 50):.2f}",
        f"{percentile(simulation.first_token_s, 95):.2f}",
        f"{1000 * percentile(simulation.token_s, 50):.0f}",
        f"{1000 * percentile(simulation.token_s, 95):.0f}",
        f"{tokens_s:.0f}",
        f"{simulation.busy_s['encoders'] / plan.num_encoders / seconds:.0%}",
        f"{simulation.busy_s['cores'] / seconds:.1f}",
        f"{tokens_s * costs.token_cpu_s:.0f}",
    ]


def check_rows(costs: Costs, seconds: float) -> list[list[str]]:
    """Simulate what was measured: one language model under requests with an image each."""
    rows = []
    for number, measured in costs.image_rates:
        load = Load(number, num_turns=1, answer_tokens=128, fixed_answers=True)
        simulation = Simulation(costs, load, Plan(16, 1, 1))
        simulation.run(seconds / 2, seconds)
        simulated = simulation.num_tokens / seconds
        rows.append([str(number), f"{measured:.0f}", f"{simulated:.0f}"])
    return rows


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few chats, for seconds")
    parser.add_argument("--images", type=int, default=1_000_000, help="images a day")
    parser.add_argument("--chats", type=int, default=1000, help="chats at once")
    options = parser.parse_args()
    costs = Costs()
    num_chats, seconds = (20, 10.0) if options.quick else (options.chats, 120.0)
    loads = [
        Load(num_chats=num_chats, think_s=think_s, shares_prefixes=shares)
        for think_s in (0.0, 10.0, 30.0)
        for shares in (False, True)
    ]
    numbers = (2,) if options.quick else (2, 4, 6, 8, 12)
    first_step_s, next_step_s = costs.step_line()
    print(f"{TITLE}\n")
    print(
        f"From the costs of LLaVA 1.5 with 7 billion parameters in float16 on H200 GPUs that the "
        f"sections of this file state: a prompt with an image takes {costs.prefill_s() * 1000:.0f} "
        f"ms to prefill, a step {first_step_s * 1000:.2f} ms for one answer and "
        f"{next_step_s * 1000:.3f} ms for each further one, and {costs.num_sequences(1218)} "
        f"sequences of three turns fit next to the weights. Assumed: a peak of {PEAK:.0f} times "
        f"the mean, {UTILIZATION:.0%} of each resource used at the peak; chats of three turns with "
        f"an image in the first, questions of 48 tokens, answers of 150 tokens on average "
        f"(exponentially distributed), one encoder, 16 cores that decode images of 1920 x 1080, "
        f"{costs.transfer_s * 1000:.0f} ms from encoder to language model and "
        f"{costs.token_cpu_s * 1000:.1f} ms of CPU time for each token in Ray and the ingress. "
        f"Assumptions are arguments of `Load` and `Costs` in benchmarks/scale.py.\n"
    )
    print(f"{options.images} images a day:\n")
    header = [
        "images, model",
        "images/s at the peak",
        "core hours to decode",
        "cores at the peak",
        "GPU hours to encode",
        "GPUs at the peak",
        "files in, MB/s",
        "embeddings, TB/day",
        "embeddings, MB/s",
    ]
    print(markdown_table(header, images_rows(costs, options.images)))
    print("\nTokens a second of one language model, as measured and as the simulation has them:\n")
    header = ["requests with an image at once, 128 tokens each", "measured", "simulated"]
    print(markdown_table(header, check_rows(costs, seconds)))
    print(f"\n{num_chats} chats at once:\n")
    header = [
        "seconds between turns",
        "prefixes reused",
        "language models",
        "first token, s, median",
        "95 %",
        "per token, ms, median",
        "95 %",
        "tokens/s",
        "encoder busy",
        "cores that decode",
        "cores of Ray and ingress",
    ]
    rows = [
        chats_row(costs, load, Plan(16, 1, number), seconds) for load in loads for number in numbers
    ]
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
