"""The night's message through real receivers on loopback: HTTP and SMTP. What is refused, and what a failure says."""

import json
import logging
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword
from prefect.blocks.notifications import CustomWebhookNotificationBlock, MattermostWebhook, SlackWebhook
from prefect_email import EmailServerCredentials

from igpo_core.errors import ConfigError
from tasks.report.messages import Mail, Message, Notification, NotSent, _require_body, open_channel

MESSAGE = Message("igpo-lab, lookup: the verdict of 7 seeds", "igpo is better: +0.362.\n\nSeeds 1 → 2 – “q”.")
SECRET = "T0KEN-that-nobody-may-read"


class Receiver(HTTPServer):
    """Keeps what it was sent; answers with `status`."""

    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[tuple[str, Any]] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Receiver)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, json.loads(body)))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def http() -> Iterator[Receiver]:
    with Receiver() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class Post:
    """Keeps the letters that a mail server takes, and who logged in."""

    def __init__(self) -> None:
        self.letters: list[Any] = []
        self.users: list[bytes] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.letters.append(envelope)
        return "250 taken"

    def authenticate(self, server: Any, session: Any, envelope: Any, mechanism: str, data: LoginPassword) -> AuthResult:
        if data.password != SECRET.encode():
            return AuthResult(success=False, handled=False)
        self.users.append(data.login)
        return AuthResult(success=True)


@pytest.fixture
def smtp() -> Iterator[tuple[Post, int]]:
    post = Post()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    there = {"hostname": "127.0.0.1", "port": port}
    controller = Controller(post, **there, authenticator=post.authenticate, auth_require_tls=False)
    controller.start()
    yield post, port
    controller.stop()


def mail(port: int, to: str = "a@example.org", **login: str) -> Mail:
    block = EmailServerCredentials(smtp_server="127.0.0.1", smtp_port=port, smtp_type="INSECURE", **login)
    return Mail(block, to)


def webhook(address: str) -> CustomWebhookNotificationBlock:
    return CustomWebhookNotificationBlock(
        name="ours",
        url=f"http://{address}/{{{{token}}}}",
        json_data={"text": "{{subject}}\n{{body}}"},
        secrets={"token": SECRET},
    )


def test_a_webhook_is_sent_subject_and_body(http: Receiver) -> None:
    Notification(webhook(http.address)).send(MESSAGE)
    assert http.received == [(f"/{SECRET}", {"text": f"{MESSAGE.subject}\n{MESSAGE.body}"})]


def test_a_chat_is_sent_subject_and_body(http: Receiver) -> None:
    block = MattermostWebhook(hostname="127.0.0.1", port=http.server_address[1], secure=False, token=SECRET)
    Notification(block).send(MESSAGE)
    ((path, content),) = http.received
    assert path == f"/hooks/{SECRET}" and MESSAGE.subject in content["text"] and MESSAGE.body in content["text"]


def test_slack_is_sent_subject_and_body(http: Receiver) -> None:
    """Slack's own addresses lie outside of this machine: its block is given apprise's plain form of an HTTP receiver."""
    Notification(SlackWebhook(url=f"json://{http.address}/hook")).send(MESSAGE)
    ((path, content),) = http.received
    assert (path, content["title"], content["message"]) == ("/hook", MESSAGE.subject, MESSAGE.body)


def test_a_mail_has_subject_body_and_the_login_as_its_sender(smtp: tuple[Post, int]) -> None:
    from email import message_from_bytes, policy

    post, port = smtp
    mail(port, "a@example.org, b@example.org", username="lab@example.org", password=SECRET).send(MESSAGE)
    (envelope,) = post.letters
    assert (envelope.mail_from, envelope.rcpt_tos) == ("lab@example.org", ["a@example.org", "b@example.org"])
    letter = message_from_bytes(envelope.content, policy=policy.default)
    assert letter["Subject"] == MESSAGE.subject and letter["From"] == "lab@example.org"
    assert letter.get_content().rstrip().replace("\r\n", "\n") == MESSAGE.body
    assert post.users == [b"lab@example.org"] and SECRET.encode() not in envelope.content


def test_a_mail_without_a_login_is_from_its_receiver(smtp: tuple[Post, int]) -> None:
    post, port = smtp
    mail(port).send(MESSAGE)
    assert post.letters[0].mail_from == "a@example.org"


def test_a_failure_is_told_without_secrets(
    http: Receiver, smtp: tuple[Post, int], caplog: pytest.LogCaptureFixture
) -> None:
    """Refused by the receiver, no receiver, a wrong password: the reason, and neither the address nor the password."""
    http.status = 403
    closed = "127.0.0.1:9"
    cases = [
        (Notification(webhook(http.address)), "the receiver answered 403"),
        (Notification(webhook(closed)), "ConnectError"),
        (Notification(SlackWebhook(url=f"json://{http.address}/{SECRET}")), "NotificationError"),
        (Notification(SlackWebhook(url=f"json://{closed}/{SECRET}")), "NotificationError"),
        (mail(smtp[1], username="lab", password=f"{SECRET}-not"), "the mail server answered 535"),
        (mail(9), "Connection refused"),
    ]
    with caplog.at_level(logging.DEBUG):
        for channel, reason in cases:
            with pytest.raises(NotSent) as raised:
                channel.send(MESSAGE)
            assert reason in str(raised.value)
            assert SECRET not in str(raised.value) and raised.value.__suppress_context__
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("notify", "mail_to", "message"),
    [
        ("slack", "", "kinds are custom-webhook, discord-webhook, email-server-credentials"),
        ("slack-webhook", "", "give <kind>/<name>"),
        ("slack-webhook/", "", "give <kind>/<name>"),
        ("s3-bucket/lab", "", "kinds are"),
        ("", "a@example.org", "an address belongs to a mail server"),
        ("slack-webhook/lab", "a@example.org", "an address belongs to a mail server"),
        ("email-server-credentials/lab", "", "a mail server needs one"),
        ("email-server-credentials/lab", "a@example.org, me", "me is no address"),
        ("email-server-credentials/lab", "a@example.org\nBcc: b@example.org", "is no address"),
    ],
)
def test_a_block_that_cannot_be_is_refused(notify: str, mail_to: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_channel(notify, mail_to)


def test_no_block_is_no_channel() -> None:
    assert open_channel("", "") is None


def test_a_webhook_without_a_place_for_the_message_is_refused() -> None:
    _require_body(webhook("127.0.0.1:9"), "custom-webhook/ours")
    empty = CustomWebhookNotificationBlock(name="ours", url="http://127.0.0.1:9", json_data={"text": "{{subject}}"})
    with pytest.raises(ConfigError, match="would arrive empty"):
        _require_body(empty, "custom-webhook/ours")
