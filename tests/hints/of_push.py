"""What hints on sending to the Hub lead to: what is there is what is in the output."""

from __future__ import annotations

import re
import shlex
import subprocess

from safetensors.torch import load

from tests.hints.of_hub import SCRIPTS, Served, served
from tests.hints.table import Trial, follows
from tests.hub import Handler

NEW = "owner/edited"


def sent(by: Served) -> None:
    """What is on the Hub is what is in the folder, and loads. A report goes without local paths, or not."""
    files = by.hub.files(NEW)
    assert load(files["model.safetensors"].read_bytes())
    assert all(
        (by.at.out / name).read_bytes() == path.read_bytes()
        for name, path in files.items()
        if name not in (".gitattributes", "monosoup_report.json")
    )
    by.at.ended(by.at.out)


@follows("outputs/push.py", "cannot push while offline")
@follows("outputs/push.py", "cannot push without a token")
@follows("outputs/push.py", "the repository already holds files")
@follows("options.py", "--public needs --push")
@follows("pipeline/destination.py", "--push needs a folder")
def a_push(at: Trial) -> None:
    with served(at) as by:
        if "token" not in at.site.problem:
            by.token(by.hub.token)
        command, more = (*at.edit, "--push", NEW), list[str]()
        if at.site.file == "options.py":
            at.refused(*at.edit, "--public")
            more = ["--public"]
            assert at.options(1) == ["--push"]
        elif at.site.file == "pipeline/destination.py":
            at.refused(*at.edit[:-1], at.tmp / "out.safetensors", "--push", NEW)
        elif "offline" in at.site.problem:
            by.offline()
            at.refused(*command)
            by.offline(False)
        elif "token" in at.site.problem:
            at.refused(*command)
            by.log_in(at.hint)
        else:
            by.hub.add(NEW, {"old.bin": b"x"})
            at.refused(*command)
            at.works(*at.edit, "--push", "owner/another")
            more = at.options()
        at.works(*command, *more)
        sent(by)


@follows("outputs/push.py", "the token may only read")
@follows("outputs/push.py", "the fine-grained token may not write there")
@follows("outputs/push.py", "push to a name of your own")
@follows("outputs/push.py", "who is not a member of …; use another")
def a_token_that_may_not_push(at: Trial) -> None:
    with served(at) as by:
        by.token(by.hub.token)
        target = "org/edited" if at.site.hint.startswith("push to") else NEW
        if "only read" in at.site.problem:
            by.hub.role = "read"
        elif "fine-grained" in at.site.problem:
            by.hub.role, by.hub.scoped = "fineGrained", []
        with by.patch.context() as patch:
            if at.site.hint.startswith("use another"):
                nameless = {"type": "user", "auth": {"type": "access_token"}}
                patch.setattr(Handler, "answer_whoami", lambda self: self.answer(nameless))
            at.refused(*at.edit, "--push", target)
        if "fine-grained" in at.site.problem:
            owner = {"type": "user", "name": at.blanks[0]}
            by.hub.scoped = [{"entity": owner, "permissions": ["repo.write"]}]
        elif target == NEW:
            by.hub.role = "write"
            by.patch.delenv("HF_TOKEN")
            by.log_in(at.hint)
        at.works(*at.edit, "--push", at.hint.split()[-1].replace("NAME", "edited") if target != NEW else NEW)
        sent(by)


@follows("outputs/push.py", "the folder is complete; upload it with")
@follows("pipeline/destination.py", "to send what is there")
def a_folder_that_is_still_to_be_sent(at: Trial) -> None:
    """The command in the hint sends it."""
    with served(at) as by:
        by.token(by.hub.token)
        if at.site.file == "outputs/push.py":
            by.hub.fail(NEW, 500, method="POST")
            by.hub.fail("*", 500, method="POST")
            result = at.run(*at.edit, "--push", NEW)
            by.hub.clear()
            at.look(result)
        else:
            at.works(*at.edit)
            at.refused(*at.edit, "--push", NEW)
        (command,) = re.findall(r"`(hf upload .*)`", at.hint)
        program, *words = shlex.split(command)
        done = subprocess.run(
            [SCRIPTS / program, *words],
            env=by.hub.env(at.tmp / "home", HF_TOKEN=by.hub.token),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done
        assert by.hub.repositories[NEW].private
        sent(by)
