"""A fake of TurboMind's C++ extension, below lmdeploy's own Python code, on the CPU.

lmdeploy loads the text view through its real loader into :class:`Module`, and its real
``async_stream_infer`` asks a :class:`Request`, which answers by the same model run in transformers.
What C++ refuses is refused here, and what it would crash on or silently get wrong is kept in
:attr:`Communicator.faults`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lmdeploy.turbomind import _tm
from torch import Tensor
from transformers import AutoModelForCausalLM, RepetitionPenaltyLogitsProcessor

RUNNING, INVALID, REPEATED, TOO_LONG, FINISHED, CANCELLED = 0, 1, 2, 6, 7, 8


@dataclass(frozen=True)
class Asked:
    """What arrived at C++ with one request."""

    session_id: int
    token_ids: list[int]
    embeddings: Tensor | None
    ranges: list[list[int]]
    options: dict[str, Any]
    stream_output: bool


@dataclass
class Communicator:
    """In place of ``_tm.TurboMind``: what lmdeploy's Python code calls, and what it asked for."""

    engine_config: Any
    model: Any = None
    loaded: Module = field(default_factory=lambda: Module())
    """The root of what lmdeploy loaded."""
    asked: list[Asked] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    was_cancelled: threading.Event = field(default_factory=threading.Event)
    num_requests: int = 0
    in_flight: set[int] = field(default_factory=set)
    """Session ids of the requests that run."""
    step: Callable[[int], object] = lambda _: None
    """Called before each token with the number of tokens so far; a test may wait in it."""
    status: int | None = None
    """What every request ends with before its first token, if set."""

    def create_request(self) -> Request:
        self.num_requests += 1
        return Request(self)

    def gemm(self, device: int) -> Any:
        return SimpleNamespace(get_weight_plan=lambda query: _WeightPlan())

    def context(self, device: int) -> Any:
        return nullcontext()

    def root(self, device: int) -> Module:
        return self.loaded

    def is_dummy_node(self) -> bool:
        return False

    def _do_nothing(self, device: int) -> None: ...

    def _first(self, device: int) -> int:
        return 0

    create_context = create_root = process_weight = create_engine = _do_nothing
    attn_tp_rank = mlp_tp_rank = model_tp_rank = ep_rank = _first


class Module:
    """In place of a C++ module: keeps the tensors and children that it is given."""

    def __init__(self, config: Any = None) -> None:
        self.config = config
        self.children: dict[str, Module] = {}
        self.tensors: dict[str, Tensor] = {}

    def add_child_raw(self, name: str, child: Module) -> None:
        self.children[name] = child

    def set_plan(self, plan: Any) -> None: ...

    def param(self, name: str) -> Any:
        def alloc(shape: list[int], dtype: Any) -> Any:
            held = torch.empty(shape, dtype=_TORCH_DTYPES[dtype])
            self.tensors[name] = held
            return SimpleNamespace(type=dtype, byte_size=held.nbytes, copy_from=held.copy_)

        return SimpleNamespace(alloc=alloc)


@dataclass(frozen=True)
class _WeightPlan:
    """In place of the choice of a kernel: one that takes any shape."""

    family: str = "any"
    shape_constraints: tuple[tuple[int, int], tuple[int, int]] = ((1, 1), (1, 1))
    bridge: tuple[int, int, Any, Any] = (
        1,
        1,
        _tm.DataType.TYPE_INVALID,
        _tm.DataType.TYPE_INVALID,
    )

    def gate_up(self, activation: Any, width: int) -> int:
        return 0


_TORCH_DTYPES = {
    _tm.DataType.TYPE_FP16: torch.float16,
    _tm.DataType.TYPE_BF16: torch.bfloat16,
    _tm.DataType.TYPE_FP32: torch.float32,
}


class _State:
    """In place of ``AtomicRequestState``."""

    def __init__(self) -> None:
        self.latest: Any = None

    def consume(self) -> Any:
        return self.latest


class Request:
    """In place of ``_tm.ModelRequest``: serves one request at a time, in a thread."""

    def __init__(self, communicator: Communicator) -> None:
        self._communicator = communicator
        self._is_cancelled = threading.Event()
        self._is_serving = False

    def cancel(self) -> None:
        self._is_cancelled.set()
        self._communicator.was_cancelled.set()

    def forward(
        self,
        input_tensors: Any,
        mm_inputs: Any,
        session: Any,
        gen_cfg: Any,
        stream_output: bool,
        enable_metrics: bool,
        cb: Callable[[], None],
    ) -> tuple[Any, _State, Any]:
        owner = self._communicator
        if self._is_serving:
            owner.faults.append("an instance was asked again while it served a request")
        self._is_serving = True
        tensors = {
            name: torch.utils.dlpack.from_dlpack(value).clone()
            for name, value in input_tensors.items()
        }
        asked = Asked(
            session.id,
            tensors["input_ids"].tolist(),
            tensors.get("input_embeddings"),
            tensors["input_embedding_ranges"].tolist() if "input_embeddings" in tensors else [],
            {name: getattr(gen_cfg, name) for name in dir(gen_cfg) if not name.startswith("_")},
            stream_output,
        )
        owner.asked.append(asked)
        assert mm_inputs is None
        session_len = owner.engine_config.session_len
        buffers = {"output_ids": torch.zeros(session_len + 1, dtype=torch.int32)}
        if asked.options["output_logits"]:
            length = min(asked.options["max_new_tokens"], session_len) + 1
            if asked.options["output_logits"] == 1:
                length = min(len(asked.token_ids) + length - 1, session_len) + 1
            buffers["logits"] = torch.zeros(length, owner.model.config.vocab_size)
        outputs = _tm.TensorMap()
        for name, buffer in buffers.items():
            outputs[name] = _tm.from_dlpack(buffer)
        state = _State()
        self._is_cancelled = threading.Event()
        arguments = (asked, buffers, state, cb)
        threading.Thread(target=self._serve, args=arguments, daemon=True).start()
        metrics = SimpleNamespace(cached_tokens=0, enqueue_time=0, scheduled_time=0)
        return outputs, state, metrics

    def _serve(
        self, asked: Asked, buffers: dict[str, Tensor], state: _State, cb: Callable[[], None]
    ) -> None:
        owner = self._communicator

        def signal(status: int, seq_len: int) -> None:
            if status != RUNNING:
                owner.in_flight.discard(asked.session_id)
                self._is_serving = False
            state.latest = SimpleNamespace(status=status, seq_len=seq_len)
            cb()

        refusal = self._refusal(asked) if owner.status is None else owner.status
        if refusal is not None:
            signal(refusal, 0)
            return
        owner.in_flight.add(asked.session_id)
        token_ids = list(asked.token_ids)
        buffers["output_ids"][: len(token_ids)] = torch.tensor(token_ids)
        limit = len(token_ids) + asked.options["max_new_tokens"]
        limit = min(limit, owner.engine_config.session_len)
        stop_ids = asked.options["stop_ids"][0] if asked.options["stop_ids"] else []
        wants = asked.options["output_logits"]
        draw = torch.Generator().manual_seed(asked.options["random_seed"] % 2**63)
        while True:
            owner.step(len(token_ids) - len(asked.token_ids))
            if self._is_cancelled.is_set():
                signal(CANCELLED, len(token_ids))
                return
            logits = self._logits(asked, token_ids)
            if wants:
                first = 0 if wants == 1 else len(asked.token_ids) - 1
                buffers["logits"][: len(token_ids) - first] = logits[first:]
            token_ids.append(self._choose(asked, token_ids, logits[-1], draw))
            buffers["output_ids"][len(token_ids) - 1] = token_ids[-1]
            is_whole = token_ids[-1] in stop_ids or len(token_ids) >= limit
            signal(FINISHED if is_whole else RUNNING, len(token_ids))
            if is_whole:
                return

    def _refusal(self, asked: Asked) -> int | None:
        owner = self._communicator
        self._note_bad_token_ids(asked)
        if asked.session_id in owner.in_flight:
            return REPEATED
        if len(asked.token_ids) > owner.engine_config.session_len:
            return TOO_LONG
        edges = [0, *(edge for positions in asked.ranges for edge in positions)]
        if any(after < before for before, after in pairwise(edges)):
            return INVALID
        if edges[-1] > len(asked.token_ids):
            return INVALID
        if asked.embeddings is not None:
            num_rows = sum(end - begin for begin, end in asked.ranges)
            width = owner.model.get_input_embeddings().weight.shape[1]
            if list(asked.embeddings.shape) != [num_rows, width]:
                owner.faults.append("embeddings of another shape were read as garbage")
        return None

    def _note_bad_token_ids(self, asked: Asked) -> None:
        owner = self._communicator
        vocab_size = owner.model.get_input_embeddings().weight.shape[0]
        if not 0 <= min(asked.token_ids) <= max(asked.token_ids) < vocab_size:
            owner.faults.append("a token id outside the vocabulary was looked up")
        for name in ("stop_ids", "bad_ids"):
            if asked.options[name] and len(asked.options[name][0]) > 32:
                owner.faults.append(f"{name} were cut off")
        if any(token_id >= vocab_size for token_id in asked.options["eos_ids"]):
            owner.faults.append("an end token was written outside the logits")

    def _logits(self, asked: Asked, token_ids: list[int]) -> Tensor:
        model = self._communicator.model
        embeddings = model.get_input_embeddings()(torch.tensor([token_ids]))
        if asked.embeddings is not None:
            rows = asked.embeddings.to(embeddings.dtype)
            for begin, end in asked.ranges:
                embeddings[0, begin:end] = rows[: end - begin]
                rows = rows[end - begin :]
        with torch.inference_mode():
            logits: Tensor = model(inputs_embeds=embeddings).logits[0].float()
        return logits

    def _choose(
        self, asked: Asked, token_ids: list[int], logits: Tensor, draw: torch.Generator
    ) -> int:
        options = asked.options
        scores = logits.clone()
        if options["repetition_penalty"] != 1:
            penalty = RepetitionPenaltyLogitsProcessor(options["repetition_penalty"])
            scores = penalty(torch.tensor([token_ids]), scores[None])[0]
        if options["bad_ids"]:
            scores[options["bad_ids"][0]] = -torch.inf
        if len(token_ids) - len(asked.token_ids) < options["min_new_tokens"]:
            scores[options["eos_ids"]] = -torch.inf
        if options["top_k"] == 1:
            return int(scores.argmax())
        count = options["top_k"] or len(scores)
        highest = (scores / options["temperature"]).topk(min(count, len(scores)))
        drawn = torch.multinomial(highest.values.softmax(-1), 1, generator=draw)
        return int(highest.indices[drawn])


@contextmanager
def on_cpu(view: Path) -> Iterator[list[Communicator]]:
    """Replace what touches a device below lmdeploy's Python code; gives what was made since.

    Args:
        view: the text view that answers come from.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(view, dtype=torch.float32)
    model.train(False)
    made: list[Communicator] = []

    def create(model_dir: str, engine_config: Any) -> Communicator:
        made.append(Communicator(engine_config, model))
        return made[-1]

    class Gemm:
        def data_types(self, data_format: Any) -> list[Any]:
            return list(_TORCH_DTYPES)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_tm.TurboMind, "create", staticmethod(create))
        patch.setattr(_tm, "create_module", Module)
        patch.setattr(_tm, "Gemm", Gemm)
        patch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
        patch.setattr(torch.cuda, "device", lambda index: nullcontext())
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "get_device_name", lambda index: "stand-in")
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        yield made
