"""Replay of SCM_RIGHTS: a received descriptor is the sender's open file under another number.

Source: unix(7), net/core/scm.c. A message waits in the receiving socket; descriptors in it are
references of their own, so the open file lives while it is in flight.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from sockscope.analysis.replay.decode import rights_fds, section_of
from sockscope.analysis.replay.state import Message, ReplayState, Step
from sockscope.model.calls import Call
from sockscope.model.descriptors import How
from sockscope.model.events import Section
from sockscope.model.ids import NO_ID
from sockscope.model.seed import FileKind

MSG_PEEK = 0x2
MSG_CMSG_CLOEXEC = 0x40000000


def send(state: ReplayState, step: Step) -> None:
    if step.ret < 0 or step.descriptor < 0:
        return
    control = section_of(step.blob, Section.CONTROL)
    sent = rights_fds(control) if control else []
    sources = [state.known(step, fd, FileKind.OTHER) for fd in sent]
    if not sources:
        return
    sender = state.descriptors[step.descriptor].open_file
    files = [state.descriptors[d].open_file for d in sources]
    for file in files:
        state.open_files[file].in_flight += 1
        state.open_files[file].sent_events.append(step.event)
    peer = state.peer_of(sender)
    message = Message(event=step.event, sender=sender, files=files, sources=sources)
    state.messages.setdefault(peer, deque()).append(message)
    if peer >= 0 and state.open_files[peer].released_ns is not None:
        state.discard_messages(peer, step.ns)


def receive(state: ReplayState, step: Step) -> None:
    if step.ret < 0 or step.descriptor < 0:
        return
    control = section_of(step.blob, Section.CONTROL)
    received = rights_fds(control) if control else []
    if not received:
        return
    flags = step.a3 if step.call == Call.recvmmsg else step.a2
    cloexec = bool(flags & MSG_CMSG_CLOEXEC)
    receiver = state.descriptors[step.descriptor].open_file
    message = _take(state, receiver, len(received), step)
    for at, fd in enumerate(received):
        if message is not None and at < len(message.sources):
            state.copy(step, fd, message.sources[at], How.SCM_RIGHTS, cloexec).sent_event = message.event
        else:
            # Sent by somebody unseen, or before the watching began: what it is shows in its use.
            state.create(step, fd, FileKind.OTHER, How.SCM_RIGHTS, cloexec).witnessed = False
    if message is not None:
        state.landed(message, step.ns)


def _take(state: ReplayState, receiver: int, count: int, step: Step) -> Message | None:
    """The message that brought `count` descriptors to this socket."""
    queue = state.messages.get(receiver)
    if queue:
        at = next((i for i, message in enumerate(queue) if len(message.files) >= count), None)
        if at is not None:
            for _ in range(at):
                # Older ones were received without room for their descriptors (MSG_CTRUNC).
                state.landed(queue.popleft(), step.ns)
            return queue.popleft()
    # Whose peer is not known: the oldest of all that fits, and then the peer is known.
    for message in state.messages.get(NO_ID, ()):
        if len(message.files) >= count and message.sender != receiver:
            state.messages[NO_ID].remove(message)
            state.pair_up(message.sender, receiver)
            return message
    return None


HANDLERS: dict[int, Callable[[ReplayState, Step], None]] = {
    Call.sendmsg: send,
    Call.sendmmsg: send,
    Call.recvmsg: receive,
    Call.recvmmsg: receive,
}
