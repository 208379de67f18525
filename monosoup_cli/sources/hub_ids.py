"""Ids of models on the Hub: what the user typed, or meant."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from monosoup_cli.formats.table import WEIGHTS

__all__ = ["SCHEME", "HubId", "pinned_id", "suggested_id", "to_fill_the_cache"]

SCHEME = "hf://"
OTHER_KINDS = ("datasets/", "spaces/", "kernels/")
ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
URI_WITH_REVISION = re.compile(r"([\w./-]+)@(refs/(?:pr|convert)/[^/]+|[^/]+)(?:/(.+))?")
WORDS = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*/?")
ADDRESS = re.compile(
    r"https?://[^/]+/([^/?#]+/[^/?#]+)(?:/(?:tree|blob|resolve)/([^/?#]+)(?:/([^?#]+?))?)?/?(?:[?#].*)?"
)
"""The address of a repository, or of a folder or file in it, on the Hub's website."""


@dataclass(frozen=True)
class HubId:
    """The parts of `org/name`, `org/name@revision` or `hf://org/name@revision/folder`."""

    repository: str
    revision: str | None = None
    inner: str = ""

    @classmethod
    def parse(cls, source: str) -> HubId | None:
        """Parse what the user typed. Return None if it cannot be the id of a model on the Hub."""
        rest = source.removeprefix(SCHEME).rstrip("/")
        if not source.startswith(SCHEME):
            found = ID.fullmatch(source)
            where = None if found is None else cls(found[1], found[2])
        elif found := URI_WITH_REVISION.fullmatch(rest):
            where = cls(found[1], found[2], found[3] or "")
        else:
            organisation, _, name = rest.partition("/")
            name, _, inner = name.partition("/")
            where = cls(f"{organisation}/{name}".rstrip("/"), None, inner)
        if where is None or where.repository.startswith(OTHER_KINDS):
            return None
        parts = [*where.repository.split("/"), *(where.revision or "main").split("/")]
        return None if {"", ".", ".."}.intersection(parts) else where

    def at(self, commit: str | None) -> str:
        """The id of the same place at a commit."""
        pinned = f"{self.repository}@{commit}"
        return f"{SCHEME}{pinned}/{self.inner}" if self.inner else pinned


def pinned_id(source: str, commit: str | None) -> str:
    """The id of the same place at a commit; what is no id, or has no commit, stays as it is."""
    where = HubId.parse(source)
    return source if where is None or commit is None else where.at(commit)


def suggested_id(source: str) -> str | None:
    """Return the id on the Hub that the user may mean: of an address, or of what is neither a path nor an id.

    None if it looks like a path alone.
    """
    if found := ADDRESS.fullmatch(source):
        repository, revision, inner = found.groups()
        pinned = f"{repository}@{revision}" if revision not in (None, "main") else repository
        meant = f"hf://{pinned}/{inner}" if inner else pinned
    elif WORDS.fullmatch(source):
        meant = source.rstrip("/")
        parts = meant.count("/") + 1
        if parts < 3 and meant.endswith(WEIGHTS):
            return None
        meant = meant if parts == 2 else f"hf://{meant}"
    else:
        return None
    return meant if HubId.parse(meant) else None


def to_fill_the_cache(source: str) -> str:
    """Say how to bring all of a repository into the cache. A run brings there only what it needs itself."""
    where = HubId.parse(source) or HubId(source)
    revision = [] if where.revision is None else ["--revision", where.revision]
    command = shlex.join(["hf", "download", where.repository, *revision])
    return f"run `{command}` without HF_HUB_OFFLINE"
