#!/usr/bin/env python3
"""Train the language model that ships with llama-tq, from nothing but the text that comes with CPython.

    python scripts/train_demo.py all          # corpus, train, convert

corpus    collects text from the running CPython, splits it by subject, trains the tokenizer (no GPU)
train     trains a qwen3-architecture transformer (minutes on one H200) and keeps the best weights
convert   writes demo.gguf and heldout.txt into the package and the tokenizer's golden file (no GPU)

The stages talk through one work folder (--work, default build/demo), so they may run on different machines.
Needs numpy; corpus and convert: tokenizers; train: torch 2.9 or newer; convert: gguf.

Text: the standard library's sources, their docstrings laid out like documentation, the docstrings of the
built-in modules, and `pydoc_data.topics`. To that come documents that only attention can predict: key-value
tables with lookups, and passages repeated word for word. They make the heads sharp, which is what a cache
type is tested by.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import json
import math
import random
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "python" / "llama_tq" / "data"
GOLDEN = ROOT / "tests" / "golden" / "demo_tokens.json"

# ---------------------------------------------------------------------------------------------------- corpus

END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 4096
# Qwen2's splitting rule, "qwen2" in llama.cpp: single digits; line breaks take the white space before them.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Whole subjects are held out: `calendar` keeps test/test_calendar.py out of training, too. Validation
# picks the checkpoint; the test part is not looked at in training and ships as heldout.txt.
VALIDATION = {"configparser", "difflib", "statistics", "contextlib", "wave", "mimetypes"}
TEST = {"textwrap", "calendar", "shlex", "heapq", "fractions", "cmd", "graphlib", "queue"}
TOPIC_STRIDE = 16  # of every 16 topics one is validation and one is test

NOT_TEXT = {
    "encodings",
    "pydoc_data",
    "site-packages",
    "lib2to3/tests/data",
    "test/encoded_modules",
}  # data tables
SYNTHETIC = 1800  # documents, about a sixth of the text
TOPIC_COPIES = 3  # the topics are the only continuous prose; they weigh more than the sources
SHINGLE = 12  # words
MAX_OVERLAP = 0.05  # a held-out document that shares more of its shingles with training text is dropped


@dataclass(frozen=True)
class Document:
    subject: str
    kind: str  # "source", "docstrings" or "topic"
    text: str


def subject_of(path: Path) -> str:
    """Return the module a file is about: its own name or that of what it tests."""
    parts = list(path.with_suffix("").parts)
    if parts[0] == "test" and len(parts) > 1:
        parts = parts[1:]
    return re.sub(r"^(_py|_|test_)", "", parts[0])


def page(head: str, text: str) -> str:
    return head + "\n" + "\n".join(f"    {line}".rstrip() for line in text.splitlines())


def docstring_pages(tree: ast.Module, module: str) -> str:
    """Return the docstrings of a module's public names, each under its signature, much like pydoc."""
    pages = [f"Help on module {module}:\n\n{ast.get_docstring(tree) or ''}".rstrip()]

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                continue
            if child.name.startswith("_"):
                continue
            if text := ast.get_docstring(child):
                name = prefix + child.name
                is_class = isinstance(child, ast.ClassDef)
                pages.append(
                    page(f"class {name}" if is_class else f"{name}({ast.unparse(child.args)})", text)
                )
            visit(child, f"{prefix}{child.name}.")

    visit(tree, f"{module}.")
    return "\n\n".join(pages) if len(pages) > 1 else ""


def builtin_pages(module: str) -> str:
    """Return the docstrings of a built-in module's public names, but no values: they differ per machine."""
    loaded = importlib.import_module(module)
    pages = [f"Help on built-in module {module}:\n\n{inspect.getdoc(loaded) or ''}".rstrip()]
    for name, value in sorted(vars(loaded).items()):
        if name.startswith("_") or not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        members = sorted(vars(value).items()) if inspect.isclass(value) else []
        items = [(name, value)] + [(f"{name}.{member}", item) for member, item in members if member[0] != "_"]
        for label, item in items:
            if callable(item) and (text := inspect.getdoc(item)):
                pages.append(page(f"{module}.{label}", text))
    return "\n\n".join(pages) if len(pages) > 1 else ""


def collect() -> Iterator[Document]:
    """Yield every document of the running CPython, in a fixed order."""
    from pydoc_data.topics import topics

    library = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(library.rglob("*.py")):
        path = file.relative_to(library)
        if any(path.as_posix().startswith(f"{name}/") for name in NOT_TEXT):
            continue
        try:
            text = file.read_text(encoding="utf-8")
            tree = ast.parse(text)
        except (UnicodeDecodeError, SyntaxError, ValueError):
            continue  # the test suite has files that are wrong on purpose
        if text.strip():
            yield Document(subject_of(path), "source", text)
        if path.parts[0] != "test" and (pages := docstring_pages(tree, ".".join(path.with_suffix("").parts))):
            yield Document(subject_of(path), "docstrings", pages)
    for module in sorted({*sys.builtin_module_names, "math"} - {"this", "antigravity"}):
        if pages := builtin_pages(module):
            yield Document(module.lstrip("_"), "docstrings", pages)
    for name, text in sorted(topics.items()):
        yield Document(name, "topic", text)


def shingles(text: str) -> set[str]:
    words = text.split()
    return {" ".join(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)}


def split(documents: list[Document]) -> tuple[list[Document], list[Document], list[Document]]:
    """Return train, validation and test documents, the last two without near duplicates of it."""
    train: list[Document] = []
    held: dict[str, list[Document]] = {"validation": [], "test": []}
    topic = 0
    for document in documents:
        if document.kind == "topic":
            part = {0: "test", TOPIC_STRIDE // 2: "validation"}.get(topic % TOPIC_STRIDE)
            topic += 1
        else:
            sets = {"test": TEST, "validation": VALIDATION}
            part = next((name for name, subjects in sets.items() if document.subject in subjects), None)
        if part is None:
            train.append(document)
        elif document.kind != "docstrings" and "unittest" not in document.text:
            held[part].append(document)  # of a held-out subject only the module itself is read
    wanted = {s for part in held.values() for d in part for s in shingles(d.text)}
    known = set().union(*(shingles(d.text) & wanted for d in train))

    def fresh(document: Document) -> bool:
        mine = shingles(document.text)
        return bool(mine) and len(mine & known) <= MAX_OVERLAP * len(mine)

    return train, [d for d in held["validation"] if fresh(d)], [d for d in held["test"] if fresh(d)]


def recall_document(rng: random.Random, names: list[str]) -> str:
    """Return a table of random keys and values, then lookups that only attention can answer."""
    keys = rng.sample(names, rng.randint(6, 120))
    values = [rng.choice(names) if rng.random() < 0.5 else str(rng.randint(0, 9999)) for _ in keys]
    table, name = dict(zip(keys, values, strict=True)), rng.choice(names)
    asked = [rng.choice(keys) for _ in range(rng.randint(10, 120))]
    style = rng.randrange(3)
    if style == 0:
        head = f"{name} = {{\n" + "".join(f"    {k!r}: {v!r},\n" for k, v in table.items()) + "}\n\n"
        return head + "".join(f">>> {name}[{k!r}]\n{table[k]!r}\n" for k in asked)
    if style == 1:
        head = f"[{name}]\n" + "".join(f"{k} = {v}\n" for k, v in table.items()) + "\n"
        return head + "".join(f"The value of {k} in {name} is {table[k]}.\n" for k in asked)
    head = f"class {name}:\n" + "".join(f"    {k} = {v!r}\n" for k, v in table.items()) + "\n"
    return head + "".join(f"assert {name}.{k} == {table[k]!r}\n" for k in asked)


def copy_document(rng: random.Random, train: list[Document]) -> str:
    """Return a passage of training text, a bit of other text, and the passage again."""

    def passage(lines: int) -> str:
        text = rng.choice(train).text.splitlines(keepends=True)
        start = rng.randrange(max(1, len(text) - lines))
        return "".join(text[start : start + lines])

    first = passage(rng.randint(10, 80))
    return f"{first}\n{passage(rng.randint(0, 60))}\n{first}"


def synthetic(train: list[Document], count: int) -> list[str]:
    """Return `count` recall and copy documents, the same ones every time."""
    rng = random.Random(0)
    frequency = Counter(w for d in train for w in re.findall(r"\b[a-z_]{3,14}\b", d.text))
    names = [w for w, _ in sorted(frequency.items(), key=lambda item: (-item[1], item[0]))[:6000]]
    return [recall_document(rng, names) if i % 3 else copy_document(rng, train) for i in range(count)]


def train_tokenizer(texts: list[str]):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [END_OF_TEXT]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def build_corpus(work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    train, validation, test = split(list(collect()))
    texts = [d.text for d in train for _ in range(TOPIC_COPIES if d.kind == "topic" else 1)]
    texts += synthetic(train, SYNTHETIC)
    random.Random(1).shuffle(texts)

    tokenizer = train_tokenizer([d.text for d in train])
    tokenizer.save(str(work / "tokenizer.json"))

    def save(name: str, documents: list[str]) -> str:
        ids = [np.array([0, *e.ids], np.uint16) for e in tokenizer.encode_batch(documents)]
        np.save(work / f"{name}.npy", np.concatenate(ids))
        size = sum(len(d.encode()) for d in documents)
        return f"{name}: {len(documents)} documents, {size} bytes, {sum(map(len, ids))} tokens"

    heldout = "\n\n".join(d.text.strip("\n") for d in test) + "\n"
    (work / "heldout.txt").write_text(heldout, encoding="utf-8")
    print(save("train", texts))
    print(save("validation", [d.text for d in validation]))
    print(save("test", [heldout]))
    print("held out:", *(f"{d.kind}:{d.subject}" for d in test))
    print("sha256 of train.npy:", hashlib.sha256((work / "train.npy").read_bytes()).hexdigest())


# ----------------------------------------------------------------------------------------------------- train


@dataclass(frozen=True)
class Shape:
    """The transformer: qwen3, that is grouped-query attention with normalised queries and keys."""

    layers: int = 7
    width: int = 320
    ffn: int = 768
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 128
    context: int = 4096
    rope_base: float = 10000.0
    eps: float = 1e-6


def build_model(shape: Shape, dropout: float):
    """Return the transformer; the names in its state_dict are those of the GGUF tensors."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            q, kv = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
            self.attn_norm = nn.RMSNorm(shape.width, shape.eps)
            self.attn_q = nn.Linear(shape.width, q, bias=False)
            self.attn_k = nn.Linear(shape.width, kv, bias=False)
            self.attn_v = nn.Linear(shape.width, kv, bias=False)
            self.attn_q_norm = nn.RMSNorm(shape.head_size, shape.eps)
            self.attn_k_norm = nn.RMSNorm(shape.head_size, shape.eps)
            self.attn_output = nn.Linear(q, shape.width, bias=False)
            self.ffn_norm = nn.RMSNorm(shape.width, shape.eps)
            self.ffn_gate = nn.Linear(shape.width, shape.ffn, bias=False)
            self.ffn_up = nn.Linear(shape.width, shape.ffn, bias=False)
            self.ffn_down = nn.Linear(shape.ffn, shape.width, bias=False)

        def forward(self, x, cos, sin):
            batch, length, _ = x.shape

            def heads(y):
                return y.view(batch, length, -1, shape.head_size).transpose(1, 2)

            def rope(y):
                low, high = y.float().chunk(2, dim=-1)
                return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)

            h = self.attn_norm(x)
            v = heads(self.attn_v(h))
            q = rope(self.attn_q_norm(heads(self.attn_q(h)))).to(v.dtype)
            k = rope(self.attn_k_norm(heads(self.attn_k(h)))).to(v.dtype)
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = x + F.dropout(self.attn_output(a.transpose(1, 2).flatten(2)), dropout, self.training)
            h = self.ffn_norm(x)
            h = self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))
            return x + F.dropout(h, dropout, self.training)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token_embd = nn.Embedding(VOCABULARY, shape.width)
            self.blk = nn.ModuleList(Block() for _ in range(shape.layers))
            self.output_norm = nn.RMSNorm(shape.width, shape.eps)
            half = shape.head_size // 2
            angles = torch.outer(torch.arange(shape.context), shape.rope_base ** (-torch.arange(half) / half))
            self.register_buffer("cos", angles.cos(), persistent=False)
            self.register_buffer("sin", angles.sin(), persistent=False)
            for name, parameter in self.named_parameters():
                if parameter.ndim == 2:
                    last = name.endswith(("attn_output.weight", "ffn_down.weight"))
                    nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * shape.layers) if last else 0.02)

        def forward(self, ids, targets):
            """Return the mean cross-entropy in nats of targets given ids, both int64 (batch, length)."""
            x = F.dropout(self.token_embd(ids), dropout, self.training)
            cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
            for block in self.blk:
                x = block(x, cos, sin)
            logits = F.linear(self.output_norm(x), self.token_embd.weight)
            return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    return Model()


def build_optimizers(model, rate: float, decay: float) -> list:
    """Return Muon for the matrices inside the blocks and AdamW for the rest."""
    import torch

    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and n.startswith("blk.")]
    norms = [p for p in model.parameters() if p.ndim < 2]
    outer = [
        {"params": [model.token_embd.weight], "weight_decay": decay},
        {"params": norms, "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(inner, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, lr=rate, betas=(0.9, 0.95), fused=torch.cuda.is_available()),
    ]


@dataclass(frozen=True)
class Recipe:
    """How the shipped weights were trained; `batch` counts sequences of one whole context."""

    steps: int = 1850
    batch: int = 16
    rate: float = 8e-3
    decay: float = 0.3
    dropout: float = 0.2
    warmup: int = 100
    check: int = 75  # steps between two looks at the validation loss


def train_model(work: Path, shape: Shape, recipe: Recipe) -> None:
    """Train, the rate falling linearly to zero, and save the weights with the least validation loss."""
    import torch

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model(shape, recipe.dropout).to(device)
    compiled = torch.compile(model) if device == "cuda" else model
    optimizers = build_optimizers(model, recipe.rate, recipe.decay)
    tokens = torch.from_numpy(np.load(work / "train.npy").astype(np.int32)).to(device)
    held = torch.from_numpy(np.load(work / "validation.npy").astype(np.int32)).to(device)
    window = torch.arange(shape.context + 1, device=device)
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {shape}, {recipe}")

    def loss_of(stream, firsts):
        rows = stream[firsts[:, None] + window].long()
        with torch.autocast(device, torch.bfloat16):
            return compiled(rows[:, :-1], rows[:, 1:])

    def validate() -> float:
        model.eval()
        firsts = torch.arange(0, len(held) - shape.context, shape.context, device=device)
        with torch.no_grad():
            loss = sum(loss_of(held, first[None]).item() for first in firsts) / len(firsts)
        model.train()
        return loss

    best, weights, history = math.inf, {}, []
    for step in range(1, recipe.steps + 1):
        scale = min(1.0, step / recipe.warmup) * (1 - step / (recipe.steps + 1))
        firsts = torch.randint(len(tokens) - shape.context, (recipe.batch,), device=device)
        loss = loss_of(tokens, firsts)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step % recipe.check == 0 or step == recipe.steps:
            history.append({"step": step, "train": loss.item(), "validation": validate()})
            print(history[-1], flush=True)
            if history[-1]["validation"] < best:
                best = history[-1]["validation"]
                weights = {name: value.half().cpu().numpy() for name, value in model.state_dict().items()}
    np.savez(work / "weights.npz", **weights)
    report = {"shape": asdict(shape), "recipe": asdict(recipe), "best": best, "history": history}
    (work / "train.json").write_text(json.dumps(report, indent=1) + "\n")


# --------------------------------------------------------------------------------------------------- convert

# Five bits for the matrices cost 0.3 % of perplexity and make room for more of them (data/README.md).
MATRIX_TYPE, EMBEDDING_TYPE = "Q5_0", "Q8_0"

# The tokenizer's golden file: llama.cpp must split and merge these texts as the training tokenizer does.
SAMPLES = [
    "def f(x):\n    return x + 1\n",
    "class A:\n\n\tdef b(self): pass  \n\n\n    # it's we'll DON'T\r\n",
    ">>> table['key'] == 12345.678e-9\nTrue",
    "  leading, trailing  and   inner    spaces   ",
    "na\u00efve \u03bb\u2192\u4e2d\u6587 \U0001f40d \u0301e",
    '@property\n"""Return \'it\'."""\\\n{}[]()<>|&^~%$#!?',
]


def convert(work: Path, target: Path, matrix_type: str, embedding_type: str) -> None:
    """Write the trained weights and the tokenizer as GGUF, with tensors in the two given ggml types."""
    import gguf

    shape = Shape(**json.loads((work / "train.json").read_text())["shape"])
    tokenizer = json.loads((work / "tokenizer.json").read_text())["model"]
    weights = np.load(work / "weights.npz")
    kinds = gguf.GGMLQuantizationType

    writer = gguf.GGUFWriter(target, "qwen3")
    writer.add_name("llama-tq demo")
    writer.add_description("Trained from scratch on the text that comes with CPython: scripts/train_demo.py")
    writer.add_license("MIT")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_vocab_size(VOCABULARY)
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].get)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([control if token == END_OF_TEXT else normal for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(True)

    for name in weights.files:
        weight = weights[name].astype(np.float32)
        if weight.ndim < 2:
            writer.add_tensor(name, weight)
            continue
        kind = kinds[embedding_type if name == "token_embd.weight" else matrix_type]
        writer.add_tensor(name, gguf.quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(f"{target}: {target.stat().st_size} bytes")


def write_golden(work: Path, target: Path) -> None:
    """Write the sample texts and the ids that the training tokenizer gives them."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    lines = [json.dumps({"text": text, "ids": tokenizer.encode(text).ids}) for text in SAMPLES]
    target.write_text("[\n" + ",\n".join(lines) + "\n]\n")


# ------------------------------------------------------------------------------------------------------- cli

work_option = click.option(
    "--work", type=click.Path(path_type=Path), default=ROOT / "build" / "demo", show_default=True
)


@click.group(help=__doc__.splitlines()[0])
def main() -> None:
    pass


@main.command("corpus")
@work_option
def corpus_command(work: Path) -> None:
    """Collect the text, split it and train the tokenizer."""
    build_corpus(work)


@main.command("train")
@work_option
@click.option("--steps", default=Recipe.steps, show_default=True)
@click.option("--batch", default=Recipe.batch, show_default=True, help="Sequences of one whole context.")
@click.option("--layers", default=Shape.layers, show_default=True)
@click.option("--width", default=Shape.width, show_default=True)
@click.option("--ffn", default=Shape.ffn, show_default=True)
@click.option("--context", default=Shape.context, show_default=True)
def train_command(
    work: Path, steps: int, batch: int, layers: int, width: int, ffn: int, context: int
) -> None:
    """Train the transformer and keep the weights with the least validation loss."""
    shape = Shape(layers=layers, width=width, ffn=ffn, context=context)
    train_model(work, shape, Recipe(steps=steps, batch=batch))


@main.command("convert")
@work_option
@click.option("--output", type=click.Path(path_type=Path), help="Write only the GGUF, and there.")
@click.option("--matrices", default=MATRIX_TYPE, show_default=True, help="ggml type of the blocks' matrices.")
@click.option("--embedding", default=EMBEDDING_TYPE, show_default=True, help="ggml type of the embedding.")
def convert_command(work: Path, output: Path | None, matrices: str, embedding: str) -> None:
    """Write demo.gguf, the held-out text and the tokenizer's golden file to where they ship."""
    convert(work, output or DATA / "demo.gguf", matrices, embedding)
    if output is None:
        (DATA / "heldout.txt").write_bytes((work / "heldout.txt").read_bytes())
        write_golden(work, GOLDEN)


@main.command("all")
@click.pass_context
def all_command(context: click.Context) -> None:
    """Run the three stages with their defaults."""
    for stage in (corpus_command, train_command, convert_command):
        context.invoke(stage)


if __name__ == "__main__":
    main()
