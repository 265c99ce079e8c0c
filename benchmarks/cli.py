"""The command line. What a command needs is imported when it runs: `crosslens --help` need not wait for PyTorch."""

from __future__ import annotations

import atexit
import gc
import sys
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""One Inspector interface over the interpretability libraries, and a benchmark of what each gets right and
what it costs.

Start here:

- `crosslens backends`: what is there, and what it can do
- `crosslens check hooks`: prove a backend against the oracle
- `crosslens run --suite smoke`: a first benchmark, in about a minute
- `crosslens run --out runs/first`: the default benchmark, on a real model
- `crosslens tables runs/first --format md`: its tables again
""",
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of tables.")]


def main() -> None:
    """Entry point of the console script; an error that crosslens raises on purpose is one line and exit status 2."""
    atexit.register(gc.freeze)  # a process that ends need not look for garbage: a second, that Ctrl-C would wait for
    try:
        app(prog_name="crosslens")
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        from crosslens.adapters import CrosslensError

        if not isinstance(error, CrosslensError):
            raise
        Console(stderr=True).print(f"crosslens: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"crosslens {version('crosslens')}")
        raise typer.Exit


@app.callback()
def common(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of crosslens itself."""


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the models known by name.

    A folder that `save_pretrained` wrote and a Hugging Face id (ORG/NAME) can be named wherever a model can.
    """
    from .listing import list_models

    list_models(as_json)


@app.command()
def backends(
    form: Annotated[str | None, typer.Option("--format", help="md, latex or json; else for this terminal.")] = None,
    outcomes: Annotated[
        Path | None,
        typer.Option(help="A folder that `check --save` wrote; else those that are shipped."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the backends, and what the conformance kit found that each can do.

    Every cell is what came of the checks that need it, on the version that is named; where it is not "yes" the reason
    is below. `crosslens check NAME` runs the checks again.
    """
    from .listing import list_backends

    list_backends("json" if as_json and form is None else form, outcomes)


@app.command()
def tasks(as_json: AsJson = False) -> None:
    """List the tasks that `crosslens run` runs."""
    from .listing import list_tasks

    list_tasks(as_json)


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="A backend; `crosslens backends` lists them.")],
    model: Annotated[
        list[str] | None, typer.Option(help="A tiny model to check on, such as tiny-llama; may be repeated; else all.")
    ] = None,
    only: Annotated[str | None, typer.Option("-k", help="Run only the checks whose id contains this text.")] = None,
    save: Annotated[
        Path | None, typer.Option(help="Keep the outcomes of the whole kit in this folder, for `backends --outcomes`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Prove a backend against the oracle, promise by promise.

    What a backend says it cannot do must fail: if it passes, its table of capabilities is out of date, and that counts
    as a failure too. Exit status 1 if anything fails.

    Examples:

    - `crosslens check nnsight`
    - `crosslens check hooks --model tiny-gpt2 -k padding`
    """
    from .checking import check_backend

    if not check_backend(name, model or (), only, as_json, save):
        raise typer.Exit(1)


@app.command()
def run(
    suite: Annotated[
        str | None,
        typer.Option(
            help="smoke: a tiny model, a minute; default: a real one, half an hour; full: and every study, hours."
        ),
    ] = None,
    backend: Annotated[list[str] | None, typer.Option(help="May be repeated; else all that are installed.")] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="May be repeated; else all. Your own is package.module:Class.")
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="May be repeated; else the suite's.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Processes for each cell; else as many as the suite has.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds that a cell may take; else the suite's limit.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the order of cells and of samples; else 0.")] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Cells at a time, each on cores of its own; else one a core, in full one alone.")
    ] = None,
    study: Annotated[
        list[str] | None,
        typer.Option(help="A study, such as mistakes or overhead; may be repeated. full has all of them."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda, or cuda:1, ...: where the models are; else cpu. On a GPU, one cell at a time."),
    ] = None,
    timing: Annotated[
        bool, typer.Option("--timing/--no-timing", help="Whether right results are timed; else they are judged alone.")
    ] = True,
    executor: Annotated[
        str | None,
        typer.Option(help="local: processes of this machine; ray: the nodes of a Ray cluster, crosslens on each."),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of the cluster's head, or local; else RAY_ADDRESS, the one here, or a new one."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A new or empty folder; else runs/DATE-TIME.")] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in --out, with its settings; --repeats and --study add."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run tasks through backends: is the result right, and what does it cost?

    Each (backend, task, model) has a process of its own; a crash is a result, and the run goes on. Everything is
    written to the folder as it finishes. Exit status 1 if a cell is wrong, vacuous or fails.

    Examples:

    - `crosslens run --suite smoke`
    - `crosslens run --backend hooks --backend nnsight --task ioi --repeats 3 --out runs/ioi`
    - `crosslens run --model my-folder/my-model --task characters`
    - `crosslens run --resume --out runs/ioi`
    - `crosslens run --resume --out runs/ioi --repeats 5 --study overhead`
    - `crosslens run --device cuda --task ioi`
    - `crosslens run --executor ray --ray-address 10.0.0.1:6379 --out runs/cluster`

    On Ray (`pip install 'crosslens[ray]'`) a cell that is timed has a node to itself, cells that are not share nodes,
    and those of a node that is lost run again. This process keeps the folder, and runs on a machine of the cluster.
    """
    from .commands import run_command

    if resume and out is None:
        from crosslens.adapters import InputError

        raise InputError("--resume needs --out, the folder of the run to go on with")
    chosen = out or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")
    status = run_command(
        suite,
        backend=backend or (),
        task=task or (),
        model=model or (),
        repeats=repeats,
        timeout=timeout,
        seed=seed,
        jobs=jobs,
        study=study or (),
        device=device,
        timing=timing,
        where=executor,
        ray_address=ray_address,
        out=chosen,
        resume=resume,
        as_json=as_json,
    )
    raise typer.Exit(status)


@app.command()
def tables(
    folder: Annotated[Path, typer.Argument(help="Of a run.")],
    form: Annotated[
        str | None, typer.Option("--format", help="md, csv, latex or json, on stdout; writes nothing.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Print the tables of a run again, from its raw figures, and write them to its tables folder.

    Examples:

    - `crosslens tables runs/first`
    - `crosslens tables runs/first --format latex > table.tex`
    """
    from .commands import tables_command

    tables_command(folder, "json" if as_json and form is None else form)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Of a run, finished or not.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page; an existing file is replaced.")] = Path(
        "report.html"
    ),
) -> None:
    """Write a run as one page that needs nothing else: tables, plots, maps, programs.

    It opens from disk, without a network. What the run lacks is left out, and a line says so.

    Examples:

    - `crosslens report runs/first -o report.html`
    """
    from .report import write_report

    print(f"{out}: {write_report(folder, out) / 1e6:.1f} MB")


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(help="Folder of a run, such as the committed one.")],
    second: Annotated[Path, typer.Argument(help="Folder of another, such as yours.")],
    as_json: Annotated[bool, typer.Option("--json", help="Every figure of both, with its verdict.")] = False,
) -> None:
    """Say which figures of two runs agree, differ within their intervals, or differ beyond them.

    Every table and study takes part. Exit status 1 where intervals do not overlap, or an outcome is another one.

    Examples:

    - `crosslens diff results/2026-11-26-amd-epyc-2-cores runs/mine`
    """
    from .commands import diff_command

    raise typer.Exit(diff_command(first, second, as_json))


@app.command()
def paper(
    results: Annotated[
        Path | None, typer.Option(help="Folder of a run; else the one in results/ that was started last.")
    ] = None,
    folder: Annotated[Path, typer.Option("--paper", help="Folder of the paper's sources.")] = Path("paper"),
    check: Annotated[bool, typer.Option("--check", help="Write nothing; say what differs.")] = False,
) -> None:
    """Render the paper's numbers, tables and figures from a run, or check that they are those of the run.

    Exit status 1 where something generated differs or is shown nowhere, a macro is unused or missing, or a number in
    the text is typed. `make paper` builds the pages.

    Examples:

    - `crosslens paper`
    - `crosslens paper --results runs/mine`
    - `crosslens paper --check`
    """
    from .paper.command import paper_command

    if not paper_command(results, folder, only_check=check):
        raise typer.Exit(1)


@app.command()
def compare(
    file: Annotated[Path, typer.Argument(help="csv, jsonl or parquet with the columns text and category.")],
    model: Annotated[str, typer.Option(help="A model; `crosslens models` lists those known by name.")] = "smollm2-135m",
    backend: Annotated[str, typer.Option(help="A backend that can read.")] = "hooks",
    site: Annotated[
        list[str] | None, typer.Option("--sites", help="Site or glob; may be repeated. Else residual, attention, MLP.")
    ] = None,
    kpi: Annotated[list[str] | None, typer.Option(help="A key figure; may be repeated; else all.")] = None,
    category: Annotated[list[str] | None, typer.Option(help="A category column; several are crossed.")] = None,
    text: Annotated[str, typer.Option(help="The column of texts.")] = "text",
    pair: Annotated[
        str | None, typer.Option(help="The column of items whose versions are compared; else pair, where there is one.")
    ] = None,
    direction: Annotated[
        list[str] | None,
        typer.Option("--directions", help="Site or glob whose directions are tested as well; may be repeated."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts of one forward.")] = 16,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest text that is accepted; else what the model takes.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A new or empty folder; else runs/compare-DATE-TIME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what --out holds.")] = False,
    permutations: Annotated[int, typer.Option(min=0, help="Relabellings behind the permutation p values.")] = 1000,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Replicas of the model on a Ray cluster that share the texts.")
    ] = None,
    executor: Annotated[
        str | None, typer.Option(help="local: this process; ray: a Ray cluster, one worker a node unless --workers.")
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of the cluster's head, or local; else RAY_ADDRESS, the one here, or a new one."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Where in a network do categories of prompts differ? An overview, before any hypothesis.

    Each text runs once; key figures of every site are taken for it, and categories are compared example by example. A
    column `pair` says which texts are versions of one item, and these are then compared in pairs.

    Examples:

    - `crosslens compare stories.csv`
    - `crosslens compare prompts.jsonl --model tiny-llama --sites 'blocks.*.resid_post' --out runs/mine`
    - `crosslens compare prompts.jsonl --workers 4 --ray-address 10.0.0.1:6379`

    With --workers the texts are shared out on a Ray cluster (`pip install 'crosslens[ray]'` on each node). The figures
    are those of one process, whatever the number of workers and whichever of them are lost on the way.
    """
    from .comparing import compare_command

    folder = out or Path("runs") / f"compare-{datetime.now():%Y%m%d-%H%M%S}"
    compare_command(
        file, model=model, backend=backend, sites=site or (), kpis=kpi or (), categories=category or (), text=text,
        pair=pair, directions=direction or (), batch_size=batch_size, max_tokens=max_tokens, out=folder, resume=resume,
        permutations=permutations, workers=workers, executor=executor, ray_address=ray_address, as_json=as_json,
    )  # fmt: skip


if __name__ == "__main__":
    main()
