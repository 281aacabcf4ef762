"""The command line: one file a command, no logic. Errors become exit codes here."""

from __future__ import annotations

import sys

from sockscope.cli.stdout import open_standard_three, reader_may_leave
from sockscope.errors import ExitCode, SockscopeError


def main() -> None:
    """Entry point of the `sockscope` command."""
    open_standard_three()
    sys.exit(execute(sys.argv[1:]))


def execute(arguments: list[str]) -> int:
    """Run one command line; its exit code. Never a traceback for a user's mistake."""
    try:
        with reader_may_leave():
            if arguments == ["snapshot"]:
                # No options, so nothing to parse: the parser's imports would take as long as the look.
                from sockscope.cli.snapshot_run import Wanted, run

                run(Wanted())
                return ExitCode.OK
            from sockscope.cli.app import app
            from sockscope.cli.many import spread

            words = list(spread(arguments)) if arguments[:1] == ["analyze"] else arguments
            app(args=words, prog_name="sockscope")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else ExitCode.OK
    except SockscopeError as error:
        _complain(error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return ExitCode.OK


def _complain(error: SockscopeError) -> None:
    from sockscope.reports.escape import safe

    print(f"sockscope: {safe(error.message)}", file=sys.stderr)
    if error.help_text:
        print(f"  → {safe(error.help_text)}", file=sys.stderr)
    for line in error.detail.splitlines():
        print(f"    {safe(line)}", file=sys.stderr)
