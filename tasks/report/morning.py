"""What a night says in the morning: one message for each way in which it can end."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from igpo_core.errors import IgpoError
from tasks.report.messages import Message
from tasks.report.nights import Progress, Verdict
from tasks.report.standing import Change, Study, level_of
from tasks.report.wording import counted, literal


def progress(study: Study, sweep: str, made: Sequence[int], done: int, anew: str) -> Message:
    """Return what an interim night says: how far the study is, and no difference. anew: by `restarted` or `made_anew`."""
    total = len(study.seeds)
    nights = -(-(total - done) // study.a_night)
    return Message(
        f"{study.name}: {done} of {total} seeds",
        f"{_before(anew)}{_seeds(made)} {_were(made)} finished: {done} of {total} seeds of {sweep} are there. "
        f"{counted(nights, 'more night')} to the verdict, which comes once, with the last seed. No difference is reported "
        "before: who looks at every interim result finds too many.",
    )


def verdict(study: Study, sweep: str, answer: str, warnings: Sequence[str], report: str, anew: str) -> Message:
    """Return what the night of the last seed says. warnings: of the report; anew: by `restarted` or `made_anew`."""
    total = len(study.seeds)
    warned = "".join(f"Warning: {line}\n\n" for line in warnings)
    return Message(
        f"{study.name}: the verdict of {total} seeds",
        f"{answer}\n\n{warned}{_before(anew)}The study {sweep} is complete: {total} seeds, as fixed before the first, and none "
        f"of them the preset's own. From now on a night runs {_seeds(study.checks, start='s')} again when code, data or a "
        f"package that computes has changed.\n\nReport: {report}",
    )


def restarted(before: Progress, total: int, changed: Sequence[str]) -> str:
    """Return why a study has fewer seeds than after the night before. changed: what is not what it was, in words."""
    why = (
        f"these changed: {_listed(changed)}" if changed else "their folders in runs/ are gone, and nothing else changed"
    )
    return (
        f"The study BEGINS ANEW: the {before.finished} of {total} seeds of {before.sweep} that were there after the last night "
        f"do not count any more, for {why}."
    )


def made_anew(found: Verdict) -> str:
    """Return why a study that had its verdict is made once more."""
    return f"The study is made anew, for its verdict of {found.made:%d %B %Y} moved."


def _before(anew: str) -> str:
    return f"{anew}\n\n" if anew else ""


def nothing(study: Study, found: Verdict, check: str) -> Message:
    """Return what a night without anything to do says. check: what the check of the code and data of now said; empty where
    they are those of the verdict."""
    parts = [
        f"Nothing changed since the {'last check' if check else 'verdict'}, and nothing was run.",
        *([f"The last check: {check}"] if check else []),
        f"The verdict of {found.made:%d %B %Y}: {found.answer}",
        f"Report: {found.url}",
    ]
    return Message(f"{study.name}: nothing to do", "\n\n".join(parts))


def checked(study: Study, found: Verdict, changed: Sequence[str], changes: Sequence[Change]) -> str:
    """Return what the check seeds say of the verdict."""
    parts = [
        f"Since the verdict of {found.made:%d %B %Y} these changed: {_listed(changed)}. {_seeds(study.checks)} "
        f"{_were(study.checks)} run again."
    ]
    if all(change.identical for change in changes):
        parts.append("Every test score is the one of the study, to the last digit.")
    else:
        parts += [_compared(change, level_of(len(changes))) for change in changes]
    moved, open_ = _arms(change for change in changes if change.moved), _arms(_untold(changes))
    if moved:
        parts.append(
            f"THE VERDICT MOVED for {moved} and may hold no longer. From the next night on the study is made anew on what is "
            f"there now, {counted(study.a_night, 'seed')} a night; {len(study.checks)} of {len(study.seeds)} are there. To keep "
            "the verdict instead, undo the change."
        )
    elif open_:
        parts.append(
            "No change was shown, which does not mean that there is none: the check seeds cannot tell whether the verdict "
            f"stands for {open_}. More check_seeds see smaller changes."
        )
    else:
        parts.append("The verdict stands.")
    return "\n\n".join(parts)


def check(study: Study, found: Verdict, changes: Sequence[Change], said: str) -> Message:
    """Return what a night says that ran the check seeds again. said: by `checked`."""
    if any(change.moved for change in changes):
        title = "THE VERDICT MOVED"
    else:
        title = "no change shown" if _untold(changes) else "the verdict stands"
    return Message(f"{study.name}: {title}", f"{said}\n\nThe verdict: {found.answer}\n\nReport: {found.url}")


def failed(name: str, error: Exception, again: str) -> Message:
    """Return what a night says that failed. again: the command that starts it."""
    return Message(
        f"{name}: the night FAILED",
        f"{reason(error)}\n\nWhat is finished is kept. The next night goes on from there; to go on now: {again}",
    )


def reason(error: Exception) -> str:
    """Return why something failed. An error of another library is named by its kind alone: its words may hold an address with
    a password."""
    return str(error) if isinstance(error, IgpoError) else f"{type(error).__name__}, which its log tells more of."


def with_warning(message: Message, warning: str) -> Message:
    """Return the message with a loud line at its end: why it is read here and nowhere else."""
    return Message(message.subject, f"{message.body}\n\nWARNING: {warning}")


def with_details(message: Message, night: datetime, deleted: str, page: str) -> Message:
    """Return the message with the lines that every one ends with."""
    details = [f"Night of {night:%d %B %Y}", *([f"deleted: {deleted}"] if deleted else []), page]
    return Message(f"igpo-lab, {message.subject}", f"{message.body}\n\n{'. '.join(details)}")


def page(message: Message) -> str:
    """Return the message as markdown: a title, then lines of text. They may quote a data row, so nothing in them is markup."""
    return "\n".join([f"# {literal(message.subject)}", "", *map(literal, message.body.split("\n"))])


def _untold(changes: Sequence[Change]) -> list[Change]:
    """Those of which the check seeds tell neither that their effect moved nor that it stands."""
    return [change for change in changes if not (change.moved or change.stands)]


def _arms(changes: Iterable[Change]) -> str:
    return ", ".join(map(_arm, changes))


def _arm(change: Change) -> str:
    return f"{change.arm} ({change.cell})" if change.cell else change.arm


def _compared(change: Change, level: float) -> str:
    if change.identical:
        return f"{_arm(change)}: every test score is the one of the study, to the last digit."
    told = (
        f"{_arm(change)}: its difference in the test score on these seeds was {change.before:+.3f} in the study and is "
        f"{change.now:+.3f}. Seed by seed it changed by {change.by:+.3f} ({100 * level:.4g}% interval {change.low:+.3f} to "
        f"{change.high:+.3f})"
    )
    if change.moved:
        return f"{told}: more than chance does."
    unseen = f"{told}. No change was shown, and one below {change.unseen:.3f} cannot be seen on these seeds"
    if change.stands:
        return f"{unseen}; that the study's difference of {change.effect:+.3f} is gone is ruled out."
    return f"{unseen}: the study's difference of {change.effect:+.3f} may be gone."


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
