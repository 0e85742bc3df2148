"No telemetry: nothing that SageLab does by itself reaches another machine."
import socket
import subprocess
import sys
from pathlib import Path

import network_guard
import pytest

OUTSIDE = "192.0.2.1"  # reserved for documentation, never a real machine


@pytest.mark.parametrize("host, local", [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), (b"localhost", True),
                                         (None, True), ("0.0.0.0", True), (OUTSIDE, False), ("10.0.0.1", False), ("example.org", False)])
def test_what_counts_as_this_machine(host: object, local: bool) -> None:
    assert network_guard.is_local(host) is local


def test_guard_refuses_and_remembers(outside: list[str]) -> None:
    with socket.socket() as tcp, pytest.raises(network_guard.OutsideSocket): tcp.connect((OUTSIDE, 80))
    with pytest.raises(network_guard.OutsideSocket): socket.getaddrinfo("example.org", 443)
    with socket.socket(type=socket.SOCK_DGRAM) as udp, pytest.raises(network_guard.OutsideSocket): udp.sendto(b"", (OUTSIDE, 53))
    assert [line.split()[0] for line in outside] == ["socket.connect", "socket.getaddrinfo", "socket.sendto"]
    outside.clear()


def test_guard_lets_this_machine_through() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.getpeername() == server.getsockname()


def guarded(arguments: list[str], tmp_path: Path, **options) -> tuple[subprocess.CompletedProcess, str]:
    "Run a program whose Python processes are guarded; gives its result and what it tried to reach."
    folder, log = tmp_path/"guard", tmp_path/"refused.log"
    folder.mkdir()
    done = subprocess.run(arguments, capture_output=True, text=True, env=network_guard.environment(folder, log), **options)
    return done, log.read_text(encoding="utf-8") if log.exists() else ""


def test_guard_reaches_child_processes(tmp_path: Path) -> None:
    attempt = f"import socket; socket.create_connection(({OUTSIDE!r}, 80))"
    done, refused = guarded([sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {attempt!r}])"], tmp_path)
    assert OUTSIDE in refused and "OutsideSocket" in done.stderr


def test_importing_every_module_reaches_nothing(tmp_path: Path, repository: Path) -> None:
    modules = sorted(".".join(path.relative_to(repository).with_suffix("").parts) for path in (repository/"sagelab").rglob("[!_]*.py"))
    done, refused = guarded([sys.executable, "-c", "import " + ", ".join(modules)], tmp_path, cwd=repository)
    assert modules and done.returncode == 0, done.stderr
    assert not refused


def test_the_main_job_reaches_nothing(tmp_path: Path, lab: Path) -> None:
    done, refused = guarded([str(Path(sys.executable).with_name("sagelab")), "demo"], tmp_path, cwd=lab)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not refused
