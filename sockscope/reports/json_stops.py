"""Stops in JSON, schema `sockscope/1`."""

from __future__ import annotations

from sockscope.model.ids import NO_ID
from sockscope.model.info import SessionInfo
from sockscope.model.signals import signal_name
from sockscope.model.stops import StopAudit, StopProcess, StopStep
from sockscope.reports.json_value import Json, relative
from sockscope.reports.stop_words import sentences


def stop_document(stop: StopAudit, info: SessionInfo) -> Json:
    """One stop. Times are since the session's start."""
    clients = stop.clients
    return {
        "signal": signal_name(stop.signal),
        "time_ns": stop.time_ns - info.started_ns,
        "tgid": stop.tgid,
        "sender": stop.sender or None,
        "ended_ns": relative(stop.ended_ns, info),
        "last_ended_ns": relative(stop.last_ended_ns, info),
        "listeners_first": stop.listeners_first,
        "words": sentences(stop),
        "processes": [_process(one, info) for one in stop.processes],
        "steps": [_step(one, info) for one in stop.steps],
        "left_out_steps": stop.left_out_count,
        "clients": {
            "open": clients.open_count,
            "running": clients.running_count,
            "answered": clients.answered_count,
            "cut": clients.cut_count,
            "saw_fin": clients.fin_count,
            "saw_reset": clients.reset_count,
            "still_open": clients.still_open_count,
            "accepted_after": clients.accepted_count,
            "refused_after": clients.refused_count,
        },
    }


def _process(one: StopProcess, info: SessionInfo) -> Json:
    return {
        "tgid": one.tgid,
        "ns_tgid": one.ns_tgid,
        "comm": one.comm,
        "parent": _known(one.parent),
        "disposition": one.disposition.value,
        "signalled_ns": relative(one.signalled_ns, info),
        "ended_ns": relative(one.ended_ns, info),
        "exit_status": one.status,
        "waited_by": _known(one.waited_by),
        "waited_ns": relative(one.waited_ns, info),
    }


def _step(one: StopStep, info: SessionInfo) -> Json:
    return {
        "time_ns": one.time_ns - info.started_ns,
        "last_ns": one.last_ns - info.started_ns,
        "tgid": one.tgid,
        "act": one.act.value,
        "count": one.count,
        "signal": signal_name(one.signal) if one.signal else None,
        "other": _known(one.other or NO_ID),
        "fds": list(one.fds),
        "address": one.address or None,
        "listener": one.is_listener,
        "exit_status": one.status,
        "closed_listeners": one.listener_count,
        "closed_connections": one.connection_count,
    }


def _known(tgid: int) -> int | None:
    return None if tgid == NO_ID else tgid
