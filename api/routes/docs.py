"""Swagger UI and ReDoc, with their scripts from here: they work where there is no internet, and nobody else hears who reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html, get_swagger_ui_oauth2_redirect_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from starlette.responses import Response

SCRIPTS = Path(fastapi_offline.__file__).parent / "static"
REDIRECT = "/docs/oauth2-redirect"


class Scripts(StaticFiles):
    """They are large, and change when a package does."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers.setdefault("Cache-Control", "public, max-age=86400")
        return response


def add_docs(app: FastAPI, *, docs: bool, redoc: bool) -> None:
    """Adds `/docs`, `/redoc`, and what they need."""

    def places(request: Request) -> tuple[str, str]:
        """Where the description and the scripts are, behind whatever proxy."""
        root = request.scope.get("root_path", "").rstrip("/")
        return f"{root}{app.openapi_url}", f"{root}/docs/scripts"

    async def swagger(request: Request) -> HTMLResponse:
        description, scripts = places(request)
        return get_swagger_ui_html(
            openapi_url=description,
            title=app.title,
            oauth2_redirect_url=description.removesuffix(str(app.openapi_url)) + REDIRECT,
            swagger_js_url=f"{scripts}/swagger-ui-bundle.js",
            swagger_css_url=f"{scripts}/swagger-ui.css",
            swagger_favicon_url=f"{scripts}/favicon.png",
        )

    async def redirect() -> HTMLResponse:
        return get_swagger_ui_oauth2_redirect_html()

    async def read(request: Request) -> HTMLResponse:
        description, scripts = places(request)
        page = get_redoc_html(
            openapi_url=description,
            title=app.title,
            redoc_js_url=f"{scripts}/redoc.standalone.js",
            redoc_favicon_url=f"{scripts}/favicon.png",
            with_google_fonts=False,
        )
        page.headers["Content-Security-Policy"] = "img-src 'self' data:"  # else it would fetch its maker's logo
        return page

    if docs:
        app.add_api_route("/docs", swagger, include_in_schema=False)
        app.add_api_route(REDIRECT, redirect, include_in_schema=False)
    if redoc:
        app.add_api_route("/redoc", read, include_in_schema=False)
    if docs or redoc:
        app.mount("/docs/scripts", Scripts(directory=SCRIPTS))
