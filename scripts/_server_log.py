"""What the server of the soak logged: the stalls of its event loop, its threads, and errors."""

from __future__ import annotations

import json
import re
from typing import Any


def check_log(text: str, max_stall_ms: float) -> list[str]:
    """Print what the server measured, and return its faults."""
    faults = _check_heartbeat(text, max_stall_ms) + _check_threads(text)
    if "ERROR" in text or "Traceback" in text:
        faults.append(f"the log has errors:\n{text[-4000:]}")
    return faults


def _check_heartbeat(text: str, max_stall_ms: float) -> list[str]:
    heartbeat = re.search(r"heartbeat: longest stall (\d+) ms.*", text)
    if heartbeat is None:
        return ["the server printed no heartbeat"]
    print(heartbeat[0])
    if int(heartbeat[1]) > max_stall_ms:
        return [f"the event loop stalled for more than {max_stall_ms:g} ms"]
    return []


def _check_threads(text: str) -> list[str]:
    """Compare the threads of each pool with its bound, and all others with those at the start."""
    start, end = _threads(text, "start"), _threads(text, "end")
    if start is None or end is None:
        return ["the server printed no threads"]
    print("threads:", ", ".join(f"{name} {num} of {most}" for name, num, most in end["pools"]))
    print(f"threads outside of pools: {', '.join(end['others'])}; native: {end['native']}")
    faults = [
        f"the pool {name} has {num} threads, more than its maximum of {most}"
        for name, num, most in end["pools"]
        if num > most
    ]
    if end["others"] != start["others"]:
        faults.append(f"threads outside of pools: {start['others']} before, {end['others']} after")
    if end["native"] - start["native"] > end["max_native"]:
        faults.append(f"{end['native']} native threads, and {start['native']} before")
    return faults


def _threads(text: str, when: str) -> dict[str, Any] | None:
    found = re.search(rf"threads at the {when}: (.*)", text)
    return None if found is None else dict(json.loads(found[1]))
