"""Loads the model, builds the page and serves it."""

from __future__ import annotations

import ipaddress
import os
from typing import Any

from rich.console import Console

from adapt_recipes.dial.served import Served

LARGEST_UPLOAD_BYTES = 1  # the page takes no files


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def launch(served: Served, host: str = "127.0.0.1", port: int | None = 7860, block: bool = True) -> Any:
    """Serve the page at http://host:port (None: a free port from 7860 on); returns Gradio's Blocks.

    Serves no file outside Gradio's own, takes no uploads, sends nothing to anybody. block: until Ctrl-C. Raises
    OSError when the port is taken.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    from adapt_recipes.dial.page import build
    from adapt_recipes.dial.style import CSS, theme

    page = build(served)
    page.launch(
        server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=not block, show_error=False,
        allowed_paths=[], max_file_size=LARGEST_UPLOAD_BYTES, ssr_mode=False, pwa=False, mcp_server=False,
        enable_monitoring=False, footer_links=["settings"], theme=theme(), css=CSS,
    )  # fmt: skip
    return page


def announce(served: Served, host: str, port: int, console: Console) -> None:
    """Say what is served and where, and warn when others can reach it."""
    console.print(f"{served.label} at http://{host}:{port} (Ctrl-C ends it)", highlight=False, soft_wrap=True)
    if served.modes is None:
        console.print("Its modes are not known: the page asks for the texts that open them.", soft_wrap=True)
    if not is_loopback(host):
        console.print("Anybody who reaches this machine can use it: there is no password.", style="bold yellow")
