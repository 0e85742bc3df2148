"Refuse every socket that leaves this machine, for this process and for the Python processes it starts."
import ipaddress
import os
import sys
from pathlib import Path

LOOPBACK_NAMES = {"", "localhost", "ip6-localhost", "ip6-loopback"}
WATCHED = {"socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname"}
LOG = "NETWORK_GUARD_LOG"

refused: list[str] = []


class OutsideSocket(OSError):
    "Something tried to reach a machine other than this one."


def is_local(
    host: object,  # host name or address, as text or bytes; None means this machine
) -> bool:
    "Say whether a host is this machine."
    text = os.fsdecode(host).split("%")[0].lower() if isinstance(host, (str, bytes)) else ""
    if text in LOOPBACK_NAMES: return True
    try: address = ipaddress.ip_address(text)
    except ValueError: return False
    # Connecting to 0.0.0.0 or :: reaches this machine; servers bind it and read it back.
    return address.is_loopback or address.is_unspecified


def _host(event: str, arguments: tuple) -> object:
    "The host that an audited socket call names; an address that is no (host, port, ...) is a local unix socket."
    if event in ("socket.getaddrinfo", "socket.gethostbyname"): return arguments[0]
    address = arguments[1]
    return address[0] if isinstance(address, tuple) and isinstance(address[0], str) else None


def _hook(event: str, arguments: tuple) -> None:
    "Refuse and remember; the memory catches a library that swallows the refusal."
    if event not in WATCHED: return
    host = _host(event, arguments)
    if is_local(host): return
    refused.append(f"{event} {host!r}")
    if LOG in os.environ:
        with open(os.environ[LOG], "a", encoding="utf-8") as log: log.write(f"{refused[-1]} by {sys.argv!r}\n")
    raise OutsideSocket(f"{event} to {host!r}: tests stay on this machine")


def install() -> None:
    "Guard this process; an audit hook also sees what C extensions do through Python's sockets, and cannot be taken out."
    sys.addaudithook(_hook)


def environment(
    folder: Path,  # an empty folder for the start-up file
    log: Path,  # where refusals are noted, one a line
) -> dict[str, str]:
    "Environment in which every Python process is guarded from its start."
    (folder/"sitecustomize.py").write_text(f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
                                           "import network_guard\nsys.path.pop(0)\nnetwork_guard.install()\n", encoding="utf-8")
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), LOG: str(log)}
