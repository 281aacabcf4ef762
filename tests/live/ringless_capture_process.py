"""The capture process on a kernel that refuses the ring: it is asked for one whose frames it cannot align."""

from __future__ import annotations

import mmap

from sockscope.sources.packets.capture_process import main
from sockscope.sources.packets.ring import Ring


class RefusedRing(Ring):
    def _make_ring(self, frame_bytes: int, ring_bytes: int) -> mmap.mmap:
        # EINVAL: frames must be multiples of TPACKET_ALIGNMENT, 16.
        return super()._make_ring(frame_bytes + 1, ring_bytes)


if __name__ == "__main__":
    main(RefusedRing)
