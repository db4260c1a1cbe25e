"""The command `llama-tq`: parses, calls a function of this package, prints what it returns."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from .commands import defaults
from .errors import InputError
from .runtime import sources

NOT_PATCHED, INPUT_ERROR, INTERRUPTED = 1, 2, 130  # exit codes
_SPINS = "2000"  # about 0.1 ms; libgomp's own are 300000
_out = Console()
_err = Console(stderr=True)


class _Command(click.Command):
    """Does nothing with a llama_cpp that is not ours."""

    def invoke(self, context: click.Context) -> object:
        from .runtime.installed import cache_types

        try:
            cache_types()
        except InputError as error:
            _complain(str(error))
            raise SystemExit(NOT_PATCHED) from None
        return super().invoke(context)


class _Group(click.Group):
    """Turns bad input into one line and exit code 2."""

    command_class = _Command

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except (InputError, OSError) as error:
            _complain(str(error))
            raise SystemExit(INPUT_ERROR) from None


class _Pairs(click.ParamType):
    name = "K/V,..."

    def convert(self, value, param, context):
        from .runtime.pairs import parse_pairs

        return parse_pairs(value) if isinstance(value, str) else value


class _Bytes(click.ParamType):
    name = "bytes"

    def convert(self, value, param, context):
        from .runtime.memory import parse_bytes

        return parse_bytes(value) if isinstance(value, str) else value


class _Model(click.ParamType):
    """A model, with what is on the hub fetched before anything is drawn."""

    name = "model"

    def convert(self, value, param, context):
        return str(sources.resolve(value)) if value.startswith(sources.hub.PREFIX) else value


class _Numbers(click.ParamType):
    name = "n,..."

    def convert(self, value, param, context):
        if not isinstance(value, str):
            return value
        try:
            return tuple(int(item) for item in value.split(","))
        except ValueError:
            raise InputError(f"{value!r} is not a list of numbers. Write it as 0,4096,16384.") from None


_MODEL = f"MODEL is {sources.ALLOWED}."
_json = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, and nothing else, on standard output."
)
_tokens = click.option(
    "-n", "--tokens", default=defaults.N_TOKENS, show_default=True, help="Tokens to generate."
)
_system = click.option("--system", help="System message: what the model is told before the prompt.")
_raw = click.option("--raw", is_flag=True, help="Continue PROMPT as text, without the model's chat template.")
_type_k = click.option("-k", "--type-k", default="f16", show_default=True, help="Type of the K cache.")
_type_v = click.option("-v", "--type-v", default="f16", show_default=True, help="Type of the V cache.")
_temperature = click.option(
    "--temperature", type=float, default=0.0, show_default=True, help="0 takes the most probable token."
)
_seed = click.option("--seed", type=int, default=0, show_default=True, help="Of the random numbers.")
_gpu_layers = click.option(
    "-ngl",
    "--gpu-layers",
    "n_gpu_layers",
    type=click.IntRange(min=-1),
    default=0,
    show_default=True,
    help="Layers on the GPU, with their cache; -1 for all.",
)


def _add_servers(context: click.Context, _: click.Parameter, servers: str | None) -> None:
    from .runtime.rpc import add_rpc_servers

    if servers is not None:
        add_rpc_servers(servers)
        context.default_map = {"n_gpu_layers": -1}  # what else would one name them for


_rpc = click.option(
    "--rpc",
    metavar="HOST:PORT,...",
    callback=_add_servers,
    expose_value=False,
    is_eager=True,
    help="Machines where ggml-rpc-server runs: as many GPUs more, for all layers unless -ngl says how many.",
)
_pairs = click.option(
    "--pairs", type=_Pairs(), help="Cache types to try, K/V or one name for both, separated by commas."
)


def _complain(message: str) -> None:
    _err.print(f"llama-tq: {message}", style="red", soft_wrap=True, markup=False, highlight=False)


def _show(result: object, as_json: bool, view: str) -> None:
    from .views import render

    if as_json:
        click.echo(render.to_json(result))
    else:
        _out.print(getattr(render, view)(result))


def _at_once(line: Callable[[Any], str]) -> Callable[[Any], None]:
    """Prints a first result on standard error, above the bar."""
    return lambda result: _err.print(line(result), highlight=False)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error, with the time left, and the callback that moves it."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_err, transient=True, disable=not _err.is_terminal) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="llama-cpp-python", prog_name="llama-tq")
def main() -> None:
    """Measure, compare and plan quantised KV caches of llama.cpp.

    A cache type is one of llama.cpp's own or tq4_0, tq3_0, tq2_1; K and V can have different ones, written
    q8_0/tq3_0. "tq4_0 uncentred" stores keys as they are, without key centring.
    """
    # Threads meet a few hundred times per token, and libgomp lets those that wait spin for up to 10 ms. Where
    # other programs want the processors, too, they keep off the one that they wait for: small chunks took ten
    # times as long. libgomp reads this when it is loaded, with llama_cpp.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def _on_model(name: str | None = None) -> Callable[[Callable], click.Command]:
    """A command whose first argument is a model, and which can have it on a GPU."""
    return lambda function: main.command(name, epilog=_MODEL)(
        click.argument("model", type=_Model())(_gpu_layers(_rpc(function)))
    )


@main.command(epilog=_MODEL)
@click.argument("model", type=_Model(), required=False)
@_gpu_layers
@_rpc
@_json
def info(model: str | None, n_gpu_layers: int, as_json: bool) -> None:
    """What is installed: versions, cache types, instruction sets, backends.

    With MODEL also what a TQ cache would do with it: which keys are centred, or why none, and where their
    means are kept. Exit code 1, and the reason, if the installed llama_cpp is not the patched one.
    """
    from .commands.info import info as run

    _show(run(model, n_gpu_layers=n_gpu_layers), as_json, "info")


@main.command()
@_gpu_layers
@_rpc
@_json
def demo(n_gpu_layers: int, as_json: bool) -> None:
    """Try the cache types on the model inside the package.

    Continues a text it has not seen with f16 and with the TQ types, and compares the predictions, the size
    and the speed of generation with llama.cpp's own types.
    """
    from .commands.demo import demo as run
    from .views import render

    with _progress() as progress:
        result = run(
            n_gpu_layers=n_gpu_layers,
            progress=progress,
            on_first=_at_once(render.first),
            on_generation=_at_once(render.generation),
        )
    _show(result, as_json, "demo")


@main.command()
@click.option("--turboquant", is_flag=True, help="TurboQuant as in its paper, too; in NumPy, needs SciPy.")
@_json
def benchmark(turboquant: bool, as_json: bool) -> None:
    """Error and speed of every type, without a model.

    On Gaussian values, by instruction set, next to llama.cpp's q8_0, q5_0, q4_0 and iq4_nl, and next to the
    least error that so many bits allow (the rate-distortion limit).
    """
    from .commands.benchmark import benchmark as run
    from .views import render

    with _progress() as progress:
        rows = run(turboquant=turboquant, progress=progress, on_type=_at_once(render.measured))
    _show(rows, as_json, "benchmark")


@_on_model()
@click.option("--ctx", type=int, help="Tokens of context.  [default: the model's]")
@click.option(
    "--memory",
    type=_Bytes(),
    help="Memory for everything, such as 8GiB, with -ngl that of a GPU: shows the longest context.",
)
@click.option(
    "--parallel", type=click.IntRange(1), default=1, show_default=True, help="Slots that share the context."
)
@click.option(
    "--swa-full", is_flag=True, help="Sliding-window layers keep everything, as in llama_cpp.Llama."
)
@_pairs
@_json
def plan(
    model: str,
    n_gpu_layers: int,
    ctx: int | None,
    memory: int | None,
    parallel: int,
    swa_full: bool,
    pairs,
    as_json: bool,
) -> None:
    """Memory that MODEL needs, by pair of cache types.

    Reads only the metadata: llama.cpp itself lays out the cache, without loading weights, so sliding windows,
    recurrent layers and latent attention count as what they are.

    \b
    llama-tq plan model.gguf --ctx 32768 --memory 8GiB
    """
    from .commands.plan import plan as run

    how = {"sequences": parallel, "swa_full": swa_full, "n_gpu_layers": n_gpu_layers}
    result = run(model, n_ctx=ctx, memory=memory, pairs=pairs, **how)
    _show(result, as_json, "plan")


@_on_model("eval")
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    help="Text to measure on, UTF-8.  [default for demo and smollm2: that in the package]",
)
@_pairs
@click.option(
    "--yardsticks/--no-yardsticks",
    default=True,
    help="Measure q8_0, q5_0, q4_0 and the floor of the model as well.",
)
@click.option(
    "--uncentred", is_flag=True, help="Measure pairs with a TQ type for K also without key centring."
)
@click.option("--ctx", default=defaults.EVAL_CTX, show_default=True, help="Tokens per chunk.")
@click.option(
    "--chunks", type=int, help=f"Chunks to measure.  [default: those of {defaults.EVAL_SECONDS} seconds]"
)
@click.option("--recall/--no-recall", default=True, help="Look up keys that lie far back in the context.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Directory for results and plots.  [default: eval-MODEL]"
)
@click.option("--resume", is_flag=True, help="Go on with an interrupted evaluation in --out.")
@_json
def evaluate(
    model: str,
    n_gpu_layers: int,
    text: Path | None,
    pairs,
    yardsticks: bool,
    uncentred: bool,
    ctx,
    chunks,
    recall: bool,
    out,
    resume: bool,
    as_json: bool,
) -> None:
    """What the cache types do to MODEL's predictions, against f16.

    Perplexity, KL divergence and same-top share with standard errors, by the protocol of llama-perplexity;
    recall of keys far back; bytes; speed. The floor is what an f32 cache differs by: no pair can do better.
    What the first chunk says is printed at once. Writes result.json, pareto.png and heatmap.png. Ctrl-C keeps
    what is finished.

    \b
    llama-tq eval model.gguf --text wiki.txt --pairs tq4_0,q8_0/tq3_0 --chunks 20
    """
    from .commands import evaluate as module
    from .runtime.pairs import RECOMMENDED, YARDSTICKS
    from .views import plots, render

    chosen = (*(YARDSTICKS if yardsticks else ()), *(pairs or RECOMMENDED))
    directory = out or Path(f"eval-{sources.stem_of(model)}")
    try:
        with _progress() as progress:
            result = module.evaluate(
                model,
                _text(model, text),
                chosen,
                n_ctx=ctx,
                chunks=chunks,
                recall=recall,
                floor=yardsticks,
                uncentred=uncentred,
                n_gpu_layers=n_gpu_layers,
                keep=directory,
                resume=resume,
                progress=progress,
                on_first=_at_once(render.first),
            )
    except KeyboardInterrupt:
        _complain(f"Interrupted. What is finished is in {directory}: go on with --resume.")
        raise SystemExit(INTERRUPTED) from None
    (directory / "result.json").write_text(render.to_json(result))
    written = [
        plots.pareto(result, directory / "pareto.png"),
        plots.heatmap(result, directory / "heatmap.png"),
    ]
    _show(result, as_json, "evaluation")
    _err.print(f"Wrote {directory / 'result.json'} and {', '.join(map(str, written))}", highlight=False)


@_on_model()
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write a copy of MODEL that has its means to this file."
)
@click.option("--force", is_flag=True, help="Replace a file at --out.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the gain by layer into this image file.")
@_json
def centre(
    model: str, n_gpu_layers: int, out: Path | None, force: bool, plot: Path | None, as_json: bool
) -> None:
    """What key centring does to MODEL, layer by layer.

    TQ caches store keys without what all keys of a head have in common, and give it back to the scores. The
    means are measured when a model is first used, and kept in the user's cache folder; a copy of the model
    that has them needs no such folder. The gain is the energy of the stored keys, and so of the noise in
    them, that this takes off.

    \b
    llama-tq centre model.gguf --out model-centred.gguf
    """
    from .commands.centre import centre as run
    from .views import plots

    result = run(model, out, force=force, n_gpu_layers=n_gpu_layers)
    _show(result, as_json, "centring")
    if plot:
        _err.print(f"Wrote {plots.gain(result, plot)}", highlight=False)


@_on_model()
@click.argument("prompt")
@_system
@_raw
@_pairs
@_tokens
@_json
def compare(
    model: str,
    n_gpu_layers: int,
    prompt: str,
    system: str | None,
    raw: bool,
    pairs,
    tokens: int,
    as_json: bool,
) -> None:
    """Answer PROMPT with f16 and with each pair, side by side.

    Through the model's chat template, if it has one, as `run` does. Always the most probable token. The first
    one that differs from f16's is marked. While they are written, the answers appear on standard error.

    \b
    llama-tq compare demo "def test_empty(self):" --pairs tq4_0,tq3_0
    """
    from .commands.compare import compare as run

    result = run(
        model,
        prompt,
        pairs,
        system=system,
        raw=raw,
        n_tokens=tokens,
        n_gpu_layers=n_gpu_layers,
        on_pair=lambda pair: click.echo(f"\n{pair}:", err=True),
        on_text=lambda piece: click.echo(piece, nl=False, err=True),
    )
    click.echo(err=True)
    _show(result, as_json, "comparison")


@_on_model()
@click.argument("prompt")
@_system
@_raw
@_type_k
@_type_v
@_tokens
@click.option("--ctx", type=int, help="Tokens of context.  [default: as many as needed]")
@_temperature
@_seed
@_json
def run(
    model: str,
    n_gpu_layers: int,
    prompt: str,
    system: str | None,
    raw: bool,
    type_k: str,
    type_v: str,
    tokens: int,
    ctx: int | None,
    temperature: float,
    seed: int,
    as_json: bool,
) -> None:
    """Answer PROMPT, and say how fast that was.

    The prompt goes through the model's chat template. With --raw, and in a model that has none, it is text to
    be continued.

    \b
    llama-tq run model.gguf "Why is the sky blue?" --type-k q8_0 --type-v tq4_0
    """
    from .commands.generate import generate
    from .runtime.pairs import Pair
    from .views import render

    stream = (lambda _: None) if as_json else (lambda piece: click.echo(piece, nl=False))
    result = generate(
        model,
        prompt,
        Pair(type_k, type_v),
        system=system,
        raw=raw,
        n_tokens=tokens,
        n_ctx=ctx,
        temperature=temperature,
        seed=seed,
        n_gpu_layers=n_gpu_layers,
        on_text=stream,
    )
    if as_json:
        _show(result, True, "generation")
    else:
        click.echo()
        _err.print(render.generation(result), highlight=False)


@_on_model()
@_system
@_type_k
@_type_v
@click.option(
    "-n", "--tokens", default=defaults.CHAT_TOKENS, show_default=True, help="Tokens of an answer, at most."
)
@click.option(
    "--ctx", type=int, help=f"Tokens of context.  [default: {defaults.CHAT_CTX}, or the model's if less]"
)
@_temperature
@_seed
@_json
def chat(
    model: str,
    n_gpu_layers: int,
    system: str | None,
    type_k: str,
    type_v: str,
    tokens: int,
    ctx: int | None,
    temperature: float,
    seed: int,
    as_json: bool,
) -> None:
    """Talk with MODEL, with a cache of chosen types.

    Ctrl-C stops an answer, Ctrl-D ends. Behind each answer, on standard error: how much of the context is
    used, the size of the cache, and the speed. From a pipe every line is a message.

    \b
    llama-tq chat smollm2 --type-k tq4_0 --type-v tq4_0
    """
    from .commands.chat import chat as talk_with
    from .runtime.pairs import Pair
    from .views import render

    answers, on_text = [], (lambda _: None) if as_json else (lambda piece: click.echo(piece, nl=False))
    how = {"n_ctx": ctx, "temperature": temperature, "seed": seed, "n_gpu_layers": n_gpu_layers}
    with talk_with(model, Pair(type_k, type_v), system=system, **how) as talk:
        for message in _messages():
            with _interruptible() as stop:
                answer = talk.ask(message, n_tokens=tokens, on_text=on_text, stop=stop)
            answers.append(answer)
            if not as_json:
                click.echo()
                _err.print(render.turn(answer), style="dim", highlight=False)
    if as_json:
        _show(tuple(answers), True, "turn")


def _messages() -> Iterator[str]:
    """Lines that are not empty: typed behind a prompt on a terminal, until Ctrl-D, or read from a pipe."""
    typed = sys.stdin.isatty()
    if typed:
        with contextlib.suppress(ImportError):  # not on Windows, whose terminal edits lines itself
            import readline  # noqa: F401 - gives input() a history
    while True:
        try:
            line = input("> " if typed else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            raise SystemExit(INTERRUPTED) from None
        if line.strip():
            yield line


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C only makes true what this yields: between two tokens is where an answer can stop."""
    pressed = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


@_on_model()
@click.option(
    "--depths",
    type=_Numbers(),
    help=f"Tokens in the cache.  [default: {','.join(map(str, defaults.DEPTHS))}, as far as they fit]",
)
@_pairs
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the speeds into this image file.")
@_json
def bench(model: str, n_gpu_layers: int, depths, pairs, plot: Path | None, as_json: bool) -> None:
    """Tokens per second against depth.

    Reading 512 tokens at once and writing 16 one by one with so many tokens in the cache already, median of
    3. Each is printed at once.

    \b
    llama-tq bench model.gguf --depths 0,8192,32768 --plot speed.png
    """
    from .commands.bench import bench as run
    from .views import plots, render

    with _progress() as progress:
        result = run(
            model,
            pairs,
            depths,
            n_gpu_layers=n_gpu_layers,
            progress=progress,
            on_speed=_at_once(render.speed),
        )
    _show(result, as_json, "bench")
    if plot:
        _err.print(f"Wrote {plots.speed(result, plot)}", highlight=False)


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1)
def convert(arguments: tuple[str, ...]) -> None:
    """Not needed: the cache is compressed, not the model.

    Whatever the ARGUMENTS, says so and what to run instead. Exit code 2, since no file has been written.
    """
    model = next((a for a in arguments if a.endswith(".gguf")), "MODEL")
    raise InputError(
        "Nothing needs converting: any GGUF model runs with a compressed cache as it is. "
        f"Run: llama-tq run {shlex.quote(model)} PROMPT --type-k tq4_0 --type-v tq4_0"
    )


def _text(model: str, path: Path | None) -> str:
    if path is None:
        shipped = sources.text_of(model)
        if shipped is None:
            raise InputError("There is no text to measure on. Give one with --text FILE.")
        return shipped
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}). Convert it first.") from None
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from None


if __name__ == "__main__":
    sys.exit(main())
