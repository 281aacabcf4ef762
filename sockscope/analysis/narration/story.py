"""One connection's life in a few sentences: who came, who took it, who served, how long that took, and who ended it."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from sockscope.analysis.narration.describe_words import duration
from sockscope.analysis.narration.hands import Hands
from sockscope.analysis.narration.timeline_calls import actor
from sockscope.analysis.replay.control import IS_READ, IS_WRITE
from sockscope.analysis.session import Grouping, Session
from sockscope.model.calls import Call
from sockscope.model.connections import Connection, Protocol, Role
from sockscope.model.descriptors import How
from sockscope.model.ids import NO_ID


class Life:
    """Tells connections of a session when asked."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @cached_property
    def _exchanges(self) -> Grouping:
        rows = self._session.exchanges
        return Grouping(rows["connection"], np.arange(len(rows)))

    def __call__(self, connection: int) -> str:
        """The sentences; empty where there is nothing to tell beyond its events."""
        one = self._session.connections[connection]
        if one.protocol is Protocol.UDP or not self._session.info.syscalls.engine:
            return ""
        parts = [self._came(one), self._went_on(one), self._served(one), self._ended(one)]
        return " ".join(f"{_sentence(part)}." for part in parts if part)

    def _at(self, time_ns: int) -> str:
        return f"{(time_ns - self._session.info.started_ns) / 1e9:+.3f} s"

    def _actor(self, event: int) -> str:
        row = self._session.events.records[event]
        return actor(self._session, int(row["tgid"]), int(row["tid"]))

    def _came(self, one: Connection) -> str:
        if one.never_accepted:
            return "no process has accepted it: it waits in the listener's queue"
        if one.opened_event == NO_ID:
            return "it was there before the watching began" if not one.witnessed else ""
        records, event = self._session.events.records, one.opened_event
        who, call = self._actor(event), Call(int(records["call"][event]))
        if call is Call.connect:
            return f"{who} connected to {one.peer or 'its peer'} at {self._at(one.first_ns)}"
        if call not in (Call.accept, Call.accept4):
            return ""
        accepted = int(records["exit_ns"][event])
        flow = self._session.flows[one.flow] if one.flow != NO_ID else None
        after = ""
        if flow is not None and flow.established_ns is not None and accepted > flow.established_ns:
            after = f", {duration(accepted - flow.established_ns)} after the handshake"
        return f"a client came, and {who} accepted it as fd {int(records['ret'][event])} at {self._at(accepted)}{after}"

    def _went_on(self, one: Connection) -> str:
        """Who has it after whoever opened it."""
        session = self._session
        if one.open_file == NO_ID:
            return ""
        hands = Hands(session, session.open_files[one.open_file])
        copies = [session.descriptors[number] for number in session.open_files[one.open_file].descriptors]
        for copy in copies:
            if not len(session.events_of_descriptor(copy.id)):
                continue
            if copy.how is How.SCM_RIGHTS:
                return f"it was handed to {hands.owner(copy)} by SCM_RIGHTS, which has it as fd {copy.fd}"
            if copy.how is How.FORK and copy.opened_ns >= one.first_ns:
                return f"{hands.owner(copy)} was forked with a copy of it (fd {copy.fd})"
        return ""

    def _served(self, one: Connection) -> str:
        session = self._session
        if one.role is not Role.SERVER:
            return ""
        rows = session.exchanges[self._exchanges.of(one.id)]
        # A greeting answers nothing.
        rows = rows[(rows["answered"] == 1) & (rows["last_read_ns"] >= 0)]
        if not len(rows):
            return self._unanswered(one)
        took = rows["first_write_ns"] - rows["last_read_ns"]
        who = self._actor(int(rows["first_write_event"][0]))
        waited = rows["first_read_ns"] - rows["arrived_ns"]
        waited = waited[(rows["arrived_ns"] >= 0) & (waited > 0)]
        lay = f" {duration(int(waited.max()))} after it had come" if len(waited) and len(rows) == 1 else ""
        if len(rows) == 1:
            writes = int(rows["write_count"][0])
            sends = "1 write" if writes == 1 else f"{writes} writes"
            return (
                f"{who} read {int(rows['read_bytes'][0])} bytes{lay}, and answered {duration(int(took[0]))} later: "
                f"{int(rows['written_bytes'][0])} bytes in {sends}"
            )
        spread = f"{duration(int(took.min()))} to {duration(int(took.max()))}"
        return f"{who} answered {len(rows)} times, {spread} after each request was read"

    def _unanswered(self, one: Connection) -> str:
        records, own = self._session.events.records, self._session.events_of(one.id)
        moved = own[(IS_READ | IS_WRITE)[records["call"][own]] & (records["ret"][own] > 0)]
        if not len(moved):
            return "nothing was read from it or written to it" if one.witnessed else ""
        reads = moved[IS_READ[records["call"][moved]]]
        return f"{self._actor(int(reads[0]))} read from it, and has written nothing" if len(reads) == len(moved) else ""

    def _ended(self, one: Connection) -> str:
        session = self._session
        file = session.open_files[one.open_file] if one.open_file != NO_ID else None
        last = ""
        if file is not None and file.released_ns is not None:
            ends = [session.descriptors[n] for n in file.descriptors]
            final = max((d for d in ends if d.closed_ns is not None), key=lambda d: d.closed_ns or 0, default=None)
            if final is not None and final.closed_event != NO_ID:
                last = f"{self._actor(final.closed_event)} closed {'the last copy' if len(ends) > 1 else 'it'}"
                last += f" at {self._at(file.released_ns)}"
        flow = session.flows[one.flow] if one.flow != NO_ID else None
        if flow is None:
            return last
        ours, theirs = flow.fin_ns[one.local_side], flow.fin_ns[1 - one.local_side]
        resets = [side for side, at in zip(("this side", "the peer"), self._sides(one, flow.rst_ns), strict=True) if at]
        how = f"{resets[0]} reset it" if resets else ""
        if ours is not None and (theirs is None or ours < theirs):
            how = how or "this side ended first (FIN)"
        elif theirs is not None:
            how = how or "the peer ended first (FIN)"
        return "; ".join(part for part in (how, last) if part)

    @staticmethod
    def _sides(one: Connection, pair: tuple[int | None, int | None]) -> tuple[int | None, int | None]:
        return pair[one.local_side], pair[1 - one.local_side]


def _sentence(text: str) -> str:
    """With a capital, unless it begins with a process's name, which is as it is."""
    return text if "[" in text.split(" ", 1)[0] else f"{text[0].upper()}{text[1:]}"
