"""The command of a sweep: python -m flows.ablation PRESET."""

import argparse
import sys
from datetime import datetime
from typing import get_args

from flows.ablation import ablation
from flows.children import Where
from igpo_core.errors import IgpoError
from tasks.lab.account import drop_what_servers_need
from tasks.lab.home import home, open_home
from tasks.lab.servers import require_servers
from tasks.lab.terminal import show_progress
from tasks.runs.asked import Ending, require_one_cell
from tasks.runs.work import add_parts
from tasks.specification.presets import resolve


def _endings(text: str) -> list[str]:
    odd = [name for name in text.split(",") if name not in get_args(Ending)]
    if odd:
        raise argparse.ArgumentTypeError(f"{', '.join(odd)}: give some of {', '.join(get_args(Ending))}, as base,last")
    return text.split(",")


def main(arguments: list[str]) -> int:
    """python -m flows.ablation PRESET [--arms a,b] [--seeds 0,1] [--processes N] [--where processes|pool] [--set PATH=VALUE]
    [--evaluate base,start,last,best]"""
    from prefect.exceptions import PrefectHTTPStatusError

    parser = argparse.ArgumentParser(
        prog="python -m flows.ablation", description="Compare the arms of a preset: docs/operate.md."
    )
    parser.add_argument("preset", nargs="?", default="outcome-vs-igpo")
    add_parts(parser)
    parser.add_argument("--where", choices=get_args(Where), default="processes", help="where the arms run")
    parser.add_argument(
        "--evaluate", type=_endings, help="compared at the end, the first with the others: base,start,last,best"
    )
    chosen = parser.parse_args(arguments)
    changes = dict(chosen.set) or None
    try:
        log = open_home() / "logs"
        specification = resolve(
            chosen.preset, changes, chosen.arms, chosen.seeds
        ).specification  # before any run exists
        if chosen.evaluate:
            require_one_cell(specification)
        drop_what_servers_need()
        require_servers()
        log /= f"{specification.name}-{datetime.now():%Y%m%d-%H%M%S}.log"
        print(f"Every line that Prefect logs goes to {log}\n", flush=True)
        show_progress(log)
        outcome = ablation(
            chosen.preset, chosen.arms, chosen.seeds, chosen.processes, chosen.where, changes, chosen.evaluate
        )
    except IgpoError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except PrefectHTTPStatusError as error:
        print(
            f"\nThe Prefect server does not serve: {error}\nIts log is in {home() / 'logs'}; a full disk is the usual reason. "
            "Then start again: what is finished is reused.",
            file=sys.stderr,
        )
        return 1
    return 1 if outcome["failed"] else 0
