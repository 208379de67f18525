import errno
import json
import logging
import os
import socket
import warnings

import huggingface_hub
import pytest
from huggingface_hub import HfApi, HfFileSystem, constants, hf_hub_download, snapshot_download
from huggingface_hub.utils import _http, are_progress_bars_disabled
from huggingface_hub.utils import logging as hub_logging

from monosoup_cli.errors import CheckpointError, MismatchError, without_tokens
from monosoup_cli.sources.hub_errors import hub_errors, quiet_hub
from monosoup_cli.sources.transfer import RemoteFolder
from tests.hub import Hub

SECRET = "hf_" + "Ab1" * 11
FILL = "run `hf download org/name` without HF_HUB_OFFLINE"
LOG_IN = "`hf auth login` (or HF_TOKEN)"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with Hub(tmp_path_factory.mktemp("hub")) as hub:
        hub.add("org/name", {"config.json": b"{}", "model.safetensors": b"x" * 3000})
        hub.add("org/gated", {"config.json": b"{}"})
        hub.add("org/private", {"config.json": b"{}"})
        hub.repositories["org/gated"].gated = True
        hub.repositories["org/private"].private = True
        hub.add("org/old", {"config.json": b"{}"})
        hub.rename("org/old", "org/new")
        hub.add("org/climbing", {"config.json": b"{}"})
        hub.hostile_tree("org/climbing", ["../../climbed"])
        yield hub


@pytest.fixture
def hub(served, client):
    served.clear()
    client(served.url)
    return served


def told(call, name="org/name", action="read"):
    """The one line of a failing call, which names what the user typed and no address."""
    with pytest.raises(CheckpointError) as caught, quiet_hub(), hub_errors(name, action):
        call()
    line = str(caught.value)
    assert line.startswith(f"{name}: ")
    assert line.isprintable()
    assert "://" not in line
    assert "127.0.0.1" not in line
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    return line.removeprefix(f"{name}: ")


def resolve(name="org/name", revision=None, token=None):
    return lambda: HfApi(token=token).resolve_revision(name, revision=revision)


def snapshot(name="org/name", **options):
    return lambda: snapshot_download(name, **options)


def download(file="config.json", name="org/name"):
    return lambda: hf_hub_download(name, file)


WAYS = {"resolve": resolve, "snapshot": snapshot, "download": lambda name: download(name=name)}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["org/nothing", "org/private"])
def test_a_private_repository_looks_like_none(hub, way, name):
    assert told(WAYS[way](name)) == f"not on the Hub, or private; check the name; if it is private, {LOG_IN}"


@pytest.mark.parametrize("way", ["snapshot", "download"])
def test_gated(hub, way):
    expected = f"gated on the Hub; accept the conditions on its page, then {LOG_IN}"
    assert told(WAYS[way]("org/gated")) == expected


@pytest.mark.parametrize("way", WAYS)
def test_a_renamed_repository_is_found(hub, way):
    with hub_errors("org/old"):
        assert WAYS[way]("org/old")()


@pytest.mark.parametrize("call", [resolve(revision="v9"), snapshot(revision="v9")])
def test_a_missing_revision(hub, call):
    assert told(call, "org/name@v9").startswith("no such revision on the Hub; after @ comes a branch")


def test_a_missing_file_is_named(hub):
    assert told(download("sub folder/x.json")).startswith("no file 'sub folder/x.json' on the Hub; ")


def test_a_missing_file_of_the_file_system(hub):
    assert told(lambda: HfFileSystem().open("org/name/x.json", "rb")).startswith("a file that it should have")
    assert told(lambda: HfFileSystem().open("org/nothing/x", "rb")).startswith("not on the Hub, or private")


@pytest.mark.parametrize("call", [resolve(), snapshot(), download()])
@pytest.mark.parametrize("status", [500, 503, 504])
def test_trouble_of_the_hub_is_told_as_such(hub, call, status):
    """The library says of most of it that the file is not in the cache."""
    hub.fail("*", status)
    assert (
        told(call)
        == f"the Hub has an internal problem (status {status}); try again later: finished files are kept"
    )


@pytest.mark.parametrize("call", [resolve(), snapshot(), download()])
def test_a_limited_rate_tells_when_to_try_again(hub, call):
    hub.limit("*", wait=55)
    assert told(call) == "too many requests to the Hub; try again in 55 s: finished files are kept"


@pytest.mark.parametrize(
    ("headers", "when"),
    [
        ({}, "later"),
        ({"Retry-After": "soon"}, "later"),
        ({"Retry-After": " 7 "}, "in 7 s"),
        ({"RateLimit": '"api";r=0;t=31'}, "in 31 s"),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:30 GMT"}, "later"),
    ],
)
def test_how_a_server_says_when_to_try_again(hub, headers, when):
    hub.limit("*")
    hub.faults[-1].headers.clear()
    hub.faults[-1].headers.update(headers)
    assert f"try again {when}:" in told(resolve())


def test_a_token_that_the_hub_does_not_know(hub):
    line = told(resolve(token=SECRET))
    assert line == f"the Hub does not accept the token; renew it with {LOG_IN}"


@pytest.mark.parametrize("action", ["read", "write to"])
def test_a_token_that_may_not(hub, action):
    hub.fail("*", 403)
    assert told(resolve(), action=action) == f"the token may not {action} it; use one that may: {LOG_IN}"


@pytest.mark.parametrize("call", [snapshot(), download()])
def test_a_body_cut_short(hub, call):
    hub.cut("*")
    assert told(call) == "the transfer was cut short; run it again: finished files are kept"


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("quota\r\nreached \x1b[31m", ": quota reached [31m"),
        ("<html>\n<body>504</body>", ""),
        (f"the token {SECRET} of me:{SECRET}", ": the token hf_… of me:hf_…"),
        ("x" * 5000, ": " + "x" * 99 + "…" + "x" * 100),
        ("", ""),
    ],
)
def test_what_a_server_says_is_cropped_to_one_line(hub, monkeypatch, message, said):
    answer = {"error": message}
    monkeypatch.setattr("tests.hub.Handler.answer_model", lambda self, **_: self.answer(answer, 418))
    assert told(resolve()) == f"the Hub refused the request (status 418){said}"


@pytest.mark.parametrize("call", [resolve(), snapshot(), download()])
def test_a_refused_connection(client, call):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        client(f"http://127.0.0.1:{unused.getsockname()[1]}")
        line = told(call)
    assert line == "cannot reach the Hub: Connection refused; HF_HUB_OFFLINE=1 uses what is in the cache"


def test_a_name_that_no_server_has(client):
    client("http://hub.invalid")
    assert told(resolve()).startswith("cannot reach the Hub: ")


def test_no_answer_in_time(client):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        client(f"http://127.0.0.1:{silent.getsockname()[1]}")
        line = told(lambda: HfApi().model_info("org/name", timeout=0.05))
    assert line == "cannot reach the Hub: no answer in time; HF_HUB_OFFLINE=1 uses what is in the cache"


@pytest.mark.parametrize("proxy", [f"http://me:{SECRET}@127.0.0.1:9", f"sox://me:{SECRET}@127.0.0.1:9"])
def test_a_proxy_that_fails(hub, monkeypatch, proxy):
    monkeypatch.setenv("HTTP_PROXY", proxy)
    monkeypatch.setenv("NO_PROXY", "")
    _http.close_session()
    line = told(resolve())
    assert SECRET not in line
    assert "me" not in line.split()


def test_a_proxy_that_refuses(hub, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", hub.url)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    _http.close_session()
    assert told(resolve()).startswith("cannot reach the Hub")


@pytest.mark.parametrize("url", ["htp://127.0.0.1", "http://127.0.0.1:port"])
def test_an_address_that_is_none(client, url):
    client(url)
    assert "HF_ENDPOINT" in told(resolve())


@pytest.mark.parametrize("call", [resolve(), snapshot(), download()])
def test_offline_with_nothing_in_the_cache(hub, monkeypatch, call):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert told(call) == f"offline, and it is not in the cache; {FILL}"
    assert hub.requests == []


def test_offline_with_a_part_in_the_cache(hub, monkeypatch):
    snapshot(allow_patterns=["*.json"])()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    expected = f"offline, and only a part of it is in the cache; {FILL}"
    assert told(snapshot()) == expected
    assert snapshot(allow_patterns=["*.json"])()


def test_local_files_only(hub):
    expected = f"it is not in the cache; {FILL}"
    assert told(snapshot(local_files_only=True)) == expected


@pytest.mark.parametrize("name", ["a//b", "../a", "a/b/c", "org/na--me", "org/.", "org/name.git", "a b/c"])
def test_what_is_no_name(hub, name):
    assert told(snapshot(name), name).startswith("not a name on the Hub; names are ORG/NAME")
    assert hub.requests == []


def test_a_listing_that_climbs(hub, tmp_path):
    assert told(snapshot("org/climbing")).startswith("cannot read it: the Hub's response is not valid; ")
    assert not list(tmp_path.rglob("climbed"))


@pytest.mark.parametrize("answer", [[], {}, "text", {"id": 3}, None])
def test_an_answer_that_is_not_the_hubs(hub, monkeypatch, answer):
    monkeypatch.setattr("tests.hub.Handler.answer_model", lambda self, **_: self.answer(answer))
    assert told(resolve()).startswith("cannot read it: the Hub's response is not valid; check HF_ENDPOINT")


def test_a_captive_portal(hub, monkeypatch):
    def page(self, **_):
        self.start(200, 6, {"Content-Type": "text/html"})
        self.write(b"<html>")

    monkeypatch.setattr("tests.hub.Handler.answer_model", page)
    assert told(resolve()).startswith("cannot read it: the Hub's response is not valid; check HF_ENDPOINT")


def test_a_cache_that_is_a_file(hub, tmp_path):
    (tmp_path / "cache").write_text("")
    expected = "cannot use the Hub's cache: Not a directory; HF_HOME sets where it is"
    assert told(snapshot()) == expected


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(hub, monkeypatch, number):
    def full(*words, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    assert told(download()).startswith(
        "no space left for the Hub's cache; free some space, or move it with HF_HOME"
    )


def test_other_errors_pass():
    with pytest.raises(ValueError, match="ours"), hub_errors("org/name"):
        raise ValueError("ours")
    with pytest.raises(FileNotFoundError), hub_errors("org/name"):
        os.stat("/there/is/no/such/file")
    with pytest.raises(MismatchError, match=r"^ours$"), hub_errors("org/name"):
        raise MismatchError("ours")
    with pytest.raises(KeyboardInterrupt), hub_errors("org/name"):
        raise KeyboardInterrupt


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("advance", "kind"),
    [
        (lambda nbytes: fail(KeyError("ours")), KeyError),
        (lambda nbytes: fail(BrokenPipeError(errno.EPIPE, "ours")), BrokenPipeError),
        (lambda nbytes: json.loads("ours"), json.JSONDecodeError),
        (lambda nbytes: huggingface_hub.hf_hub_url("ours", "x", repo_type="ours"), ValueError),
    ],
)
def test_errors_of_a_callback_pass(hub, advance, kind):
    hub.add("org/big", {"model.bin": bytes(3000)})
    with pytest.raises(kind) as caught:
        RemoteFolder("org/big", "org/big", "main").download("model.bin", advance)
    assert type(caught.value) is kind


def test_errors_of_the_standard_library_below_the_library_are_the_hubs(hub):
    def parse():
        with _http.default_client_factory() as client:
            client.get(f"{hub.url}/org/name/resolve/main/model.safetensors").json()

    assert told(parse).startswith("cannot read it: the Hub's response is not valid")


def test_the_library_is_quiet_and_then_as_before(hub, capfd):
    logger = logging.getLogger("huggingface_hub")
    before = are_progress_bars_disabled(), logger.level, hub_logging.get_verbosity()
    with quiet_hub():
        assert are_progress_bars_disabled()
        hub.fail("org/name/config.json", times=1)
        snapshot()()
        assert 503 in [request.status for request in hub.requests]
        logger.error("https://an.address")
        warnings.warn("a warning", stacklevel=1)
    assert capfd.readouterr() == ("", "")
    assert (are_progress_bars_disabled(), logger.level, hub_logging.get_verbosity()) == before
    huggingface_hub.utils.disable_progress_bars()
    try:
        with quiet_hub():
            pass
        assert are_progress_bars_disabled()
    finally:
        huggingface_hub.utils.enable_progress_bars()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SECRET, "hf_…"),
        (f"--token={SECRET}, or '{SECRET}'", "--token=hf_…, or 'hf_…'"),
        ("hf_oauth_eyJhbGciOi.JIUzI1NiIs-InR5", "hf_…"),
        ("api_org_" + "A1" * 17, "hf_…"),
        (f"https://user:{SECRET}@hub/x", "https://…@hub/x"),
        ("http://user:se%20cret@host:8080/a@b", "http://…@host:8080/a@b"),
        ("https://:secret@host https://u:p@h", "https://…@host https://…@h"),
        (f"https://{SECRET}@host", "https://…@host"),
        ("https://glpat-x@host/a and http://x@host", "https://…@host/a and http://…@host"),
        (
            "https://host/a?X-Amz-Signature=ab%2F&b=1&token='x'",
            "https://host/a?X-Amz-Signature=…&b=1&token='x'",
        ),
        ("https://host/a#b?api_key=abc, then", "https://host/a#b?api_key=…, then"),
        ('curl "https://host/a?token=abc" {}', 'curl "https://host/a?token=…" {}'),
        ("curl https://host/a?token=abc; echo 1", "curl https://host/a?token=…; echo 1"),
        ("hf_short and half_" + "a" * 30, "hf_short and half_" + "a" * 30),
        ("hf_model_of_many_words_and_more.safetensors", "hf_model_of_many_words_and_more.safetensors"),
        (
            "hf://org/name@main and hf://gpt2@main, at 12:30 a@b",
            "hf://org/name@main and hf://gpt2@main, at 12:30 a@b",
        ),
    ],
)
def test_tokens_are_taken_out(text, expected):
    assert without_tokens(text) == expected


@pytest.mark.parametrize("word", ["token", "key-"])
def test_a_long_name_of_a_secret_takes_no_longer_than_its_length(word):
    """The names of tensors and tasks come from files. Tried at every place, this would take hours."""
    name = "https://a/?" + word * 200_000
    assert without_tokens(name) == name
    assert without_tokens(f"{name}=a&b") == f"{name}=…&b"
