"""Train the demo model from scratch: tokenizer, images, both networks and the checkpoint."""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from export import export
from network import Network, Sizes
from pool import (
    Drawn,
    PatchTargets,
    Pool,
    conversations,
    patch_targets,
    single_questions,
)
from questions import KINDS, SYSTEM, all_words, clearly_ordered
from torch import Tensor, nn
from words import BOS, Words, train_tokenizer

TOWER_SHARE = 0.25  # of the time; the rest trains everything together
FROZEN_SHARE = 0.35  # of the rest, in which the vision encoder only watches
LENGTH = 150  # tokens of conversations about one image
POOL = 30_000
HELD_OUT = 600


class Heads(nn.Module):
    """Auxiliary outputs, used in training only."""

    # Shape, colour, size, rank, number of objects, centre, others of its colour, of its shape.
    PARTS = (4, 5, 3, 4, 3, 2, 3, 3)

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.patch = nn.Linear(sizes.tower_width, sum(self.PARTS))
        self.point = nn.Linear(sizes.width, 2)

    def patch_loss(self, patches: Tensor, targets: PatchTargets) -> Tensor:
        """Return the loss of each patch's prediction of its object."""
        out = self.patch(F.layer_norm(patches, patches.shape[-1:]))
        shape, colour, size, rank, count, centre, alike, similar = out.split(self.PARTS, dim=-1)
        loss = torch.zeros(())
        for guess, truth, share in (
            (shape, targets.shape, 1.0),
            (colour, targets.colour, 1.0),
            (size, targets.size, 0.5),
            (rank, targets.rank, 0.5),
            (count, targets.count, 0.5),
            (alike, targets.same_colour, 0.5),
            (similar, targets.same_shape, 0.5),
        ):
            each = F.cross_entropy(guess.flatten(0, 1), truth.flatten(), reduction="none")
            loss = loss + share * (each * targets.weight.flatten()).sum()
        on_object = (targets.shape > 0) * targets.weight
        off = F.smooth_l1_loss(centre, targets.centre, reduction="none", beta=0.05).sum(-1)
        return (loss + 8.0 * (off * on_object).sum()) / len(patches) / 4

    def point_loss(self, middle: Tensor, named: Tensor, point: Tensor) -> Tensor:
        """Return the loss of the position that the language model predicts for a named object."""
        chosen = middle[named]
        guess = self.point(F.rms_norm(chosen, chosen.shape[-1:]))
        return F.smooth_l1_loss(guess, point[named], beta=0.05)


class Muon:
    """Momentum whose update is made orthogonal, for the weight matrices."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.groups: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for parameter in parameters:
            self.groups.setdefault(tuple(parameter.shape), []).append(parameter)
        self.momentum = {
            shape: torch.zeros(len(group), *shape) for shape, group in self.groups.items()
        }

    @torch.no_grad()
    def step(self, rate: float, decay: float = 0.02) -> None:
        """Apply the gradients."""
        for shape, group in self.groups.items():
            if group[0].grad is None:
                continue
            gradient = torch.stack([p.grad for p in group if p.grad is not None])
            momentum = self.momentum[shape].lerp_(gradient, 0.05)
            x = gradient.lerp(momentum, 0.95)
            tall = shape[0] > shape[1]
            x = x.mT if tall else x
            x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
            for _ in range(5):
                a = x @ x.mT
                x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
            x = x.mT if tall else x
            scale = max(1.0, shape[0] / shape[1]) ** 0.5
            for parameter, update in zip(group, x, strict=True):
                parameter.mul_(1 - rate * decay).add_(update, alpha=-rate * scale)


class Optimizer:
    """Muon for matrices, AdamW for the rest."""

    def __init__(self, modules: list[nn.Module]) -> None:
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for module in modules:
            for name, parameter in module.named_parameters():
                plain = parameter.ndim != 2 or "embed" in name or "lm_head" in name
                (others if plain else matrices).append(parameter)
        self.muon = Muon(matrices)
        self.adam = torch.optim.AdamW(others, lr=1.0, betas=(0.9, 0.98), weight_decay=0.0)

    def step(self, rate: float) -> None:
        """Apply and clear the gradients; a rate of 1 is full speed."""
        self.muon.step(0.02 * rate)
        for group in self.adam.param_groups:
            group["lr"] = 3e-3 * rate
        self.adam.step()
        self.adam.zero_grad()
        for parameters in self.muon.groups.values():
            for parameter in parameters:
                parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume."""
        return {"momentum": self.muon.momentum, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume."""
        self.muon.momentum = state["momentum"]
        self.adam.load_state_dict(state["adam"])


@dataclass(frozen=True)
class Plan:
    """Learning rates over the run, as shares of full speed."""

    seconds: float

    def phase(self, elapsed: float) -> tuple[str, float, float]:
        """The phase and the rates of vision encoder and language model."""
        done = min(elapsed / self.seconds, 1.0)
        if done < TOWER_SHARE:
            return "tower", min(1.0, elapsed / 20) * (1 - 0.7 * done / TOWER_SHARE), 0.0
        part = (done - TOWER_SHARE) / (1 - TOWER_SHARE)
        warm = min(1.0, (elapsed - TOWER_SHARE * self.seconds) / 20)
        language = warm * (1.0 - part)
        if part < FROZEN_SHARE:
            return "language", 0.0, language
        return "all", 0.2 * language, language


class Trainer:
    """The state of a run: network, averages, optimizers, time spent."""

    def __init__(self, work: Path, words: Words, seed: int, minutes: float) -> None:
        torch.manual_seed(seed)
        self.work, self.words, self.seed = work, words, seed
        self.sizes = Sizes(vocabulary=words.size)
        self.network = Network(self.sizes)
        self.heads = Heads(self.sizes)
        self.average = Network(self.sizes)
        self.average.load_state_dict(self.network.state_dict())
        tower: list[nn.Module] = [self.network.vision_model]
        language: list[nn.Module] = [self.network.model, self.network.lm_head]
        self.tower_optimizer = Optimizer([*tower, self.heads.patch])
        self.language_optimizer = Optimizer([*language, self.heads.point])
        self.plan = Plan(minutes * 60)
        self.elapsed, self.steps = 0.0, 0
        self.prefix = torch.tensor([BOS, *words.encode(SYSTEM + " USER: ")])

    def save(self) -> None:
        """Write the state, replacing the old one at once."""
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "heads": self.heads.state_dict(),
            "tower": self.tower_optimizer.state_dict(),
            "language": self.language_optimizer.state_dict(),
            "elapsed": self.elapsed,
            "steps": self.steps,
        }
        torch.save(state, self.work / "state.part")
        (self.work / "state.part").rename(self.work / "state.pt")

    def resume(self) -> None:
        """Continue from the state in the work directory, if there is one."""
        if not (self.work / "state.pt").exists():
            return
        state = torch.load(self.work / "state.pt", weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.heads.load_state_dict(state["heads"])
        self.tower_optimizer.load_state_dict(state["tower"])
        self.language_optimizer.load_state_dict(state["language"])
        self.elapsed, self.steps = state["elapsed"], state["steps"]

    def step(self, pool: Pool) -> dict[str, float]:
        """One step; gives the losses."""
        begin = time.perf_counter()
        rng = random.Random(f"{self.seed}-{self.steps}")
        phase, tower_rate, language_rate = self.plan.phase(self.elapsed)
        count = 48 if phase == "tower" else 24
        batch = [pool.get(rng.randrange(len(pool)), rng.randrange(8)) for _ in range(count)]
        losses = self._losses(phase, rng, batch)
        total = torch.stack(list(losses.values())).sum()
        total.backward()  # type: ignore[no-untyped-call]
        if tower_rate:
            self.tower_optimizer.step(tower_rate)
        if language_rate:
            self.language_optimizer.step(language_rate)
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()),
                list(self.network.parameters()),
                max(0.005, 1 / (1 + self.steps)),
            )
        self.steps += 1
        self.elapsed += time.perf_counter() - begin
        return {name: loss.item() for name, loss in losses.items()}

    def _losses(self, phase: str, rng: random.Random, batch: list[Drawn]) -> dict[str, Tensor]:
        pixels = torch.stack([torch.tensor(drawn.pixels.copy()) for drawn in batch])
        with torch.set_grad_enabled(phase != "language"):
            patches = self.network.vision_model(pixels)
        losses: dict[str, Tensor] = {}
        if phase != "language":
            losses["patch"] = self.heads.patch_loss(patches, patch_targets(batch))
        if phase != "tower":
            talk = conversations(rng, self.words, batch, LENGTH)
            # The vision encoder continues to learn from its own targets alone: the noisier
            # gradients of the words would undo what it has learned.
            rows = patches.detach()
            last, middle = self.network(rows, self.prefix, talk.tokens, talk.branch, talk.position)
            learn = talk.weight > 0
            each = F.cross_entropy(
                self.network.lm_head(last[learn]), talk.target[learn], reduction="none"
            )
            weight = talk.weight[learn]
            losses["words"] = 2 * (each * weight).sum() / weight.sum()
            losses["point"] = 8.0 * self.heads.point_loss(middle, talk.named, talk.point)
        return losses

    @torch.no_grad()
    def accuracy(self, pool: Pool) -> dict[str, float]:
        """Return the share of first questions on held-out images that are answered exactly."""
        right: Counter[str] = Counter()
        asked: Counter[str] = Counter()
        rng = random.Random(f"accuracy-{self.seed}")
        for start in range(0, len(pool), 50):
            batch = [pool.get(i) for i in range(start, min(start + 50, len(pool)))]
            talk, turns = single_questions(rng, self.words, batch, 200)
            pixels = torch.stack([torch.tensor(drawn.pixels) for drawn in batch])
            patches = self.average.vision_model(pixels)
            last, _ = self.average(patches, self.prefix, talk.tokens, talk.branch, talk.position)
            # The most likely next word at every position of the answer, given the right words
            # before it: all are right exactly if greedy decoding yields the answer.
            wrong = (self.average.lm_head(last).argmax(-1) != talk.target) & (talk.weight > 0)
            for at, (drawn, questions) in enumerate(zip(batch, turns, strict=True)):
                for number, turn in enumerate(questions):
                    if turn.kind == "describe" and not clearly_ordered(drawn.things):
                        continue
                    asked[turn.kind] += 1
                    right[turn.kind] += not bool(wrong[at][talk.branch[at] == number].any())
        return {kind: right[kind] / max(asked[kind], 1) for kind in KINDS}


def main() -> None:
    """Run the training, or continue it."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=84.0, help="time to train for")
    parser.add_argument("--out", type=Path, default=here / "tiny-llava", help="checkpoint to write")
    parser.add_argument(
        "--work-dir",
        type=Path,
        default=Path(tempfile.gettempdir()) / "vlcore-demo" / "run",
        help="keeps the drawn images and the state to resume from",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    work: Path = options.work_dir
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)

    model = train_tokenizer(all_words())
    trainer = Trainer(work, Words(model), options.seed, options.minutes)
    sizes = trainer.sizes
    pools = {}
    for name, count in (("train", POOL), ("held-out", HELD_OUT)):
        path = work / f"{name}.npz"
        if not path.exists():
            Pool.render(
                path, f"{name}-{options.seed}", count, sizes.image, sizes.patch, options.threads
            )
        pools[name] = Pool(path)
    trainer.resume()

    print(f"{sum(p.numel() for p in trainer.network.parameters()):,} parameters", flush=True)
    sums: Counter[str] = Counter()
    saved = shown = trainer.elapsed
    num_steps, best = 0, 0.85
    while trainer.elapsed < trainer.plan.seconds:
        sums.update(trainer.step(pools["train"]))
        num_steps += 1
        if trainer.elapsed - shown > 30:
            losses = "  ".join(f"{k} {v / num_steps:.4f}" for k, v in sums.items())
            phase = trainer.plan.phase(trainer.elapsed)[0]
            print(f"{trainer.elapsed:6.0f} s  step {trainer.steps}  {phase}  {losses}", flush=True)
            sums.clear()
            num_steps, shown = 0, trainer.elapsed
        if trainer.elapsed - saved > 200:
            saved = trainer.elapsed
            trainer.save()
            if trainer.plan.phase(trainer.elapsed)[0] != "tower":
                scores = trainer.accuracy(pools["held-out"])
                print(
                    "  ".join(f"{kind} {score:.3f}" for kind, score in scores.items()), flush=True
                )
                if min(scores.values()) > best:  # an early checkpoint beats none
                    best = min(scores.values()) + 0.02
                    export(trainer.average, model, options.out)
    trainer.save()
    print(trainer.accuracy(pools["held-out"]))
    export(trainer.average, model, options.out)


if __name__ == "__main__":
    main()
