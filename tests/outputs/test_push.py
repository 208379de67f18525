import json

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import are_progress_bars_disabled

from monosoup_cli.errors import OutputError, UsageError
from monosoup_cli.outputs.push import check_push, push
from tests.hub import Handler

NEW = "owner/edited"
WEIGHTS = b"\x08" + bytes(3000)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "out"
    (made / "1_Pooling").mkdir(parents=True)
    (made / "model.safetensors").write_bytes(WEIGHTS)
    (made / "README.md").write_text("---\ntags:\n- merge\n---\n# out\n")
    (made / "config.json").write_text("{}")
    (made / "1_Pooling" / "config.json").write_text('{"a": 1}')
    (made / ".hidden").write_text("not for others")
    return made


def pushed(folder, **options):
    return push(folder, NEW, **{"public": False, "overwrite": False, "summary": "Edited", **options})


def content(hub, name=NEW):
    return {path: file.read_bytes() for path, file in hub.files(name).items()}


def visible(folder):
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".hidden")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def refused(call, *words, **options):
    """The one line of a refusal, in which no token stands."""
    with pytest.raises(OutputError) as caught:
        call(*words, **options)
    line = str(caught.value)
    assert line.startswith(f"{NEW}: ")
    assert line.isprintable()
    assert "Token" not in line
    assert "://" not in line
    return line.removeprefix(f"{NEW}: ")


def commits(hub):
    return [request for request in hub.requests if request.route == "commit"]


@pytest.mark.parametrize("public", [False, True])
def test_a_new_repository_holds_the_folder_and_is_private_unless_public(hub, folder, capfd, public):
    check_push(NEW, overwrite=False)
    assert NEW not in hub.repositories
    assert pushed(folder, public=public) == f"{hub.url}/{NEW}"
    held = content(hub)
    assert held.pop(".gitattributes")
    assert held == visible(folder)
    assert hub.repositories[NEW].private is not public
    assert len(commits(hub)) == 1
    assert {request.repository for request in hub.requests} <= {NEW, None}
    assert capfd.readouterr() == ("", "")


def test_a_large_number_of_files_is_one_commit(hub, folder):
    for number in range(300):
        (folder / f"vocabulary-{number}.txt").write_text(str(number))
    pushed(folder)
    assert len(commits(hub)) == 1
    assert len(content(hub)) == 305


def test_progress_bars_come_back(hub, folder):
    before = are_progress_bars_disabled()
    pushed(folder)
    assert are_progress_bars_disabled() == before


@pytest.mark.parametrize("private", [False, True])
def test_an_existing_repository_stays_as_visible_as_it_is(hub, folder, private):
    hub.add(NEW, {".gitattributes": b"", "README.md": b"# made on the website"})
    hub.repositories[NEW].private = private
    check_push(NEW, overwrite=False)
    pushed(folder, public=private)
    assert hub.repositories[NEW].private is private
    assert content(hub)["README.md"] == (folder / "README.md").read_bytes()


def test_other_files_are_not_overwritten(hub, folder):
    hub.add(
        NEW, {".gitattributes": b"", "model.safetensors": b"old", "b.bin": b"", "c": b"", "d": b"", "e": b""}
    )
    before = content(hub)
    expected = (
        "the repository already holds files: found b.bin, c, d, e, …; choose another, or pass --overwrite"
    )
    assert refused(check_push, NEW, overwrite=False) == expected
    assert refused(pushed, folder).startswith("the repository already holds files: found b.bin, c, d, e, …; ")
    assert content(hub) == before


def test_with_overwrite_nothing_stale_stays(hub, folder):
    attributes = b"*.safetensors filter=lfs"
    stale = {"model-00001-of-00002.safetensors": b"old", "pytorch_model.bin": b"old", "sub/old.txt": b"old"}
    hub.add(NEW, {".gitattributes": attributes, "config.json": b"old", **stale})
    check_push(NEW, overwrite=True)
    pushed(folder, overwrite=True)
    assert content(hub) == {**visible(folder), ".gitattributes": attributes}
    assert len(commits(hub)) == 1


def test_pushing_the_same_again_changes_nothing(hub, folder):
    pushed(folder)
    before = hub.repositories[NEW].revisions["main"]
    assert pushed(folder, overwrite=True) == f"{hub.url}/{NEW}"
    assert hub.repositories[NEW].revisions["main"] == before


@pytest.mark.parametrize(
    "name", ["edited", "a/b/c", "", "/x", "x/", "../x", "owner/-x", "owner/a--b", "o w/x", "a\n/b"]
)
def test_what_is_no_name(hub, name):
    with pytest.raises(UsageError, match="not a repository name: expected ORG/NAME, found") as caught:
        check_push(name, overwrite=False)
    assert str(caught.value).isprintable()
    assert hub.requests == []


def test_without_a_token(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    expected = "cannot push without a token; run `hf auth login`, or set HF_TOKEN"
    assert refused(check_push, NEW, overwrite=False) == expected
    assert hub.requests == []


def test_offline(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    expected = "cannot push while offline; run without HF_HUB_OFFLINE"
    assert refused(check_push, NEW, overwrite=False) == expected


def test_an_implicit_token_may_be_disabled(hub, folder, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    check_push(NEW, overwrite=False)
    pushed(folder)
    assert content(hub)["config.json"] == b"{}"


def test_a_token_that_the_hub_does_not_know(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    expected = "the Hub does not accept the token; renew it with `hf auth login` (or HF_TOKEN)"
    assert refused(check_push, NEW, overwrite=False) == expected


def test_a_token_that_may_only_read(hub):
    hub.role = "read"
    expected = "the token may only read; use one that may write: `hf auth login` (or HF_TOKEN)"
    assert refused(check_push, NEW, overwrite=False) == expected
    hub.role = "write"
    check_push(NEW, overwrite=False)


@pytest.mark.parametrize(
    ("name", "permissions", "may"),
    [
        ("owner", ["repo.content.read", "repo.write"], True),
        ("Owner", ["repo.content.read", "repo.content.write"], True),
        (NEW, ["repo.write"], True),
        ("owner", ["repo.content.read", "inference.endpoints.infer.write"], False),
        ("org", ["repo.write"], False),
        ("owner/other", ["repo.write"], False),
    ],
)
def test_a_fine_grained_token(hub, name, permissions, may):
    entity = {"_id": "5", "type": "user", "name": name}
    hub.role, hub.scoped = "fineGrained", [{"entity": entity, "permissions": permissions}]
    if may:
        check_push(NEW, overwrite=False)
        return
    expected = "the fine-grained token may not write there; give it write access to repositories of owner"
    assert refused(check_push, NEW, overwrite=False).startswith(f"{expected}, or use another: ")
    hub.scoped.append({"entity": {**entity, "name": "owner"}, "permissions": ["repo.write"]})
    check_push(NEW, overwrite=False)


def test_an_organisation_that_the_token_is_not_a_member_of(hub):
    with pytest.raises(OutputError) as caught:
        check_push("org/edited", overwrite=False)
    expected = (
        "the token belongs to owner, who is not a member of org; push to a name of your own: owner/NAME"
    )
    assert str(caught.value) == f"org/edited: {expected}"
    check_push("owner/edited", overwrite=False)
    hub.orgs = ["Org"]
    check_push("org/edited", overwrite=False)


@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_what_fails_leaves_no_empty_repository(hub, folder, method):
    hub.fail(f"{NEW}*", 500, method=method)
    assert refused(pushed, folder).startswith("the Hub has an internal problem (status 500); the folder is")
    assert NEW not in hub.repositories
    assert [request.route for request in hub.requests].count("create") == 1


def test_an_interrupted_upload_leaves_no_empty_repository(hub, folder, monkeypatch):
    def interrupt(self, *words, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pushed(folder)
    assert NEW not in hub.repositories
    hub.add(NEW, {".gitattributes": b""})
    with pytest.raises(KeyboardInterrupt):
        pushed(folder)
    assert NEW in hub.repositories  # it was there before


def test_what_others_put_into_a_new_repository_stays(hub, folder, monkeypatch):
    def fill(self, repository, revision):
        hub.add(NEW, {"theirs.bin": b"theirs"})
        return self.answer({"error": "A commit has happened since."}, 412)

    monkeypatch.setattr(Handler, "answer_commit", fill)
    assert refused(pushed, folder).startswith("someone else has changed it in the meantime; ")
    assert content(hub) == {"theirs.bin": b"theirs"}


def test_trouble_before_any_work(hub):
    hub.limit("*", wait=9)
    expected = "too many requests to the Hub; try again in 9 s: finished files are kept"
    assert refused(check_push, NEW, overwrite=False) == expected


@pytest.mark.parametrize(
    ("options", "flags"),
    [({}, " --private"), ({"public": True}, ""), ({"overwrite": True}, " --private --delete '*'")],
)
def test_what_fails_leaves_the_folder_and_tells_how_to_send_it(hub, folder, monkeypatch, options, flags):
    monkeypatch.setenv("HF_TOKEN", hub.guest_token)
    before = visible(folder)
    line = refused(pushed, folder, **options)
    command = f"hf upload {NEW} {folder} --exclude '*monosoup_report.json'{flags}"
    cure = "use one that may: `hf auth login` (or HF_TOKEN)"
    assert (
        line == f"the token may not write to it; {cure}; the folder is complete; upload it with `{command}`"
    )
    assert visible(folder) == before
    assert NEW not in hub.repositories


def test_trouble_in_the_middle_of_an_upload(hub, folder):
    hub.add(NEW, {".gitattributes": b""})
    hub.fail("*", 500, method="PUT")
    line = refused(pushed, folder)
    assert line.startswith(
        "the Hub has an internal problem (status 500); the folder is complete; upload it with `hf upload "
    )
    assert set(content(hub)) == {".gitattributes"}


def test_a_change_by_others_meanwhile_is_not_mixed_with(hub, folder, monkeypatch):
    preupload, commit = Handler.answer_preupload, Handler.answer_commit

    def meanwhile(self, **found):
        hub.add(NEW, {"pytorch_model.bin": b"of others"})
        preupload(self, **found)

    def on_its_parent(self, repository, revision):
        parent = json.loads(self.received.splitlines()[0])["value"]["parentCommit"]
        if parent != hub.repositories[repository].revisions[revision]:
            return self.answer({"error": "A commit has happened since."}, 412)
        return commit(self, repository, revision)

    monkeypatch.setattr(Handler, "answer_commit", on_its_parent)
    pushed(folder)
    monkeypatch.setattr(Handler, "answer_preupload", meanwhile)
    (folder / "config.json").write_text("[]")
    line = refused(pushed, folder, overwrite=True)
    assert line.startswith("someone else has changed it in the meantime; the folder is complete; ")
    assert set(content(hub)) == {"pytorch_model.bin"}
