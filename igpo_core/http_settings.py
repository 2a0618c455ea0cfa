"""How a service is called by HTTP: its address, its key, and the limits of its use (igpo_core/http.py calls it)."""

from ipaddress import ip_address
from typing import ClassVar
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from igpo_core.settings import Settings

KEY_VARIABLE = r"^[A-Z][A-Z0-9_]*_API_KEY$"  # else a preset of somebody else could send any variable anywhere


class HttpSettings(Settings):
    """How a service is called (igpo_core/http.py). A key goes to `url` from the variable `key_variable`: who writes a
    specification says what is sent where, within these limits."""

    rest_of_a_query: ClassVar[str] = ""
    """Where a service takes what people write into an address's query, as the refusal of such an address goes on."""

    url: str = Field(pattern=r"^https?://", description="Where it answers.")
    key_variable: str = Field(pattern=KEY_VARIABLE, description="Environment variable that holds the key: ..._API_KEY.")
    concurrency: int = Field(16, ge=1, le=1024, description="Calls at a time, of a process.")
    rate: float | None = Field(None, gt=0, description="Calls a second, of all processes together.")
    timeout: float = Field(20.0, gt=0, description="Seconds for one call.")
    attempts: int = Field(4, ge=1, le=20, description="Calls for one answer, where the failure may pass.")
    max_bytes: int = Field(2_000_000, ge=1000, description="Of an answer.")
    max_calls: int = Field(100_000, ge=1, description="Calls in all, shared by all processes.")

    @property
    def sends_key(self) -> bool:
        """Whether the key goes with every call."""
        return True

    @property
    def within_machine(self) -> bool:
        """Whether the address is of this machine."""
        return _is_loopback(urlsplit(self.url).hostname or "")

    @model_validator(mode="after")
    def _keeps_secrets(self) -> "HttpSettings":
        try:
            address = urlsplit(self.url)
            host = address.hostname
        except ValueError as error:
            raise ValueError(f"url is no address ({error}): give it as https://<host>/<path>") from error
        if "@" in address.netloc or {"?", "#"} & set(self.url):
            raise ValueError(
                "a user, a password or a query in an address would be logged with the settings: leave them out, put the key "
                f"into the variable that key_variable names{self.rest_of_a_query}"
            )
        if not host:
            raise ValueError(f"url={self.url} names no host: give it as https://<host>/<path>")
        if self.sends_key and address.scheme == "http" and not _is_loopback(host):
            raise ValueError(
                f"url={self.url} would carry the key in {self.key_variable} in clear through the network: give an https "
                "address, or one of this machine (http://127.0.0.1:..), as an SSH tunnel has it"
            )
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"
