"""The worker must not outlive its bridge, nor leave a bridge behind that a killed tritonserver forgot."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path

from worker.serving import Connection, Inbox

LOG = logging.getLogger("worker")
POLL_S = 0.5


def end_with_bridge(connection: Connection, inbox: Inbox) -> None:
    """Receive in the background from now on; the process ends at once when the bridge goes away.

    An engine holds nothing that must be saved, and a step or a load may take long: so no waiting for it.
    """

    def receive() -> None:
        connection.receive_forever(inbox.put)
        LOG.info("The bridge has gone; ending.")
        os._exit(0)

    threading.Thread(target=receive, name="receive", daemon=True).start()


def end_with_server() -> None:
    """End the bridge and this process when the bridge's parent, tritonserver, has gone.

    A bridge that was sending when tritonserver was killed waits for it for ever, with Python's lock held,
    so it cannot end itself.
    """
    bridge = os.getppid()
    server = _parent_of(bridge)

    def watch() -> None:
        while os.getppid() == bridge and _parent_of(bridge) == server:
            time.sleep(POLL_S)
        if os.getppid() == bridge:
            LOG.info("tritonserver has gone; ending with the bridge.")
            os.kill(bridge, signal.SIGKILL)
        os._exit(0)

    if server is not None:
        threading.Thread(target=watch, name="watch", daemon=True).start()


def _parent_of(process: int) -> int | None:
    """The parent's process id, None where it cannot be read."""
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # pid (name) state parent ...; the name may hold anything, also a parenthesis.
    return int(status.rpartition(")")[2].split()[1])
