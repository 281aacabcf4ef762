"""How to watch: the options of every command that watches, and what the session needs of them."""

from __future__ import annotations

from dataclasses import dataclass

from sockscope.cli import options as shared
from sockscope.cli.keep import flight
from sockscope.cli.output import Output
from sockscope.pipeline.options import EngineChoice, RecordOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Watching:
    """The options, as given."""

    duration: shared.DurationOption = None
    engine: shared.EngineOption = EngineChoice.AUTO
    payload: shared.PayloadOption = 64
    no_pin: shared.NoPinOption = False
    no_redact: shared.NoRedactOption = False
    no_packets: shared.NoPacketsOption = False
    no_sockets: shared.NoSocketsOption = False
    keep: shared.KeepOption = None
    output: shared.OutputOption = None

    def of(
        self,
        written: Output,
        *,
        pids: tuple[int, ...] = (),
        port: int | None = None,
        command: tuple[str, ...] = (),
        usual_duration_s: float | None = None,
    ) -> RecordOptions:
        """What `record` needs for this target.

        Args:
            usual_duration_s: where the user names none; a flight recorder goes on until it is stopped.

        Raises:
            UsageError: `--keep` is no time, or there is no folder to write into.
        """
        keep_s, alarm = flight(self.keep, self.output, written)
        return RecordOptions(
            pids=pids,
            port=port,
            command=command,
            duration_s=usual_duration_s if self.duration is None and keep_s is None else self.duration,
            engine=self.engine,
            payload_bytes=self.payload,
            pin=not self.no_pin,
            keep_s=keep_s,
            alarm=alarm,
            redact=not self.no_redact,
            packets=not self.no_packets,
            sockets=not self.no_sockets,
        )
