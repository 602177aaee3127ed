"""Speed and memory of the chat engines, as ratios measured in one run.

    python tools/bench_chat.py MODEL.gguf [ADAPTER.gguf]

Measured: decoding through the engine against llama-cpp-python's bare loop; two models at once against each
alone; time to the first token over 20 turns; memory of base and tuned model side by side against the base
alone; seconds until the prompt is ready. Alternating runs, the median counts; close other programs first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from lorafold.serve.answers import Request, answer_all
from lorafold.serve.config import ChatConfig, Sampling
from lorafold.serve.engines.open import opened
from lorafold.serve.engines.threads import thread_count
from lorafold.serve.protocol import Cancel, Engine, Finished, Started, Token

T = TypeVar("T")
QUESTION = [{"role": "user", "content": "Tell me a long story about a lighthouse keeper."}]
TOKENS = 96
GREEDY = Sampling(temperature=0, seed=0, max_tokens=TOKENS)


def rates(clocks: list[tuple[float, float]]) -> tuple[float, float]:
    """Tokens per second after the first one, by the clock and by processor time (for busy machines)."""
    (wall, spent), (wall_end, spent_end) = clocks[0], clocks[-1]
    return (len(clocks) - 1) / (wall_end - wall), (len(clocks) - 1) / (spent_end - spent)


def rate(engine: Engine) -> tuple[float, float]:
    """Rates of the engine."""
    clocks = [
        (time.perf_counter(), time.process_time())
        for event in engine.stream(QUESTION, GREEDY, Cancel())
        if isinstance(event, Token)
    ]
    return rates(clocks)


def bare_loop(model: Path, threads: int) -> Any:
    """llama-cpp-python's own loop, greedy, as a function that measures tokens per second."""
    from llama_cpp import Llama

    llama = Llama(str(model), n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)
    prompt = llama.tokenize(QUESTION[0]["content"].encode())

    def run() -> tuple[float, float]:
        llama.reset()
        clocks = []
        for _ in llama.generate(prompt, temp=0.0, repeat_penalty=1.0):
            clocks.append((time.perf_counter(), time.process_time()))
            if len(clocks) == TOKENS:
                break
        return rates(clocks)

    return partial(apart, run)


def apart(work: Callable[[], T]) -> T:
    """Compute on a thread that ends afterwards, as a lane's does: helpers that OpenMP keeps for idle threads
    would slow down whoever computes next."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


def decoding(model: Path, threads: int, rounds: int) -> dict[str, float]:
    """The engine against the bare loop, alternating."""
    bare = bare_loop(model, threads)
    ours, theirs = [], []
    with opened(ChatConfig(models=(str(model),), threads=threads)) as (engine,):
        rate(engine), bare()
        for _ in range(rounds):
            theirs.append(bare())
            ours.append(rate(engine))
    pairs = list(zip(ours, theirs, strict=True))
    return {
        "engine tokens/s": statistics.median(wall for wall, _ in ours),
        "bare loop tokens/s": statistics.median(wall for wall, _ in theirs),
        "engine / bare loop": statistics.median(a[0] / b[0] for a, b in pairs),
        "the same by processor time": statistics.median(a[1] / b[1] for a, b in pairs),
    }


def together(model: Path, threads: int, rounds: int) -> dict[str, float]:
    """Two models at once against one after the other, which has all threads: seconds for the same tokens."""
    ratios, spent = [], []
    # Opened apart, so that nothing is shared but the cores.
    config = ChatConfig(models=(str(model),), threads=threads)
    with opened(config) as (first,), opened(config) as (second,):
        for _ in range(rounds + 1):
            begin, begun = time.perf_counter(), time.process_time()
            for engine in (first, second):
                list(engine.stream(QUESTION, GREEDY, Cancel()))
            middle, halfway = time.perf_counter(), time.process_time()
            requests = {i: Request(e, QUESTION, GREEDY) for i, e in enumerate((first, second))}
            for _event in answer_all(requests, Cancel()):
                pass
            ratios.append((middle - begin) / (time.perf_counter() - middle))
            spent.append((halfway - begun) / (time.process_time() - halfway))
    return {
        "two at once / one after the other": statistics.median(ratios[1:]),
        "two at once, by processor time": statistics.median(spent[1:]),
    }


def long_chat(model: Path, threads: int) -> dict[str, float]:
    """The first token of 20 turns: seconds, what was read again, and the bare loop's seconds for the same."""
    sampling = Sampling(temperature=0, seed=0, max_tokens=24)
    messages: list[dict[str, str]] = []
    turns: list[tuple[int, int, float, float]] = []  # tokens held, tokens new, seconds, processor seconds
    again = held = 0
    with opened(ChatConfig(models=(str(model),), threads=threads)) as (engine,):
        for turn in range(20):
            messages.append({"role": "user", "content": f"And what happened on day {turn} of the journey?"})
            text, reused, first = "", 0, (0.0, 0.0)
            begin, begun = time.perf_counter(), time.process_time()
            for event in engine.stream(messages, sampling, Cancel()):
                if isinstance(event, Started):
                    reused, prompt = event.reused, event.prompt_tokens or 0
                    again += max(0, held - reused)
                    held = prompt
                elif isinstance(event, Token):
                    first = first if first[0] else (time.perf_counter() - begin, time.process_time() - begun)
                    text += event.text
                elif isinstance(event, Finished):
                    text += event.text
            turns.append((reused, held - reused, *first))
            messages.append({"role": "assistant", "content": text})
    bare = bare_first_tokens(model, threads, [turn[:2] for turn in turns])
    early, late = slice(1, 6), slice(15, 20)
    wall, spent = [turn[2] for turn in turns], [turn[3] for turn in turns]

    def middle(values: list[float], part: slice) -> float:
        return statistics.median(values[part])

    return {
        "first token, turns 2 to 6, s": middle(wall, early),
        "first token, turns 16 to 20, s": middle(wall, late),
        "late / early first token": middle(wall, late) / middle(wall, early),
        "the same by processor time": middle(spent, late) / middle(spent, early),
        "bare loop, the same by processor time": middle(bare, late) / middle(bare, early),
        "late first token / bare loop, processor": middle(spent, late) / middle(bare, late),
        "prompt tokens read again, of 20 turns": float(again),
        "prompt tokens at the end": float(held),
    }


def bare_first_tokens(model: Path, threads: int, turns: list[tuple[int, int]]) -> list[float]:
    """Processor seconds of llama-cpp-python's own loop for (tokens held, tokens new), one token drawn."""
    from llama_cpp import Llama

    llama = Llama(str(model), n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False)
    filler = llama.tokenize(b"The keeper walked along the shore and looked at the sea. " * 150)

    def run() -> list[float]:
        spent = []
        for held, new in turns:
            llama.reset()
            if held:
                llama.eval(filler[:held])
            begun = time.process_time()
            llama.eval(filler[held : held + new])
            llama.sample(temp=0.0)
            spent.append(time.process_time() - begun)
        return spent

    return apart(run)


MEMORY = """
import json, sys
from lorafold.serve.config import ChatConfig, Sampling
from lorafold.serve.protocol import Cancel
from lorafold.serve.engines.open import opened
question = [{"role": "user", "content": "Tell me a long story about a lighthouse keeper."}]
with opened(ChatConfig(models=tuple(sys.argv[2:]), threads=int(sys.argv[1]))) as engines:
    for engine in engines:
        list(engine.stream(question, Sampling(temperature=0, seed=0, max_tokens=96), Cancel()))
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) / 1024)
"""


def memory(model: Path, adapter: Path, threads: int) -> dict[str, float]:
    """Peak resident memory of a process with the base, and with base and base+adapter side by side."""

    def peak(*models: str) -> float:
        command = [sys.executable, "-c", MEMORY, str(threads), *models]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    alone, both = peak(str(model)), peak(str(model), f"{model}+{adapter}")
    return {"base alone, MB": alone, "base and tuned, MB": both, "side by side / alone": both / alone}


def ready(model: Path, threads: int, rounds: int) -> dict[str, float]:
    """Seconds from the command to the prompt in a pseudo-terminal, weights loaded and ready to answer.

    Python may keep its bytecode, as it does for everything installed; the first start, which writes it and
    the digest of the weights, does not count.
    """
    import pexpect

    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        kept = {"PYTHONPYCACHEPREFIX": f"{folder}/bytecode", "LORAFOLD_CACHE": f"{folder}/cache"}
        environment = {**os.environ, **kept, "TERM": "xterm", "LORAFOLD_HISTORY": ""}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for _ in range(rounds + 1):
            begin = time.perf_counter()
            arguments = ["-m", "lorafold", "chat", str(model), "--threads", str(threads)]
            child = pexpect.spawn(sys.executable, arguments, env=environment, timeout=60, encoding="utf-8")
            child.expect("›")
            elapsed = time.perf_counter() - begin
            seconds.append((elapsed, spent(child.pid)))
            child.sendeof()
            child.expect(pexpect.EOF)
            child.close()
    return {
        "prompt ready, s": statistics.median(wall for wall, _ in seconds[1:]),
        "prompt ready, processor s": statistics.median(cpu for _, cpu in seconds[1:]),
    }


def spent(pid: int) -> float:
    """Processor seconds of a running process (proc(5), stat: utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("adapter", type=Path, nargs="?")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    threads = thread_count(options.threads)
    figures: dict[str, float] = {"threads": threads, "load before": os.getloadavg()[0]}
    figures |= ready(options.model, threads, options.rounds)
    figures |= decoding(options.model, threads, options.rounds)
    figures |= together(options.model, threads, options.rounds)
    figures |= long_chat(options.model, threads)
    if options.adapter:
        figures |= memory(options.model, options.adapter, threads)
    for name, value in figures.items():
        print(f"{name:<40} {value:10.3f}")
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
