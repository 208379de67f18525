"""What hints on reading from the Hub lead to, on a Hub on loopback: an input that is read.

Where a hint is that the Hub, the network or the disk is at fault, the fault ends, and the same command runs.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, HfFileSystem, constants, snapshot_download
from huggingface_hub.utils import _http
from huggingface_hub.utils._hf_uris import parse_hf_uri
from safetensors.torch import save_file

from monosoup_cli.errors import CheckpointError
from monosoup_cli.sources.hub_errors import hub_errors, quiet_hub
from tests.conftest import Result
from tests.hints.of_outputs import LIMIT, full_disk, scores_on, spoiling
from tests.hints.table import Trial, follows
from tests.hub import Handler, Hub

SCRIPTS = Path(sys.executable).parent


class Served:
    """A pair on a Hub, of which more than headers is worth sending, and the edit of its ids."""

    def __init__(self, at: Trial, hub: Hub) -> None:
        self.hub, self.at, self.command = hub, at, ("edit", "org/base", "org/ft", "-o", at.out)
        self.patch: pytest.MonkeyPatch = at.request.getfixturevalue("monkeypatch")
        for name, path in (("base", at.base), ("ft", at.finetuned)):
            save_file({"layers.0.weight": torch.randn(96, 96), "norm.weight": torch.ones(96)}, path)
            hub.add(f"org/{name}", {"model.safetensors": path, "config.json": b"{}"})
        self.go_to(hub.url)

    def go_to(self, url: str) -> None:
        self.at.request.getfixturevalue("client")(url)

    def offline(self, value: bool = True) -> None:
        self.patch.setattr(constants, "HF_HUB_OFFLINE", value)

    def log_in(self, hint: str) -> None:
        """Run the command that the hint has, and give it the owner's token."""
        (command,) = re.findall(r"`(hf auth login)`", hint)
        home = self.at.tmp / "home"
        words = [SCRIPTS / command.split()[0], *command.split()[1:], "--token", self.hub.token]
        subprocess.run(words, env=self.hub.env(home), check=True, capture_output=True)
        shutil.copy(home / "token", self.at.tmp / "token")

    def download(self, hint: str) -> None:
        """Run the command that the hint has, without HF_HUB_OFFLINE."""
        (command,) = re.findall(r"`(hf download .*)` without HF_HUB_OFFLINE", hint)
        words = shlex.split(command)
        env = self.hub.env(self.at.tmp / "home", HF_HUB_CACHE=str(self.at.tmp / "cache"))
        subprocess.run([SCRIPTS / words[0], *words[1:]], env=env, check=True, capture_output=True)

    def token(self, token: str) -> None:
        self.patch.setenv("HF_TOKEN", token)

    def told(self, call: Callable[[], object], action: str = "read") -> None:
        """The hint on an error that the command line does not meet today."""
        with pytest.raises(CheckpointError) as caught, quiet_hub(), hub_errors("org/ft", action):
            call()
        self.at.look(Result(1, "", str(caught.value)))


@contextmanager
def served(at: Trial) -> Iterator[Served]:
    with Hub(at.tmp / "served") as hub:
        yield Served(at, hub)


@follows("sources/hub_errors.py", "gated on the Hub")
@follows("sources/hub_errors.py", "not on the Hub, or private")
def closed_to_others(at: Trial) -> None:
    with served(at) as by:
        repository = by.hub.repositories["org/ft"]
        repository.gated, repository.private = "gated" in at.site.problem, "private" in at.site.problem
        at.refused(*by.command)
        by.log_in(at.hint)
        at.loads(*by.command)


@follows("sources/hub_errors.py", "renew it with")
@follows("sources/hub_errors.py", "use one that may")
def another_token(at: Trial) -> None:
    with served(at) as by:
        if "accept" in at.site.problem:
            by.token("hf_" + "x" * 34)
        else:
            by.hub.fail("org/ft", 403, times=1)
        at.refused(*by.command)
        by.patch.delenv("HF_TOKEN", raising=False)
        by.log_in(at.hint)
        at.loads(*by.command)


@follows("sources/hub_errors.py", "there is no token for the Hub")
def no_token(at: Trial) -> None:
    """Only the library's own functions ask for one before they send a request."""
    with served(at) as by:
        by.told(lambda: HfApi(token=True).model_info("org/ft"))
        by.log_in(at.hint)
        assert HfApi(token=True).model_info("org/ft")
        at.loads(*by.command)


@follows("sources/hub_errors.py", "no such revision on the Hub")
def a_missing_revision(at: Trial) -> None:
    with served(at) as by:
        commit = by.hub.repositories["org/ft"].revisions["main"]
        at.refused("edit", "org/base", "org/ft@gone", "-o", at.out)
        assert "a branch, a tag or a full commit hash" in at.hint
        by.hub.repositories["org/ft"].revisions["v1"] = commit
        for revision in ("main", "v1", commit):
            at.loads("edit", "org/base", f"org/ft@{revision}", "-o", at.out, "--overwrite")


@follows("sources/hub_errors.py", "names are ORG/NAME or ORG/NAME@REVISION")
@follows("sources/hub_errors.py", "names are hf://ORG/NAME or hf://ORG/NAME@REVISION")
def no_name(at: Trial) -> None:
    with served(at) as by:
        is_uri = "hf://" in at.site.hint
        if is_uri:
            by.told(lambda: parse_hf_uri("hf://org"))
        else:
            at.refused("edit", "org/base", "org/na--me", "-o", at.out)
        for form in re.findall(r"\S*ORG/NAME(?:@REVISION)?", at.hint):
            name = form.replace("ORG/NAME", "org/ft").replace("REVISION", "main")
            at.loads("edit", "org/base", name, "-o", at.out, "--overwrite")


@follows("sources/hub_errors.py", "no file … on the Hub")
@follows("sources/hub_errors.py", "a file that it should have is not on the Hub")
def a_missing_file(at: Trial) -> None:
    with served(at) as by:
        by.hub.repositories["org/ft"].revisions["v1"] = by.hub.repositories["org/ft"].revisions["main"]
        by.hub.add("org/ft", {"model.safetensors": at.finetuned})
        if "no file" in at.site.problem:
            by.hub.hostile_tree("org/ft", ["config.json"])
            at.refused(*by.command)
            by.hub.repositories["org/ft"].hostile.clear()
        else:
            by.told(lambda: HfFileSystem().open("org/ft/config.json", "rb"))
        at.loads("edit", "org/base", at.hint.split()[-1].replace("NAME@REVISION", "org/ft@v1"), "-o", at.out)


@follows("sources/hub_errors.py", "the transfer was cut short")
@follows("sources/hub_errors.py", "too many requests to the Hub; try again later")
@follows("sources/hub_errors.py", "try again in … s")
@follows("sources/hub_errors.py", "(status …); try again later")
def the_same_again(at: Trial) -> None:
    """The base, which has arrived, is not sent a second time."""
    with served(at) as by:
        if "cut" in at.site.problem:
            by.hub.cut("org/ft/model.safetensors")
        elif "status" in at.site.problem:
            by.hub.fail("org/ft/*", 503)
        else:
            by.hub.limit("org/ft/*", wait=7)
            if "later" in at.site.hint:
                by.hub.faults[-1].headers.clear()
        at.refused(*by.command)
        by.hub.clear()
        at.loads(*by.command)


@follows("sources/hub_errors.py", "no space left for the Hub's cache")
@follows("sources/hub_errors.py", "HF_HOME sets where it is")
def the_cache(at: Trial) -> None:
    with served(at) as by:
        if "space" in at.site.problem:

            def full(*words: object, **options: object) -> None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            with by.patch.context() as patch:
                patch.setattr("huggingface_hub.file_download.http_get", full)
                at.refused(*by.command)
        else:
            (at.tmp / "cache").write_text("")
            at.refused(*by.command)
        home = at.tmp / "another home"
        assert re.search(r"\bHF_HOME\b", at.hint)
        done = by.hub.monosoup(*by.command, home=home)
        assert done.returncode == 0, done
        assert [path.name for path in (home / "hub").glob("models--*")]
        at.loads(*by.command, "--overwrite") if "space" in at.site.problem else at.ended(at.out)


@follows("sources/hub_errors.py", "the proxy fails")
@follows("sources/hub_errors.py", "no answer in time")
@follows("sources/hub_errors.py", "…; HF_HUB_OFFLINE=1 uses what is in the cache")
def no_connection(at: Trial) -> None:
    """What an earlier run has left in the cache is enough."""
    with served(at) as by, socket.socket() as closed:
        at.loads(*by.command)
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        if "proxy" in at.site.problem:
            by.go_to("https://hub.invalid")
            by.patch.setenv("HTTPS_PROXY", by.hub.url)
            by.patch.setenv("NO_PROXY", "")
            _http.close_session()
            at.refused(*by.command, "--overwrite")
        elif "time" in at.site.problem:
            closed.listen()
            by.go_to(url)
            by.told(lambda: HfApi().model_info("org/ft", timeout=0.05))
        else:
            by.go_to(url)
            at.refused(*by.command, "--overwrite")
        (setting,) = re.findall(r"(HF_HUB_OFFLINE)=1", at.hint)
        by.patch.setattr(constants, setting, True)
        at.loads(*by.command, "--overwrite")
        if "proxy" in at.site.problem:
            by.offline(False)
            by.patch.delenv("HTTPS_PROXY")
            by.go_to(by.hub.url)
            at.loads(*by.command, "--overwrite")


@follows("sources/hub_errors.py", "its address is not valid")
@follows("sources/hub_errors.py", "too many redirects")
@follows("sources/hub_errors.py", "the Hub's response is not valid")
def another_endpoint(at: Trial) -> None:
    with served(at) as by:
        if "address" in at.site.problem:
            by.go_to("htp://127.0.0.1")
            at.refused(*by.command)
        elif "redirects" in at.site.problem:
            by.hub.moved["org/ft"] = "org/ft"
            at.refused(*by.command)
            by.hub.moved.clear()
        else:
            with by.patch.context() as patch:
                patch.setattr(Handler, "answer_model", lambda self, **_: self.answer("a captive portal"))
                at.refused(*by.command)
        assert "HF_ENDPOINT" in at.hint
        done = by.hub.monosoup(*by.command, home=at.tmp / "home", HF_ENDPOINT=by.hub.url)
        assert done.returncode == 0, done
        at.ended(at.out)


@follows("sources/hub_errors.py", "offline, and … in the cache")
@follows("sources/hub_errors.py", "^… in the cache; run `…` without HF_HUB_OFFLINE")
@follows("sources/hub.py", "offline, and there is no such folder")
@follows("sources/folders.py", "offline, and its weights are not in the cache")
def offline(at: Trial) -> None:
    """Also where a run online has read the few tensors that it needs, without the cache."""
    with served(at) as by:
        command = by.command
        if "weights" in at.site.problem:
            command = (*command, "--include", "norm.weight")
            at.loads(*command)
        elif "folder" in at.site.problem:
            by.hub.add("org/pipe", {"config.json": b"{}", "unet/model.safetensors": at.finetuned})
            snapshot_download("org/pipe", allow_patterns=["config.json"])
            command = ("edit", at.base, "hf://org/pipe/unet", "-o", at.out)
        if at.site.problem.startswith("… in"):
            by.told(lambda: snapshot_download("org/ft", local_files_only=True))
        else:
            by.offline()
            at.refused(*command, "--overwrite")
        by.download(at.hint)
        by.offline()
        if "org/base" in command and (other := at.run(*command, "--overwrite")).code:
            by.download(other.err)
        at.loads(*command, "--overwrite")


@follows("sources/hub.py", "the file in the Hub's cache is incomplete")
def an_incomplete_file(at: Trial) -> None:
    with served(at) as by:
        assert at.run(*by.command).code == 0
        (cached,) = (at.tmp / "cache").glob("models--org--ft/snapshots/*/model.safetensors")
        os.truncate(cached.resolve(), 100)
        at.refused(*by.command, "--overwrite")
        cached.resolve().unlink()
        cached.unlink()
        at.loads(*by.command, "--overwrite")


@follows("sources/transfer.py", "free some space there")
def a_full_temporary_folder(at: Trial) -> None:
    """Parts of the base are kept there, because most of it is not needed."""
    with served(at) as by:
        for name in ("base", "ft"):
            path = at.tmp / f"large-{name}.safetensors"
            weights = {f"layers.{number}.weight": torch.randn(64, 64) for number in range(2)}
            save_file({**weights, "embed.weight": torch.zeros(LIMIT)}, path)
            by.hub.add(f"org/{name}", {"model.safetensors": path})
        command = ("inspect-spectrum", "org/base", "org/ft", "--layer", "layers.*")
        with full_disk():
            at.refused(*command)
        assert "TMPDIR" in at.hint
        at.works(*command)


@follows("sources/locate.py", "for the repository on the Hub: hf://")
@follows("sources/locate.py", "if it is on the Hub: …")
def an_id(at: Trial) -> None:
    with served(at) as by:
        by.patch.chdir(at.tmp)
        by.hub.add("org/pipe", {"unet/model.safetensors": at.finetuned})
        typed = ["org/pipe/unet", "https://huggingface.co/org/ft"]
        if "for the" in at.site.hint:
            (at.tmp / "org" / "ft").mkdir(parents=True)
            typed = ["org/ft"]
        for name in typed:
            at.refused("edit", at.base, name, "-o", at.out)
            at.loads("edit", at.base, at.hint.split()[-1], "-o", at.out, "--overwrite")


@follows("sources/locate.py", "pass hf://")
def an_index_and_a_file_on_the_hub(at: Trial) -> None:
    with served(at) as by:
        index = b'{"weight_map": {"block.weight": "model-00001-of-00001.safetensors"}}'
        by.hub.add("org/two", {"model.safetensors": at.finetuned, "model.safetensors.index.json": index})
        at.refused("edit", at.base, "org/two", "-o", at.out)
        at.loads("edit", at.base, at.hint.split()[-1], "-o", at.out)


@follows("sources/locate.py", "convert the result with llama.cpp's convert_hf_to_gguf.py")
def gguf_alone(at: Trial) -> None:
    with served(at) as by:
        by.hub.add("org/gguf", {"model-Q8_0.gguf": b"GGUF", "README.md": b"# without metadata"})
        at.refused("edit", at.base, "org/gguf", "-o", at.out)
        assert "edit the checkpoint that they were made from" in at.hint
        at.loads("edit", at.base, "org/ft", "-o", at.out)


@follows("sources/hub.py", "name a commit that is in the cache")
def a_cache_without_names(at: Trial) -> None:
    with served(at) as by:
        at.loads(*by.command)
        (at.tmp / "cache" / "models--org--ft" / "refs" / "main").unlink()
        by.offline()
        at.refused(*by.command, "--overwrite")
        at.loads("edit", "org/base", at.hint.split()[-1], "-o", at.out, "--overwrite")


@follows("outputs/journal.py", "a branch on the Hub has moved")
def a_branch_that_moved(at: Trial) -> None:
    with served(at) as by:
        files = {"model.safetensors": at.finetuned, "vocab.txt": bytes(2 * LIMIT)}
        by.hub.add("org/ft", files)
        snapshot_download("org/ft")
        with full_disk():
            assert at.run(*by.command).code == 1
        by.hub.add("org/ft", {**files, "model.safetensors": at.base})
        at.refused(*by.command, "--resume")
        (commit,) = re.findall(r"@\w+", at.hint)
        at.loads("edit", "org/base", f"org/ft{commit}", "-o", at.out, "--resume")


@follows("pipeline/score_command.py", "remove …, have the command work")
def a_score_command_that_changes_the_cache(at: Trial) -> None:
    with served(at) as hub:
        place = at.tmp / "cache" / "models--org--ft"
        score = spoiling(at, f"{place}/snapshots/*/model.safetensors")
        command = ("wise", *hub.command[1:], "--alpha", "0:0.9:0.3", "--score", score)
        assert "error: org/ft/model.safetensors: the score command changed" in at.refused(*command).err
        assert at.blanks == [str(place)]
        shutil.rmtree(place)
        scores_on(at, *command)
