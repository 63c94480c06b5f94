"""``python -m api``: what is done with configurations and checkpoints besides serving them."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from api import cli
from api.errors import ConfigError

BAD = 2  # the exit status for anything wrong with what was given


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, like everything else here, and takes options by their whole names."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(BAD, f"{self.prog}: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m api", description="Tools around the server: configurations and checkpoints.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    check = commands.add_parser("check", help="check a configuration and the checkpoints it names", description=cli.check.__doc__)
    check.add_argument("file", type=Path, metavar="FILE", help="the TOML file")
    check.set_defaults(run=lambda args: cli.check(args.file))

    reload = commands.add_parser("reload", help="have the running server apply its changed configuration", description=cli.reload.__doc__)
    reload.add_argument("file", type=Path, nargs="?", metavar="FILE", help="the server's TOML file (default: default/config.toml)")
    reload.set_defaults(run=lambda args: cli.reload(args.file or cli.DEFAULT))

    for name, run, text in (
        ("deploy", lambda args: cli.deploy(args.file), "start or update the models in a Ray cluster"),
        ("status", lambda args: cli.status(args.file, as_json=args.json), "tell how the models in a Ray cluster are"),
        ("down", lambda args: cli.down(args.file), "end the models in a Ray cluster"),
    ):
        command = commands.add_parser(name, help=text, description=getattr(cli, name).__doc__)
        command.add_argument("file", type=Path, metavar="FILE", help="the TOML file")
        if name == "status":
            command.add_argument("--json", action="store_true", help="for programs: a JSON list on standard output")
        command.set_defaults(run=run)

    info = commands.add_parser("info", help="tell what is in a checkpoint", description=cli.info.__doc__)
    info.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a file, or the folder of a Diffusers pipeline")
    info.add_argument("--json", action="store_true", help="for programs: one JSON object on standard output")
    info.set_defaults(run=lambda args: cli.info(args.checkpoint, as_json=args.json))

    init = commands.add_parser("init", help="write a configuration for the checkpoints in a folder", description=cli.init.__doc__)
    init.add_argument("folder", type=Path, metavar="FOLDER", help="searched for checkpoints, its subfolders too")
    init.add_argument("-o", "--output", type=Path, metavar="FILE", help="the TOML file to write (default: FOLDER/config.toml)")
    init.add_argument("-f", "--force", action="store_true", help="replace a TOML file that is there")
    init.set_defaults(run=lambda args: cli.init(args.folder, args.output or args.folder / "config.toml", force=args.force))

    convert = commands.add_parser("convert", help="rewrite a checkpoint as safetensors", description=cli.convert.__doc__)
    convert.add_argument("source", type=Path, metavar="IN", help="a checkpoint in any format that the server reads")
    convert.add_argument("target", type=Path, metavar="OUT.safetensors", help="the file to write")
    convert.add_argument("-f", "--force", action="store_true", help="replace a file that is there")
    convert.set_defaults(run=lambda args: cli.convert(args.source, args.target, force=args.force))

    schema = commands.add_parser("schema", help="print the JSON Schema of the configuration", description=cli.schema.__doc__)
    schema.set_defaults(run=lambda args: cli.schema())

    openapi = commands.add_parser("openapi", help="print the OpenAPI description of the server", description=cli.openapi.__doc__)
    openapi.add_argument("file", type=Path, nargs="?", metavar="FILE", help="the TOML file (default: default/config.toml)")
    openapi.set_defaults(run=lambda args: cli.openapi(args.file or cli.DEFAULT))
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; the result is the exit status."""
    args = build_parser().parse_args(arguments)
    try:
        args.run(args)
        sys.stdout.flush()
    except ConfigError as error:
        return complain(str(error))
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def complain(message: str) -> int:
    print(cli.printable(message), file=sys.stderr)
    return BAD


def leave(number: int, _: object) -> NoReturn:
    """Turns a signal into an ordinary end, so that what is half written is cleared away."""
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, leave)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a terminal need not know every letter
    sys.exit(main())
