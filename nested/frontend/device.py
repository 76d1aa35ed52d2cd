"""A disk whose frontend is a process in dom0: what libxl does for one (libxl__device_generic_add)."""

from dataclasses import dataclass

from .xenstore import Xenstore

LAB = "/local/domain/0/granary-lab"
"""Below it are the frontends' directories: outside of device/vbd, which is dom0's own kernel's."""

INITIALISING, INIT_WAIT, INITIALISED, CONNECTED, CLOSING, CLOSED = "123456"

LIBXL_NODES = {
    "frontend", "params", "script", "frontend-id", "online", "removable", "bootable", "state", "dev", "type", "mode",
    "device-type", "discard-enable", "specification", "direct-io-safe", "trusted",
}  # fmt: skip
"""What a toolstack writes into a backend's directory; the rest is the backend's own."""


@dataclass(frozen=True)
class Device:
    """A vbd between a frontend in dom0, which has a number there, and a backend's domain."""

    backend: int
    frontend: int
    devid: int
    """Unique among all these frontends: for the backend they are all dom0."""

    @property
    def backend_path(self) -> str:
        return f"/local/domain/{self.backend}/backend/vbd/0/{self.devid}"

    @property
    def frontend_path(self) -> str:
        return f"{LAB}/{self.frontend}/vbd/{self.devid}"

    @property
    def state_path(self) -> str:
        """The backend's state."""
        return f"{self.backend_path}/state"

    def begin_attach(self, store: Xenstore, target: str, mode: str = "w") -> None:
        """Writes all nodes of a new disk."""
        back = {
            "frontend": self.frontend_path, "params": target, "script": "/etc/xen/scripts/block", "frontend-id": "0",
            "online": "1", "removable": "0", "bootable": "1", "state": INITIALISING, "dev": f"lab{self.devid}",
            "type": "phy", "mode": mode, "device-type": "disk", "discard-enable": "1", "specification": "xen",
        }  # fmt: skip
        front = {
            "backend": self.backend_path, "backend-id": str(self.backend), "state": INITIALISING,
            "virtual-device": str(self.devid), "device-type": "disk", "trusted": "1",
        }  # fmt: skip

        def add(tx: int) -> None:
            for path, owner, reader, nodes in [
                (self.frontend_path, 0, self.backend, front),
                (self.backend_path, self.backend, 0, back),
            ]:
                store.remove(path, tx)
                store.mkdir(path, tx)
                store.set_perms(path, owner, reader, tx)
                for name, value in nodes.items():
                    store.write(f"{path}/{name}", value, tx)

        store.transact(add)

    def begin_detach(self, store: Xenstore) -> None:
        """Asks the backend to let the disk go; one that has is only told that it need not wait."""

        def ask(tx: int) -> None:
            # Its directory may have gone already: nothing is to be made anew.
            if store.read(self.state_path, tx) is not None:
                store.write(f"{self.backend_path}/online", "0", tx)
                if store.read(self.state_path, tx) != CLOSED.encode():
                    store.write(self.state_path, CLOSING, tx)

        store.transact(ask)

    def destroy(self, store: Xenstore) -> None:
        """What `xl block-detach --force` does: the frontend's directory goes, whatever it was at."""
        self.begin_detach(store)
        self.remove_frontend(store)
        self.wait_gone(store)

    def wait_gone(self, store: Xenstore) -> None:
        """Waits for the backend to remove its directory, and removes those above it that are empty then."""
        store.wait(self.state_path, None)
        # backend/vbd/0 and up to backend, as libxl__xs_path_cleanup does.
        _remove_empty(store, self.backend_path.rpartition("/")[0], 3)

    def remove_frontend(self, store: Xenstore) -> None:
        store.remove(self.frontend_path)
        _remove_empty(store, self.frontend_path.rpartition("/")[0], 3)


def destroy_all(backend: int, frontend: int) -> None:
    """Detaches what a frontend that was killed has left behind."""
    with Xenstore() as store:
        for devid in store.list(f"/local/domain/{backend}/backend/vbd/0"):
            device = Device(backend, frontend, int(devid))
            if store.text(f"{device.backend_path}/frontend") == device.frontend_path:
                device.destroy(store)
        store.remove(f"{LAB}/{frontend}")


def _remove_empty(store: Xenstore, path: str, levels: int) -> None:
    """Removes a directory if nothing is in it, and so many of those above it in all."""

    def remove(tx: int) -> None:
        at = path
        for _ in range(levels):
            if store.list(at, tx):
                return
            store.remove(at, tx)
            at = at.rpartition("/")[0]

    store.transact(remove)
