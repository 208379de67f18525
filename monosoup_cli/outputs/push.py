"""Upload a finished output folder to the Hub."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from monosoup_cli.errors import AccessError, CheckpointError, OutputError, UsageError, crop
from monosoup_cli.sources.hub_errors import LOG_IN, hub_errors, quiet_hub

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["CardMetadata", "check_push", "push", "screen_metadata", "upload_command"]

REPOSITORY = re.compile(r"[^/]+/[^/]+")
FREE_TO_REPLACE = {".gitattributes", "README.md"}
"""Files that the Hub's website puts into a new repository."""
REPORTS = "*monosoup_report.json"
"""The usual names of reports in an output."""


def check_push(repository: str, *, overwrite: bool) -> None:
    """Check, before any work is done, that `push` will be accepted.

    Args:
        repository: The name of the repository, ORG/NAME.
        overwrite: Whether files that the repository holds may be replaced.

    Raises:
        UsageError: It is not the name of a repository.
        OutputError: There is no token, it may not write there, or the repository holds files.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
        is_name = REPOSITORY.fullmatch(repository) is not None
    except HFValidationError:
        is_name = False
    if not is_name:
        raise UsageError(
            "cannot push: not a repository name", expected="ORG/NAME", found=crop(repr(repository))
        )
    if constants.HF_HUB_OFFLINE:
        raise OutputError("cannot push while offline", path=repository, hint="run without HF_HUB_OFFLINE")
    token = get_token()
    if token is None:
        raise OutputError(
            "cannot push without a token", path=repository, hint="run `hf auth login`, or set HF_TOKEN"
        )
    with _refusing(repository, None), quiet_hub():
        api = HfApi(token=token)
        _check_account(api.whoami(), repository)
        _head(api, repository, overwrite=overwrite)


def _check_account(account: Mapping[str, Any], repository: str) -> None:
    """Raise OutputError if the Hub's description of a token says that it cannot write to a repository."""
    owner = repository.partition("/")[0]
    token = (account.get("auth") or {}).get("accessToken") or {}
    role, scopes = token.get("role"), (token.get("fineGrained") or {}).get("scoped") or ()
    if role == "read":
        raise OutputError(
            "the token may only read", path=repository, hint=f"use one that may write: {LOG_IN}"
        )
    organisations = [one.get("name") for one in account.get("orgs") or ()]
    names = [name for name in (account.get("name"), *organisations) if isinstance(name, str)]
    if owner.lower() not in map(str.lower, names):
        raise OutputError(
            f"the token belongs to {crop(names[0]) if names else 'nobody'}, who is not a member of {owner}",
            path=repository,
            hint=f"push to a name of your own: {crop(names[0])}/NAME" if names else f"use another: {LOG_IN}",
        )
    writable = [
        str((scope.get("entity") or {}).get("name")).lower()
        for scope in scopes
        if any(re.fullmatch(r"repo\.(.+\.)?write", str(one)) for one in scope.get("permissions") or ())
    ]
    if role == "fineGrained" and not {owner.lower(), repository.lower()}.intersection(writable):
        raise OutputError(
            "the fine-grained token may not write there",
            path=repository,
            hint=f"give it write access to repositories of {owner}, or use another: {LOG_IN}",
        )


class CardMetadata(NamedTuple):
    """Fields of a model card: those that the Hub accepts, and the others."""

    accepted: Mapping[str, Any]
    refused: Mapping[str, Any]


def screen_metadata(fields: Mapping[str, Any]) -> CardMetadata:
    """Ask the Hub which fields of a model card it accepts: all together, or else one by one.

    Raises:
        OutputError: The Hub cannot be reached.
    """
    if _is_accepted(fields):
        return CardMetadata(fields, {})
    accepted = {name: value for name, value in fields.items() if _is_accepted({name: value})}
    return CardMetadata(accepted, {name: value for name, value in fields.items() if name not in accepted})


def _is_accepted(metadata: Mapping[str, Any]) -> bool:
    from huggingface_hub import ModelCard, ModelCardData

    card = ModelCard(f"---\n{ModelCardData(**metadata).to_yaml()}\n---\n")
    with _refusing("the model card", None), quiet_hub():
        try:
            card.validate(repo_type="model")
        except ValueError:
            return False
    return True


def push(
    folder: Path,
    repository: str,
    *,
    public: bool,
    overwrite: bool,
    summary: str,
    instead: Mapping[str, bytes] | None = None,
) -> str:
    """Replace a repository's content by a folder, in one commit.

    Args:
        folder: The finished output. It stays as it is, even after an error.
        repository: The name of the repository. If it does not exist, it is created.
        public: Whether to make a new repository public. An existing one stays as visible as it is.
        overwrite: Whether files that the repository holds may be replaced.
        summary: The commit's message.
        instead: What is sent in the place of files in the folder, by name.

    Returns:
        The URL of the repository.

    Raises:
        OutputError: The Hub refuses, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    changed = instead or {}
    later = upload_command(folder, repository, public=public, overwrite=overwrite, without=changed)
    hint = f"the folder is complete; upload it with `{later}`"
    with _refusing(repository, hint), quiet_hub():
        api = HfApi(token=get_token())
        files = {name: changed.get(name, folder / name) for name in _visible_files(folder)}
        with _repository(api, repository, private=not public):
            head, held = _head(api, repository, overwrite=overwrite)
            stale = held - files.keys() - {".gitattributes"}
            # not upload_folder, which splits a large or slow upload into several visible commits
            commit = api.create_commit(
                repository,
                [
                    *(CommitOperationDelete(name) for name in sorted(stale)),
                    *(CommitOperationAdd(name, content) for name, content in files.items()),
                ],
                commit_message=summary,
                parent_commit=head,  # fails if someone else has committed since
            )
        return str(commit.repo_url)


@contextmanager
def _repository(api: HfApi, name: str, *, private: bool) -> Iterator[None]:
    """Create the repository if there is none, and remove it again if nothing gets into it."""
    from huggingface_hub.errors import HfHubHTTPError

    is_new = _head(api, name, overwrite=True)[0] is None
    if is_new:
        try:
            api.create_repo(name, private=private)
        except HfHubHTTPError as error:
            if error.response.status_code != 409:  # someone else was faster
                raise
            is_new = False
    first = _head(api, name, overwrite=True)[0] if is_new else None
    try:
        yield
    except BaseException:  # an interrupt as well
        with suppress(Exception):  # the error that is on its way matters more
            if is_new and _head(api, name, overwrite=True)[0] == first:
                api.delete_repo(name)
        raise


def upload_command(
    folder: Path, repository: str, *, public: bool, overwrite: bool, without: Collection[str] = ()
) -> str:
    """The shell command that does what `push` does, but leaves reports out, which have local paths.

    Args:
        without: The names of files to leave out as well.
    """
    others = [name for name in without if not fnmatchcase(name, REPORTS)]
    options = [word for name in (REPORTS, *others) for word in ("--exclude", name)]
    options += [*([] if public else ["--private"]), *(["--delete", "*"] if overwrite else [])]
    return shlex.join(["hf", "upload", repository, str(folder), *options])


@contextmanager
def _refusing(repository: str, hint: str | None) -> Iterator[None]:
    try:
        with hub_errors(repository, "write to"):
            yield
    except OutputError as error:
        error.hint = error.hint if hint is None else hint
        raise
    except CheckpointError as error:
        hints = [error.hint] if hint is None or isinstance(error, AccessError) else []
        steps = [step for step in (*hints, hint) if step is not None]
        raise OutputError(error.problem, path=repository, hint="; ".join(steps) or None) from None


def _head(api: HfApi, repository: str, *, overwrite: bool) -> tuple[str | None, set[str]]:
    """The repository's last commit and the names of its files.

    Raises:
        OutputError: Files would be lost, and `overwrite` is not set.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        info = api.model_info(repository)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return None, set()
    held = {file.rfilename for file in info.siblings or ()}
    lost = sorted(held - FREE_TO_REPLACE)
    if lost and not overwrite:
        raise OutputError(
            "the repository already holds files",
            path=repository,
            found=crop(", ".join(lost[:4]) + (", …" if len(lost) > 4 else "")),
            hint="choose another, or pass --overwrite",
        )
    return info.sha, held


def _visible_files(folder: Path) -> Iterator[str]:
    """The sorted names of all files in the folder that are not hidden."""
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in inner.parts):
            yield inner.as_posix()
