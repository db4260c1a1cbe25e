#!/usr/bin/env python3
"""Keep llama-server busy with mixed requests, and see that its memory stays and its answers do not change.

Eight slots with a TQ cache of the model inside the package. Most of the time workers ask for short and long
answers, break connections off, run over the context, save, restore and erase slots, and send what no server
should accept. Every minute they pause, and each slot answers the same request as at the start: its text, its
tokens and their probabilities must be those of the first time. In a pause, because a row is rounded otherwise
in a batch with other requests. Linux only, whose /proc tells the memory of a process.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import click
import httpx
import rich
import rich.table

from llama_tq.runtime import embedded

SLOTS, SLOT_CTX = 8, 512
PROMPT_CACHE_MIB = 32  # of earlier requests' states in main memory; it fills in the first minutes
FLAT = 0.05  # by how much memory may grow after the first quarter; heaps fragment
WORDS = embedded.held_out_text().split(" ")


@contextlib.contextmanager
def server(
    type_k: str, type_v: str, threads: int, folder: Path
) -> Iterator[tuple[subprocess.Popen, httpx.Client]]:
    """The process, and a client of it; the process ends with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {"-m": embedded.MODEL, "-ctk": type_k, "-ctv": type_v, "-np": SLOTS, "-c": SLOTS * SLOT_CTX}
    options |= {"-t": threads, "--cache-ram": PROMPT_CACHE_MIB, "--slot-save-path": folder, "--port": port}
    command = ["llama-server", *(str(word) for option in options.items() for word in option)]
    command += ["--no-kv-unified", "--context-shift"]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300) as client:
            deadline = time.monotonic() + 120
            while not _healthy(client):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise click.ClickException((folder / "server.log").read_text(errors="replace")[-4000:])
                time.sleep(0.1)
            yield process, client
    finally:
        process.terminate()
        process.wait(60)


def _healthy(client: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return client.get("/health").status_code == 200
    return False


def resident(process: subprocess.Popen) -> float:
    """Memory of a process in MiB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


# --- what is asked ---


class Wrong(Exception):
    """The server did what it should not."""


def text(rng: random.Random, words: int) -> str:
    """Consecutive words of the held-out text."""
    start = rng.randrange(len(WORDS) - words)
    return " ".join(WORDS[start : start + words])


def expect(answer: httpx.Response, *statuses: int) -> dict:
    """Its JSON, if it has one of these statuses."""
    if answer.status_code not in statuses:
        raise Wrong(
            f"{answer.request.url.path}: status {answer.status_code}, not {statuses}: {answer.text[:300]}"
        )
    return answer.json()


def complete(client: httpx.Client, prompt: str, tokens: int, **more: object) -> dict:
    """The server's answer to a completion of so many tokens."""
    body = {"prompt": prompt, "n_predict": tokens, "ignore_eos": True, **more}
    answer = expect(client.post("/completion", json=body), 200)
    if answer["tokens_predicted"] != tokens:
        raise Wrong(f"{answer['tokens_predicted']} tokens written, not {tokens}")
    return answer


def short(client: httpx.Client, rng: random.Random) -> None:
    complete(client, text(rng, rng.randint(3, 40)), rng.randint(1, 24), seed=rng.randrange(1000))


def long(client: httpx.Client, rng: random.Random) -> None:
    complete(client, text(rng, rng.randint(90, 140)), rng.randint(32, 96), cache_prompt=rng.random() < 0.7)


def shifted(client: httpx.Client, rng: random.Random) -> None:
    """More tokens than the slot holds."""
    answer = complete(client, text(rng, rng.randint(20, 100)), SLOT_CTX + rng.randint(1, 64))
    if not answer["truncated"]:
        raise Wrong("the context was not shifted")


def cancelled(client: httpx.Client, rng: random.Random) -> None:
    """The connection is closed before the answer is finished, at times before it begins."""
    body = {"prompt": text(rng, rng.randint(10, 120)), "n_predict": 400, "stream": True, "ignore_eos": True}
    wanted = rng.randint(0, 20)
    with client.stream("POST", "/completion", json=body) as answer:
        for number, _ in enumerate(answer.iter_lines()):
            if number >= wanted:
                return


def chat(client: httpx.Client, rng: random.Random) -> None:
    body = {"messages": [{"role": "user", "content": text(rng, 12)}], "max_tokens": 16}
    expect(client.post("/v1/chat/completions", json=body), 200)


def moved(client: httpx.Client, rng: random.Random) -> None:
    """A slot's state is saved, and restored in another, or erased."""
    name = f"moved-{rng.randrange(4)}.bin"
    a, b = rng.sample(range(SLOTS), 2)
    saved = expect(client.post(f"/slots/{a}", params={"action": "save"}, json={"filename": name}), 200)
    if saved["n_saved"]:
        expect(client.post(f"/slots/{b}", params={"action": "restore"}, json={"filename": name}), 200, 400)
    if rng.random() < 0.3:
        expect(client.post(f"/slots/{b}", params={"action": "erase"}), 200)


def malformed(client: httpx.Client, rng: random.Random) -> None:
    """What has to be refused; the status says so."""
    good = json.dumps({"prompt": text(rng, 5), "n_predict": 4}).encode()
    restore = {"params": {"action": "restore"}, "json": {"filename": f"damaged-{rng.randrange(4)}.bin"}}
    path, what = rng.choice(
        [
            ("/completion", {"content": good[: rng.randrange(1, len(good))]}),
            ("/completion", {"content": rng.randbytes(rng.randint(1, 200))}),
            ("/completion", {"content": b"[" * rng.randint(1, 2000)}),
            ("/completion", {"json": {"prompt": {"no": "prompt"}, "n_predict": 4}}),
            ("/completion", {"json": {"prompt": " ".join(WORDS[: 3 * SLOT_CTX]), "n_predict": 4}}),
            ("/completion", {"json": {"prompt": "x", "grammar": "root ::= (", "n_predict": 4}}),
            ("/v1/chat/completions", {"json": {"messages": "none"}}),
            ("/slots/0", restore),
            ("/slots/0", {"params": {"action": "restore"}, "json": {"filename": "../../etc/passwd"}}),
            ("/slots/none", {"params": {"action": "erase"}}),
            ("/slots/0", {"params": {"action": "no-such"}}),
        ]
    )
    expect(client.post(path, **what), 400, 404, 500)
    expect(client.get("/no-such-page"), 404)


MIX: dict[Callable[[httpx.Client, random.Random], None], int] = {
    short: 40,
    long: 15,
    cancelled: 15,
    malformed: 15,
    chat: 5,
    moved: 7,
    shifted: 3,
}


def damage(folder: Path, state: bytes, rng: random.Random) -> None:
    """Files for `malformed`: a saved state that ends too early, or whose head is not one."""
    for number in range(4):
        cut, wrong = rng.randrange(len(state)), rng.randrange(8)
        damaged = state[:cut] if number % 2 else state[:wrong] + rng.randbytes(4) + state[wrong + 4 :]
        (folder / f"damaged-{number}.bin").write_bytes(damaged)


# --- what is repeated ---


def replay(client: httpx.Client) -> list[object]:
    """Every slot's answer to a request of its own, then slot 0's after a saved state: what may not change."""
    keep = ("content", "tokens", "completion_probabilities", "tokens_evaluated", "truncated")
    how = {"temperature": 0, "n_probs": 3, "return_tokens": True}
    answers = []
    for slot in range(SLOTS):
        words = 10 + 12 * slot  # those of the last slots are read in more than one batch of tokens
        tokens = SLOT_CTX if slot == SLOTS - 1 else 24  # the last runs over its context
        prompt = " ".join(WORDS[100 * slot : 100 * slot + words])
        answer = complete(client, prompt, tokens, id_slot=slot, cache_prompt=False, **how)
        answers.append({key: answer[key] for key in keep})
    prompt = " ".join(WORDS[:100])
    expect(client.post("/slots/0", params={"action": "restore"}, json={"filename": "replayed.bin"}), 200)
    answer = complete(client, prompt + " and so", 24, id_slot=0, cache_prompt=True, **how)
    if not answer["timings"]["cache_n"]:
        raise Wrong("nothing of a restored state was used")
    return [*answers, {key: answer[key] for key in keep}]


def prepare(client: httpx.Client, folder: Path) -> None:
    """The saved states that requests restore."""
    complete(client, " ".join(WORDS[:100]), 1, id_slot=0, cache_prompt=False, temperature=0)
    expect(client.post("/slots/0", params={"action": "save"}, json={"filename": "replayed.bin"}), 200)
    damage(folder, (folder / "replayed.bin").read_bytes(), random.Random(0))


# --- the run ---


class Load:
    """Workers that ask, so many times a second in all; a pause waits for the last answer."""

    def __init__(self, client: httpx.Client, rate: float, seed: int) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self._client, self._rate, self._seed = client, rate, seed

    def run(self, seconds: float) -> None:
        """For so long; returns when every answer is there.

        llama-server takes up one of the tasks that wait whenever a slot becomes free. If that is no
        completion, none becomes free after it, and the others wait for the next request: there has to be one.
        """
        until = time.monotonic() + seconds
        self._seed += SLOTS + 2
        workers = SLOTS + 2  # two requests have to wait for a slot
        with ThreadPoolExecutor(workers) as pool:
            working = [
                pool.submit(self._work, random.Random(self._seed + number), until, workers / self._rate)
                for number in range(workers)
            ]
            while wait(working, timeout=2).not_done:
                if time.monotonic() > until:
                    complete(self._client, WORDS[0], 1)

    def _work(self, rng: random.Random, until: float, every: float) -> None:
        while time.monotonic() < until and not self.wrong:
            began = time.monotonic()
            ask = rng.choices(list(MIX), list(MIX.values()))[0]
            try:
                ask(self._client, rng)
            except (Wrong, httpx.HTTPError) as error:
                self.wrong.append(f"{ask.__name__}: {type(error).__name__} {error}")
            self.counts[ask.__name__] += 1
            pause = began + every * rng.uniform(0.5, 1.5) - time.monotonic()
            time.sleep(max(0, min(pause, until - time.monotonic())))


@dataclasses.dataclass(frozen=True)
class Minute:
    """What is printed, and judged in the end."""

    number: int
    requests: int
    resident: float
    same: bool


def judge(minutes: list[Minute]) -> list[str]:
    """What is wrong with a run."""
    found = [f"the answers of minute {m.number} are not those of the start" for m in minutes if not m.same]
    quarter = max(1, len(minutes) // 4)
    if len(minutes) >= 4:
        before = statistics.mean(m.resident for m in minutes[quarter : 2 * quarter])
        after = statistics.mean(m.resident for m in minutes[-quarter:])
        if after > before * (1 + FLAT):
            found.append(f"memory grew from {before:.1f} to {after:.1f} MiB")
    return found


@click.command()
@click.option("--minutes", default=60, show_default=True, help="How long.")
@click.option("--rate", default=4.0, show_default=True, help="Requests a second in all, at most.")
@click.option("--type-k", "-k", default="tq4_0", show_default=True, help="Type of the K cache.")
@click.option("--type-v", "-v", default="tq4_0", show_default=True, help="Type of the V cache.")
@click.option("--threads", default=1, show_default=True, help="Of the server.")
@click.option("--minute", "length", default=60.0, show_default=True, help="Seconds between two replays.")
@click.option("--seed", default=0, show_default=True, help="Of the requests.")
def main(minutes: int, rate: float, type_k: str, type_v: str, threads: int, length: float, seed: int) -> None:
    """Exit code 1 if the server ended, refused what it should answer or the reverse, gave another answer to a
    replayed request than the first time, or if its memory grew."""
    with (
        tempfile.TemporaryDirectory() as name,
        server(type_k, type_v, threads, Path(name)) as (process, client),
    ):
        rows: list[Minute] = []
        try:
            prepare(client, Path(name))
            first = replay(client)
            load = Load(client, rate, seed)
            for number in range(1, minutes + 1):
                load.run(length)
                if load.wrong:
                    break
                same = replay(client) == first
                rows.append(Minute(number, sum(load.counts.values()), resident(process), same))
                rich.print(
                    f"minute {number}: {rows[-1].requests} requests, {rows[-1].resident:.1f} MiB, "
                    f"replayed answers {'the same' if same else 'NOT the same'}"
                )
                sys.stdout.flush()
        except (Wrong, httpx.HTTPError) as error:
            load.wrong.append(f"replay: {type(error).__name__} {error}")
        wrong = load.wrong + judge(rows)
        if process.poll() is not None:
            log = (Path(name) / "server.log").read_text(errors="replace")
            wrong.append(f"the server ended with {process.returncode}:\n{log[-3000:]}")
    table = rich.table.Table(
        "requests", "", title=f"llama-server, {type_k}/{type_v}, {SLOTS} slots of {SLOT_CTX}"
    )
    for kind, count in sorted(load.counts.items()):
        table.add_row(kind, str(count))
    rich.print(table)
    if rows:
        memory = [row.resident for row in rows]
        rich.print(f"MiB: {memory[0]:.1f} first, {memory[-1]:.1f} last, {max(memory):.1f} at most")
    for line in wrong:
        print(line, file=sys.stderr)
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
