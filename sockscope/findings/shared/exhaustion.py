"""Calls that failed because no descriptor was left."""

from __future__ import annotations

import numpy as np

from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.accept_queue import ACCEPTS
from sockscope.model.calls import Call

ENFILE, EMFILE = 23, 24
MAKERS = np.array(sorted({*ACCEPTS, Call.socket, Call.socketpair}), np.uint16)
"""Calls that make sockets."""


def exhausted(session: Session) -> Ids:
    """The calls for a socket that failed with EMFILE (the process's limit) or ENFILE (the system's)."""
    records = session.events.records
    failed = np.flatnonzero((records["ret"] == -EMFILE) | (records["ret"] == -ENFILE))
    return failed[np.isin(records["call"][failed], MAKERS)]
