"""A ComfyUI server as a child process: started, waited for, and always stopped again."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .client import ComfyClient
from .errors import ServerError

HOST = "127.0.0.1"
START_SECONDS = 300.0  # measured 10 to 20; a cold disk or a virus scanner takes longer
STOP_SECONDS = 10.0
# Runs main.py, and ends with it when this process is gone, however it went: then the pipe to its standard input closes.
LEASHED = """
import os, runpy, sys, threading
def watch():
    while os.read(0, 1):
        pass
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def check_port(port: int) -> None:
    """Raises ServerError when something else listens on the port."""
    with socket.socket() as probe:
        if os.name != "nt":  # a port whose last user has just stopped is free; on Windows the option means something else
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ServerError(
                f"Port {port} is taken ({error.strerror}); give another one with --port, or leave --port out for a free one."
            ) from error


def free_port() -> int:
    """Returns a port nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def device_arguments() -> tuple[str, ...]:
    """Returns main.py's --cpu where torch sees no accelerator; imports torch."""
    import torch

    accelerators = [torch.cuda.is_available(), torch.backends.mps.is_available(), torch.xpu.is_available()]
    return () if any(accelerators) else ("--cpu",)


class ComfyServer(ComfyClient):
    """A ComfyUI that runs as long as the `with` block.

    Args:
        comfyui: the folder that holds main.py.
        base_directory: its models, outputs and custom_nodes (base_directory.prepare makes one).
        python: the interpreter with ComfyUI's requirements.
        port: default a free one.
        arguments: further arguments of main.py, such as device_arguments().
        on_wait: called with the seconds waited so far while the server starts.
    Raises: ServerError when the port is taken or the server does not start.
    """

    def __init__(
        self,
        comfyui: Path,
        base_directory: Path,
        *,
        python: str | Path = sys.executable,
        port: int | None = None,
        arguments: tuple[str, ...] = (),
        on_wait: Callable[[float], None] | None = None,
    ):
        self.port = port or free_port()
        super().__init__(f"http://{HOST}:{self.port}")
        self.comfyui, self.base_directory = Path(comfyui).resolve(), Path(base_directory).resolve()
        self.log = self.base_directory / "comfyui.log"
        self.on_wait = on_wait or (lambda seconds: None)
        self.process: subprocess.Popen | None = None
        self.command = [
            str(python), "-u", "-c", LEASHED, str(self.comfyui / "main.py"), "--listen", HOST, "--port", str(self.port),
            "--disable-auto-launch", "--disable-api-nodes", "--base-directory", str(self.base_directory), *arguments,
        ]  # fmt: skip

    def __enter__(self) -> "ComfyServer":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self) -> None:
        """Starts the server and returns once it answers.

        Raises: ServerError.
        """
        check_port(self.port)
        # Its own process group: Ctrl-C reaches only us, and we stop the server in order.
        group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == "nt" else {"start_new_session": True}
        environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "NO_PROXY": "*", "no_proxy": "*"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=self.comfyui, env=environment, **group
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _wait(self) -> None:
        started = time.monotonic()
        while time.monotonic() - started < START_SECONDS:
            if self.process.poll() is not None:
                raise ServerError(f"ComfyUI stopped while starting (exit code {self.process.returncode}).\n{self.log_tail()}")
            try:
                self.get("/system_stats")
                return
            except ServerError:  # not listening yet
                self.on_wait(time.monotonic() - started)
                time.sleep(0.25)
        raise ServerError(f"ComfyUI did not answer within {START_SECONDS:.0f} s.\n{self.log_tail()}")

    def stop(self) -> None:
        """Stops the server, if need be by force; only the process that start() made."""
        if self.process is None:
            return
        if self.process.poll() is not None:
            self.process.stdin.close()
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdin.close()

    def log_tail(self, lines: int = 25) -> str:
        """Returns the last lines of the server's log, headed by the log's path."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return "\n".join([f"The end of {self.log}:", *text.splitlines()[-lines:]])

    def peak_memory(self) -> int | None:
        """Returns the most memory the server has held so far, in bytes; None where the system does not tell."""
        if self.process is None:
            return None
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        except OSError:
            return _peak_by_psutil(self.process.pid)
        kib = next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")), None)
        return int(kib) * 1024 if kib else None


def _peak_by_psutil(pid: int) -> int | None:
    import psutil

    try:
        memory = psutil.Process(pid).memory_info()
    except psutil.Error:
        return None
    return getattr(memory, "peak_wset", memory.rss)  # macOS keeps no peak: what it holds now
