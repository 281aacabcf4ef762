"""The command line: one file a command, no logic. Errors become exit codes here."""

from __future__ import annotations

import os
import sys

from sockscope.errors import ExitCode, SockscopeError


def main() -> None:
    """Entry point of the `sockscope` command."""
    sys.exit(execute(sys.argv[1:]))


def execute(arguments: list[str]) -> int:
    """Run one command line; its exit code. Never a traceback for a user's mistake."""
    try:
        if arguments == ["snapshot"]:
            # No options, so nothing to parse: the parser's imports would take as long as the look.
            from sockscope.cli.snapshot_run import Wanted, run

            run(Wanted())
            return ExitCode.OK
        from sockscope.cli.app import app

        app(args=arguments, prog_name="sockscope")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else ExitCode.OK
    except SockscopeError as error:
        _complain(error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, less) has enough; the flush at exit must stay silent too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ExitCode.OK


def _complain(error: SockscopeError) -> None:
    from sockscope.reports.escape import safe

    print(f"sockscope: {safe(error.message)}", file=sys.stderr)
    if error.help_text:
        print(f"  → {safe(error.help_text)}", file=sys.stderr)
