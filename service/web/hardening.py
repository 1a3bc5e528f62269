"""What browsers may do with an answer, which origins may ask, and which proxies are believed."""

from flask import Flask, Response
from flask_cors import CORS
from werkzeug.middleware.proxy_fix import ProxyFix

from service.config import ServiceConfig
from service.web.preferences import APPLIED, PREFER

_SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
# What a page of another origin may read of an answer, beside its body.
_EXPOSED = [
    "Content-Disposition", "ETag", "Nocturne-Ended", "Nocturne-Model", "Nocturne-Notes", "Nocturne-Seed", APPLIED, "RateLimit",
    "RateLimit-Policy", "Retry-After", "Server-Timing", "traceparent", "X-Request-Id",
]  # fmt: skip


def harden(app: Flask, config: ServiceConfig) -> None:
    """Give all answers of an application the headers of security; trust the origins and proxies of its settings alone."""
    if config.proxies:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=config.proxies, x_proto=config.proxies)  # type: ignore[method-assign]

    # Before CORS, and so called after it.
    @app.after_request
    def add_headers(response: Response) -> Response:
        for name, value in _SECURITY.items():
            response.headers.setdefault(name, value)
        if config.cors_origins and "*" not in config.cors_origins:
            # Also where the origin is another or none: a cache must not give that answer to a page of an origin that may.
            response.vary.add("Origin")
        return response

    if config.cors_origins:
        CORS(
            app,
            resources=[rf"/{path}" for path in ("generate", "models", "openapi.yaml")],
            origins=list(config.cors_origins),
            methods=["GET", "HEAD", "POST"],
            allow_headers=["Accept", "Authorization", "Content-Type", PREFER, "traceparent", "X-Request-Id"],
            expose_headers=_EXPOSED,
            max_age=86400,
        )
