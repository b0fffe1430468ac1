# SPDX-License-Identifier: GPL-2.0
"""null_blk devices by configfs, for guests that measure or record what reaches a device."""

import os

SECTOR = 512
MIB = 1 << 20
NULLB = "/sys/kernel/config/nullb"


def put(path, value):
    """Writes a file of sysfs, configfs or tracefs."""
    with open(path, "w", encoding="ascii") as file:
        file.write(str(value))


class Null:
    """A null_blk device that keeps its data in memory: of at least `size` bytes, with `nsec` for
    each request. `more` are other settings of configfs."""

    def __init__(self, name, size, nsec=0, cached=False, **more):
        self.folder = f"{NULLB}/{name}"
        os.mkdir(self.folder)
        settings = {"memory_backed": 1, "size": -(-size // MIB), "queue_mode": 2,
                    "irqmode": 2 if nsec else 0, "completion_nsec": nsec, **more}
        if cached:
            # With a cache, a flush takes as long as a write.
            settings["cache_size"] = settings["size"]
        for key, value in settings.items():
            put(f"{self.folder}/{key}", value)
        put(f"{self.folder}/power", 1)
        self.name = name
        if not os.path.exists(f"/sys/block/{name}"):
            with open(f"{self.folder}/index", encoding="ascii") as file:
                self.name = f"nullb{file.read().strip()}"
        put(f"/sys/block/{self.name}/queue/scheduler", "none")
        self.path = f"/dev/{self.name}"
        self.sectors = size // SECTOR

    def close(self):
        """Takes the device away, with its data."""
        put(f"{self.folder}/power", 0)
        os.rmdir(self.folder)
