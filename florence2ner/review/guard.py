"""Who may talk to the review page: a token that becomes a cookie, the Host and Origin of requests, and headers.

The page is for one person on this machine. Other users of the machine, other machines, and other pages in the same
browser (by requests across sites, or by a name that is made to lead here) must get nothing and change nothing.
"""

import hmac
import ipaddress
import secrets
import socket
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, QueryParams
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SAFE = ("GET", "HEAD")
_NAMES = ("127.0.0.1", "localhost", "[::1]")
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """ASGI middleware that answers only those who have been given the token."""

    def __init__(self, app: ASGIApp, *, host: str, port: int, token: str) -> None:
        self._app = app
        self._token = token
        self._cookie = f"florence2ner-review-{port}"  # browsers send cookies to every port of a host
        self._session = secrets.token_urlsafe(32)
        self._port = port
        self._is_open = host in ("", "0.0.0.0", "::")  # to all addresses of this machine
        named = {name.lower() for name in (socket.gethostname(), socket.getfqdn())} if self._is_open else {host.lower()}
        self._hosts = {*_NAMES, *named, f"[{host.lower()}]"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message["headers"]}
                more = {"cache-control": "no-store", **_HEADERS}
                message["headers"] = [
                    *message["headers"],
                    *((k.encode(), v.encode()) for k, v in more.items() if k.encode() not in given),
                ]
            await send(message)

        refusal = self._refuse(scope, headers)
        await (refusal or self._app)(scope, receive, send_safely)

    def _refuse(self, scope: Scope, headers: Headers) -> Response | None:
        """The answer to who may not come in, or comes with the token; None: the request is to be passed on."""
        if not self._is_host(headers.get("host", "")):
            return PlainTextResponse("This is not the address of the review.", 400)
        token = QueryParams(scope["query_string"]).get("token")
        if scope["path"] == "/" and scope["method"] in _SAFE and token is not None:
            if not _equal(token, self._token):
                return PlainTextResponse("The token is wrong: open the address that florence2ner printed.", 403)
            inside = RedirectResponse("/", 303)
            inside.set_cookie(self._cookie, self._session, path="/", httponly=True, samesite="strict")
            return inside
        if not self._has_cookie(headers):
            return PlainTextResponse("Open the address that florence2ner printed, with its token.", 403)
        if scope["method"] not in _SAFE and not self._is_same_origin(headers):
            return PlainTextResponse("Changes are made from the review page only.", 403)
        return None

    def _is_host(self, host: str) -> bool:
        name, _, port = host.lower().rpartition(":")
        if port != str(self._port):
            return False
        if name in self._hosts:
            return True
        if not self._is_open:
            return False
        try:  # a name could be made to lead here by whoever owns it, an address can't
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True

    def _has_cookie(self, headers: Headers) -> bool:
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            return False
        return morsel is not None and _equal(morsel.value, self._session)

    @staticmethod
    def _is_same_origin(headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is None:
            return headers.get("sec-fetch-site") == "same-origin"
        return origin.lower() == f"http://{headers['host'].lower()}"


def _equal(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), expected.encode())
