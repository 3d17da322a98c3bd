"""`leanthink view`: shows recorded thoughts in a browser."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from leanthink.entrypoints.cli import options
from leanthink.entrypoints.cli.help import help_text, option
from leanthink.entrypoints.cli.output import print_json, say
from leanthink.utils.hosts import is_loopback

EXAMPLES = (
    "leanthink view traces.jsonl",
    "leanthink view demo/traces-full.jsonl demo/traces-horizon.jsonl --port 0 --no-open",
)
Paths = Annotated[
    list[Path],
    typer.Argument(help="Files that --trace, collect or demo wrote; several are shown as one.", metavar="FILE"),
]
Host = Annotated[str, option("--host", about="Address to listen on.", default="127.0.0.1")]
Port = Annotated[int, option("--port", about="Port to listen on; 0 is any free one.", default=8780, min=0, max=65535)]
Open = Annotated[
    bool, typer.Option("--open/--no-open", help="Open the page in a browser. [--open]", show_default=False)
]


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("view", help=help_text("Show recorded thoughts in a browser, until Ctrl-C.", EXAMPLES))(command)


def command(
    paths: Paths,
    host: Host = "127.0.0.1",
    port: Port = 8780,
    allowed_hosts: options.AllowedHosts = None,
    open_page: Open = True,
    as_json: options.Json = False,
) -> None:
    """Read the files once, then serve page and traces."""
    from leanthink.entrypoints.viewer.server import address_of, list_traces, make_server

    listed = list_traces(paths)
    names = options.read_list("--allowed-hosts", allowed_hosts)
    with make_server(listed, host=host, port=port, allowed_hosts=names) as server:
        address = address_of(server)
        if as_json:
            print_json({"url": address, "traces": [one.about for one in listed]})
        else:
            say(f"{len(listed)} traces at {address}, Ctrl-C ends")
        if not is_loopback(host):
            say(f"{host} is not of this machine alone: whoever reaches it can read these traces")
        if open_page:
            webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("done")
