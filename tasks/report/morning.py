"""What a night says in the morning: one message for each way in which it can end."""

from collections.abc import Sequence
from datetime import datetime

from igpo_core.errors import IgpoError
from tasks.report.messages import Message
from tasks.report.nights import Verdict
from tasks.report.standing import Change, Study
from tasks.report.wording import counted, literal


def progress(study: Study, sweep: str, made: Sequence[int], done: int) -> Message:
    """Return what an interim night says: how far the study is, and no difference."""
    total = len(study.seeds)
    nights = -(-(total - done) // study.a_night)
    return Message(
        f"{study.name}: {done} of {total} seeds",
        f"{_seeds(made)} {_were(made)} finished: {done} of {total} seeds of {sweep} are there. "
        f"{counted(nights, 'more night')} to the verdict, which comes once, with the last seed. No difference is reported "
        "before: who looks at every interim result finds too many.",
    )


def verdict(study: Study, sweep: str, answer: str, warnings: Sequence[str], report: str) -> Message:
    """Return what the night of the last seed says. warnings: of the report."""
    total = len(study.seeds)
    warned = "".join(f"Warning: {line}\n\n" for line in warnings)
    return Message(
        f"{study.name}: the verdict of {total} seeds",
        f"{answer}\n\n{warned}The study {sweep} is complete: {total} seeds, as fixed before the first. From now on a night runs "
        f"{_seeds(study.checks, start='s')} again when code, data or a package that computes has changed.\n\nReport: {report}",
    )


def nothing(study: Study, found: Verdict, check: str) -> Message:
    """Return what a night without anything to do says. check: what the check of the code and data of now said, if any."""
    parts = [
        f"Nothing changed since the {'last check' if check else 'verdict'}, and nothing was run.",
        *([f"The last check: {check}"] if check else []),
        f"The verdict of {found.made:%d %B %Y}: {found.answer}",
        f"Report: {found.url}",
    ]
    return Message(f"{study.name}: nothing to do", "\n\n".join(parts))


def checked(study: Study, found: Verdict, changed: Sequence[str], changes: Sequence[Change], again: str) -> str:
    """Return what the check seeds say of the verdict. again: the command that makes the whole study anew."""
    moved = list(dict.fromkeys(change.arm for change in changes if change.moved))
    parts = [
        f"Since the verdict of {found.made:%d %B %Y} these changed: {_listed(changed)}. {_seeds(study.checks)} "
        f"{_were(study.checks)} run again."
    ]
    if all(change.identical for change in changes):
        parts.append("Every test score is the one of the study, to the last digit.")
    else:
        parts += [_compared(study, change) for change in changes]
    if moved:
        parts.append(
            f"THE VERDICT MOVED for {', '.join(moved)} and may hold no longer. To run the whole study on what is there now: "
            f"{again}"
        )
    else:
        parts.append("The verdict stands.")
    return "\n\n".join(parts)


def check(study: Study, found: Verdict, changes: Sequence[Change], said: str) -> Message:
    """Return what a night says that ran the check seeds again. said: by `checked`."""
    moved = any(change.moved for change in changes)
    return Message(
        f"{study.name}: {'THE VERDICT MOVED' if moved else 'the verdict stands'}",
        f"{said}\n\nThe verdict: {found.answer}\n\nReport: {found.url}",
    )


def failed(name: str, error: Exception, again: str) -> Message:
    """Return what a night says that failed. again: the command that starts it.

    An error of another library is named by its kind alone: its words may hold an address with a password.
    """
    why = str(error) if isinstance(error, IgpoError) else f"{type(error).__name__}, which its log tells more of."
    return Message(
        f"{name}: the night FAILED",
        f"{why}\n\nWhat is finished is kept. The next night goes on from there; to go on now: {again}",
    )


def with_details(message: Message, night: datetime, deleted: str, page: str) -> Message:
    """Return the message with the lines that every one ends with."""
    details = [f"Night of {night:%d %B %Y}", *([f"deleted: {deleted}"] if deleted else []), page]
    return Message(f"igpo-lab, {message.subject}", f"{message.body}\n\n{'. '.join(details)}")


def page(message: Message) -> str:
    """Return the message as markdown: a title, then lines of text. They may quote a data row, so nothing in them is markup."""
    return "\n".join([f"# {literal(message.subject)}", "", *map(literal, message.body.split("\n"))])


def _compared(study: Study, change: Change) -> str:
    cell = f" ({change.cell})" if change.cell else ""
    return (
        f"{change.arm}{cell}: its difference in the test score on these seeds was {change.before:+.3f} in the study and is "
        f"{change.now:+.3f}. Two groups of {len(study.checks)} of the study's seeds differ by up to {change.limit:.3f}: "
        f"{'more than chance does' if change.moved else 'no more than chance does'}."
    )


def _seeds(seeds: Sequence[int], start: str = "S") -> str:
    """Seed 3, Seeds 3 and 4."""
    if len(seeds) == 1:
        return f"{start}eed {seeds[0]}"
    return f"{start}eeds {', '.join(map(str, seeds[:-1]))} and {seeds[-1]}"


def _were(seeds: Sequence[int]) -> str:
    return "was" if len(seeds) == 1 else "were"


def _listed(changed: Sequence[str], most: int = 6) -> str:
    more = f" and {len(changed) - most} more" if len(changed) > most else ""
    return ", ".join(changed[:most]) + more if changed else "nothing that versions.json tells"
