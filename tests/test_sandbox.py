"""What a process touches: reads only its inputs and the system, writes only what it was told to, no network.

Python's own audit events show it everywhere, and `strace` where it is installed, also for libraries in C.
"""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest
import torch

import monosoup_cli
from tests.test_secrets import RUN, write

AUDIT = """
import os, sys

LOG = os.open(os.environ["AUDIT_LOG"], os.O_WRONLY | os.O_APPEND)
WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate",
          "os.chmod", "os.chown", "os.utime", "os.mkfifo", "os.mknod", "os.setxattr", "os.removexattr"}
NETWORK = ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo",
           "socket.gethostbyname", "socket.__new__", "urllib.Request", "http.client.connect")

def place(path, folder=None):
    if isinstance(path, int):
        return None
    path = os.fsdecode(path)
    if isinstance(folder, int) and folder >= 0:
        path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
    return os.path.abspath(path)

def hook(event, words):
    if event == "open":
        path, mode, flags = words
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if mode is None else set(mode) & set("wax+")
        found = [("write" if writes else "read", place(path) if path is not None else None)]
    elif event in ("os.rename", "os.link"):
        source, target, from_folder, to_folder = words
        found = [("write", place(source, from_folder)), ("write", place(target, to_folder))]
    elif event in WRITES:
        folder = next((word for word in words[1:] if isinstance(word, int)), None)
        found = [("write", place(words[0], folder if event in ("os.remove", "os.rmdir") else None))]
    elif event in NETWORK:
        found = [("network", f"{event} {words[1:]}")]
    elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pty.spawn"):
        found = [("program", f"{event} {words[0]}")]
    else:
        return
    for kind, what in found:
        if what is not None:
            os.write(LOG, f"{kind} {what}\\n".encode("utf-8", "backslashreplace"))

sys.addaudithook(hook)
"""

COMMANDS = [
    ("edit", "in/base", "in/ft", "-o", "out/edited", "--report", "out/edited.json"),
    ("edit", "in/base", "in/ft", "-o", "out/edited", "--overwrite"),
    ("edit", "in/base", "in/state.pt", "-o", "out/of-a-state-dict.safetensors"),
    ("edit", "in/base", "in/ft", "-o", "out/adapter", "--as-adapter", "--adapter-rank", "2"),
    ("edit", "in/base", "out/adapter", "-o", "out/merged"),
    ("wise", "in/base", "in/ft", "-o", "out/sweep", "--alpha", "0.3,0.6"),
    ("sfgs", "in/base", "in/ft", "in/ft2", "-o", "out/sfgs", "--threshold", "0.5"),
    ("inspect-spectrum", "in/base", "in/ft", "--html", "out/page.html"),
    ("edit", "in/base", "in/ft", "-o", "out/dry", "--dry-run"),
    ("report", "out/edited.json"),
    ("compare", "out/edited.json", "out/edited"),
]
"""`out` has the outputs and their workplaces alone."""
GREEDY = (
    "soup",
    "in/ft",
    "in/ft2",
    "-o",
    "out/soup",
    "--greedy",
    "--score-command",
    "wc -c < {}/model.safetensors",
)
SEARCH = (
    *("search", "in/base", "in/ft", "-o", "out/found", "--budget", "2"),
    *("--score", "wc -c < {}/model.safetensors"),
)
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc", "/proc", "/sys", "/dev")
DEVICES = {"/dev/null", "/dev/tty"}
MAY_WRITE = re.compile(r"O_(WRONLY|RDWR|CREAT)")
CALL = re.compile(r"(\w+)\((.*)")
PATH = re.compile(r'(?:(?:AT_FDCWD|\d+)(?:<([^>]*)>), )?"((?:[^"\\]|\\.)*)"')
CHANGES = re.compile(r"mkdir|rename|unlink|rmdir|truncate|^(sym)?link|chmod|chown|utime|mknod|creat|setxattr")
LOOKS = re.compile(r"stat|access|readlink|getcwd|chdir|getxattr|listxattr|execve")


class World:
    """A folder with inputs, an empty one for outputs, and a home with things that concern nobody."""

    def __init__(self, place):
        self.path, self.home, self.temporary = place / "world", place / "home", place / "tmp"
        for folder in (
            self.path / "in",
            self.path / "out",
            self.home / ".cache" / "huggingface",
            self.temporary,
        ):
            folder.mkdir(parents=True)
        for seed, name in enumerate(("base", "ft", "ft2")):
            write(self.path / "in" / name, seed)
        tensors = {"model.layers.0.q_proj.weight": torch.ones(8, 6), "norm": torch.ones(8)}
        torch.save(tensors, self.path / "in" / "state.pt")
        for name in (".netrc", ".bashrc", ".cache/huggingface/token"):
            (self.home / name).write_text("private")
        self.plan = self.path / "in" / "plan.json"
        self.log = place / "log"
        self.log.touch()

    def run(self, commands, *tracer, **env):
        self.plan.write_text(json.dumps(commands))
        kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
        return subprocess.run(
            [*tracer, sys.executable, "-c", RUN, self.plan],
            env={
                **kept,
                "HOME": str(self.home),
                "TMPDIR": str(self.temporary),
                "PYTHONPATH": str(Path(monosoup_cli.__file__).parents[1]),
                "PYTHONDONTWRITEBYTECODE": "1",
                "OPENBLAS_NUM_THREADS": "1",
                **env,
            },
            cwd=self.path,
            capture_output=True,
            text=True,
            check=False,
        )

    def judge(self, events, *, programs=0):
        """Check what was touched: (kind, path)."""
        installed = {sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), *sys.path}
        installed = {os.path.realpath(path) for path in installed if path} | {sys.prefix, sys.base_prefix}
        installed.add(os.environ.get("VIRTUAL_ENV", sys.prefix))
        may_read = [*SYSTEM, *installed, self.path, self.temporary, self.log.parent / "hook"]
        may_write = [self.path / "out", self.temporary]
        touched = {"read": may_read, "write": may_write}
        seen = set()
        for kind, path in events:
            seen.add(kind)
            if kind in touched and not (kind == "write" and path in DEVICES):
                places = [path, os.path.realpath(path)]
                assert any(Path(one).is_relative_to(ok) for one in places for ok in touched[kind]), (
                    kind,
                    path,
                )
            assert kind != "network", path
        assert {"read", "write"} <= seen
        assert sum(kind == "program" for kind, _ in events) <= programs, events


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.fixture
def open_world():
    """One that other users may enter; pytest's own folders are closed to them."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        world = World(Path(place))
        yield world
        world.home.chmod(0o700)
        (world.path / "in").chmod(0o755)


def succeeded(done, count):
    codes = re.findall(r"^exit code (\d+)", done.stdout, re.MULTILINE)
    assert codes == ["0"] * count, done


def test_what_python_touches(world, tmp_path):
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(AUDIT)
    paths = os.pathsep.join([str(tmp_path / "hook"), str(Path(monosoup_cli.__file__).parents[1])])
    commands = [*COMMANDS, GREEDY, SEARCH]
    succeeded(world.run(commands, PYTHONPATH=paths, AUDIT_LOG=str(world.log)), len(commands))
    events = [tuple(line.split(" ", 1)) for line in world.log.read_text().splitlines()]
    world.judge(events, programs=5)
    written = {path for kind, path in events if kind == "write"}
    assert any(path.startswith(str(world.path / "out" / "soup.partial")) for path in written)


def test_an_id_is_what_opens_the_network(world, tmp_path):
    """The hook sees sockets, so that what the other tests do not find is not there."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(AUDIT)
    paths = os.pathsep.join([str(tmp_path / "hook"), str(Path(monosoup_cli.__file__).parents[1])])
    more = {"HF_ENDPOINT": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}
    command = ("edit", "org/base", "in/ft", "-o", "out/x", "--dry-run")
    done = world.run([command], PYTHONPATH=paths, AUDIT_LOG=str(world.log), **more)
    assert "exit code 1" in done.stdout
    assert "network socket.connect" in world.log.read_text()


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_what_the_process_touches(world):
    tracer = ["strace", "-f", "-y", "-qq", "-e", "trace=%file,%network,?ftruncate", "-e", "signal=none"]
    done = world.run(COMMANDS, *tracer, "-o", world.log)
    if "ptrace" in done.stderr:
        pytest.skip("ptrace is not allowed here")
    succeeded(done, len(COMMANDS))
    world.judge(list(calls(world.log.read_text(errors="replace"), world.path)))


def calls(trace, folder):
    """What the lines of `strace` say was read, written or connected to, in this working directory."""
    for line in trace.splitlines():
        call = CALL.search(line.partition(" ")[2].strip())
        if call is None or "resumed>" in line:
            continue
        name, words = call[1], call[2]
        places = [os.path.join(parent or folder, path) for parent, path in PATH.findall(words)]
        if name in ("socket", "connect", "bind", "sendto", "sendmsg", "accept"):
            yield "network", line
        elif LOOKS.search(name) and not CHANGES.search(name):
            continue
        else:
            is_write = CHANGES.search(name) or MAY_WRITE.search(words.rpartition('"')[2])
            for path in places:
                yield "write" if is_write else "read", os.path.normpath(path)


DROPPED = """
import json, os, sys
from monosoup_cli.cli.app import main
warm, rest = json.load(open(sys.argv[1]))
assert main(warm) == 0  # imports what a user without rights might not reach
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for words in rest:
    print("exit code", main(words), flush=True)
"""


def test_a_user_without_rights(open_world):
    """Reading the inputs and writing in one folder is all that a run needs."""
    world = open_world
    rest = [
        ("edit", "in/base", "in/ft", "-o", "out/theirs"),
        ("edit", "in/base", "in/ft", "-o", "in/refused"),
        ("edit", "in/base", "in/secret", "-o", "out/refused"),
    ]
    warm = ("edit", "in/base", "in/ft", "-o", "out/ours")
    world.plan.write_text(json.dumps([warm, rest]))
    write(world.path / "in" / "secret", 5)
    for weights in world.path.rglob("*.safetensors"):
        weights.chmod(0 if weights.parent.name == "secret" else 0o644)
    os.chmod(world.home, 0)
    os.chmod(world.path / "in", 0o555)
    if os.getuid() == 0:
        os.chown(world.path / "out", 65534, 65534)
    done = subprocess.run(
        [sys.executable, "-c", DROPPED, world.plan],
        env={**os.environ, "HOME": str(world.home), "TMPDIR": str(world.temporary)},
        cwd=world.path,
        capture_output=True,
        text=True,
        check=False,
    )
    codes = re.findall(r"^exit code (\d+)", done.stdout, re.MULTILINE)
    assert codes == ["0", "1", "1"], done
    assert "Traceback" not in done.stderr
    assert "Permission denied" in done.stderr
    ours, theirs = (world.path / "out" / name / "model.safetensors" for name in ("ours", "theirs"))
    assert ours.read_bytes() == theirs.read_bytes()
    assert not stat.S_IMODE(theirs.stat().st_mode) & 0o022
