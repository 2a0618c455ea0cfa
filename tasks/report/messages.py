"""One message through a Prefect block of the user's choice: Slack, a webhook and the like, or mail.

A block is named by its slug, as slack-webhook/my-team. Its address and password stay in the block: what is said of a message
that could not be sent names neither, for both would stand in a log.
"""

import logging
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import EmailMessage
from typing import Any

from igpo_core.errors import ConfigError, ServiceError

MAIL = "email-server-credentials"
ADDRESS = re.compile(r"[^@\s,]+@[^@\s,]+", re.ASCII)
SECONDS = 30.0  # a mail server that accepts the connection and says nothing


@dataclass(frozen=True)
class Message:
    """A message in plain text."""

    subject: str
    body: str


class NotSent(ServiceError):
    """A message that its receiver did not take."""


@dataclass(frozen=True)
class Notification:
    """Messages through one of Prefect's notification blocks."""

    block: Any

    def send(self, message: Message) -> None:
        """Send it. Raises NotSent."""
        try:
            with _quiet(), self.block.raise_on_failure():  # without the second a refusal passes in silence
                self.block.notify(message.body, message.subject)
        except Exception as error:  # every block has its own kinds of error
            raise NotSent(_reason(error)) from None


@dataclass(frozen=True)
class Mail:
    """Messages through the mail server of a block EmailServerCredentials, to one address or several with commas between."""

    block: Any
    to: str

    def send(self, message: Message) -> None:
        """Send it. Raises NotSent."""
        name = self.block.username or ""
        try:
            letter = EmailMessage()
            letter["Subject"] = message.subject
            letter["From"] = name if "@" in name else self.to.split(",")[0]  # a login that is no address
            letter["To"] = self.to
            letter.set_content(message.body)
            with _patience(SECONDS), self.block.get_server() as server:
                server.send_message(letter)
        # smtplib's errors are OSErrors; a header with a line break or a password beyond ASCII is a ValueError
        except (OSError, ValueError) as error:
            raise NotSent(_reason(error)) from None


Channel = Notification | Mail


def open_channel(notify: str, mail_to: str) -> Channel | None:
    """Return the channel of the block that `notify` names; None where it names none.

    Raises ConfigError, with the command that makes the block, where there is no such block or kind of block.
    """
    if bool(mail_to) != notify.startswith(f"{MAIL}/"):
        raise ConfigError(
            f"notify={notify!r} and mail_to={mail_to!r}: an address belongs to a mail server, and a mail server needs one. Give "
            f"both, as notify={MAIL}/lab and mail_to=me@example.org, or another block and no address"
        )
    if not notify:
        return None
    odd = [address for address in filter(None, mail_to.split(",")) if not ADDRESS.fullmatch(address.strip())]
    if odd:
        raise ConfigError(
            f"mail_to={mail_to!r}: {', '.join(odd)} is no address. Give one, or several with commas between"
        )
    kinds = _kinds()
    kind, _, name = notify.partition("/")
    if kind not in {*kinds, MAIL} or not name:
        raise ConfigError(
            f"notify={notify!r} names no block: give <kind>/<name>, as slack-webhook/my-team; kinds are "
            f"{', '.join(sorted({*kinds, MAIL}))}"
        )
    if kind == MAIL:
        return Mail(_load(_mail_block(), notify, "prefect block register -m prefect_email && "), mail_to)
    block = _load(kinds[kind], notify, "")
    _require_body(block, notify)
    return Notification(block)


def _kinds() -> dict[str, Any]:
    """Prefect's notification blocks by the first part of their slugs."""
    from abc import ABC

    from prefect.blocks import notifications
    from prefect.blocks.abstract import NotificationBlock

    found = [
        one for one in vars(notifications).values() if isinstance(one, type) and issubclass(one, NotificationBlock)
    ]
    return {one.get_block_type_slug(): one for one in found if ABC not in one.__bases__}


def _mail_block() -> Any:
    try:
        from prefect_email import EmailServerCredentials
    except ModuleNotFoundError as error:
        raise ConfigError(f"notify={MAIL}/..: prefect-email is not installed: pip install -e '.[mail]'") from error
    return EmailServerCredentials


def _load(block: Any, slug: str, before: str) -> Any:
    from prefect.exceptions import ObjectNotFound

    kind, name = slug.split("/", 1)
    try:
        return block.load(name)
    except ValueError as error:
        if not isinstance(error.__cause__, ObjectNotFound):
            raise
        raise ConfigError(
            f"notify={slug}: the Prefect server has no such block. Make one: {before}prefect block create {kind}, which prints "
            f"the address of a form; name it {name} there"
        ) from error


def _require_body(block: Any, slug: str) -> None:
    """Raise ConfigError for a custom webhook whose request has no place for the message: it would arrive empty."""
    from prefect.blocks.notifications import CustomWebhookNotificationBlock

    if isinstance(block, CustomWebhookNotificationBlock):
        places = [block.url, block.params, block.json_data, block.form_data]
        if not any(re.search(r"\{\{\s*body\s*\}\}", str(place)) for place in places):
            raise ConfigError(
                f"notify={slug}: its request has no {{{{body}}}}, so that the message would arrive empty. Set its JSON data, as "
                '{"text": "{{subject}}\\n{{body}}"}'
            )


def _reason(error: Exception) -> str:
    """What went wrong, without the error's own words: they may hold an address that is a secret."""
    import smtplib

    import httpx

    match error:
        case httpx.HTTPStatusError():
            return f"the receiver answered {error.response.status_code}"
        case smtplib.SMTPResponseException():
            return f"the mail server answered {error.smtp_code}"
        case OSError() if error.strerror:
            return error.strerror
        case _:
            return f"the receiver did not take it ({type(error).__name__})"


@contextmanager
def _quiet() -> Iterator[None]:
    """Let HTTP clients log warnings alone meanwhile: below them they name whole addresses, which are secrets here."""
    loggers = [logging.getLogger(name) for name in ("httpx", "httpcore", "apprise", "urllib3", "requests")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Let connections that are opened meanwhile wait no longer for an answer; smtplib asks for no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
