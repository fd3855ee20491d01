"""How is a failed request explained to the user? Texts of servers are made harmless for terminals."""

from __future__ import annotations

import os
import ssl

import httpx
import msgspec
from msgspec import Struct

from ..oci.errors import RegistryError
from .endpoints import Endpoint
from .messages import Answer, origin_of

MAX_COMPLAINT = 1 << 16
"""Bytes of the body of an error response that are read."""


class _Complaint(Struct):
    """One error in the body of a registry's answer (distribution specification, Error Codes)."""

    code: str | None = None
    message: str | None = None


class _Complaints(Struct):
    errors: list[_Complaint] = []


def refusal(answer: Answer, who: str) -> RegistryError:
    """The error for an unexpected response."""
    return RegistryError(f"{who} answers {answer.status}: {complaint(answer)}", answer.status)


def complaint(answer: Answer) -> str:
    """The reason that the server gives."""
    try:
        errors = msgspec.json.decode(answer.body, type=_Complaints).errors
    except (msgspec.MsgspecError, UnicodeDecodeError):
        errors = []
    said = "; ".join(text for error in errors if (text := error.message or error.code or ""))
    return printable(said) or httpx.codes.get_reason_phrase(answer.status) or "no reason given"


def printable(text: str) -> str:
    """At most 200 characters of a server's text, without control characters."""
    text = text[:200]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def explain(error: httpx.TransportError, url: httpx.URL, endpoint: Endpoint) -> RegistryError:
    """Why a request got no answer, and what to do about it."""
    who = str(origin_of(url))
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            advice = "name its authority with --ca"
            return RegistryError(f"{who}: its certificate is not trusted ({cause.verify_message}); {advice}")
        if isinstance(cause, ssl.SSLError) and cause.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
            advice = "; --insecure allows that" if endpoint.is_loopback else ""
            return RegistryError(f"{who} does not speak TLS{advice}")
    if isinstance(error, httpx.TimeoutException):
        return RegistryError(f"{who} does not answer in time")
    text = next((said for cause in causes if (said := _strerror(cause))), str(error) or type(error).__name__)
    return RegistryError(f"{who}: {printable(text)}")


def _causes(error: BaseException) -> list[BaseException]:
    """An error and its chain of causes; of an exception group the first member."""
    found: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in found:
        found.append(at)
        at = at.exceptions[0] if isinstance(at, BaseExceptionGroup) else at.__cause__ or at.__context__
    return found


def _strerror(error: BaseException) -> str:
    """The message of a system call or the resolver, without the addresses that trio adds."""
    if not isinstance(error, OSError) or error.errno is None:
        return ""
    return os.strerror(error.errno) if error.errno > 0 else error.strerror or ""
